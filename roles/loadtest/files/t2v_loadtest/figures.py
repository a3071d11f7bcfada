"""What came of it, in numbers: percentiles, shares, and the objectives that were met or missed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t2v_loadtest.settings import Goals

KINDS = ("submit", "poll", "download", "cancel", "delete")
# Answered at once whatever a video takes; what the alert's error budget counts, too.
API = ("submit", "poll", "cancel")


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that as large a share of them does not exceed; ``None`` of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True)
class Kind:
    """Requests of one kind. Seconds; ``refused``: told to come back later."""

    name: str
    count: int
    failed: int
    refused: int
    median: float
    p95: float
    most: float


def kinds(mix: dict[str, Any]) -> list[Kind]:
    """Every kind that was asked."""
    found = []
    for name in KINDS:
        of_kind = [one for one in mix["requests"] if one[1] == name]
        seconds = [one[2] for one in of_kind]
        if not seconds:
            continue
        failed = sum(bool(one[4]) for one in of_kind)
        refused = sum(one[3] == 429 for one in of_kind)
        found.append(
            Kind(
                name,
                len(of_kind),
                failed,
                refused,
                percentile(seconds, 0.5) or 0.0,
                percentile(seconds, 0.95) or 0.0,
                max(seconds),
            )
        )
    return found


def job_counts(mix: dict[str, Any]) -> dict[str, int]:
    """Jobs by what became of them."""
    counts: Counter[str] = Counter()
    for job in mix["jobs"]:
        if job["cancelled"] and job["error"] == "cancelled":
            counts["cancelled, as was asked"] += 1
        else:
            counts[job["status"]] += 1
    return dict(counts)


@dataclass(frozen=True)
class Objective:
    """One objective. ``met`` None: nothing was measured that it is about."""

    name: str
    goal: str
    seen: str
    met: bool | None
    why: str


def _at_most(name: str, value: float | None, limit: float, unit: str, why: str) -> Objective:
    if value is None:
        return Objective(name, f"at most {limit:g}{unit}", "not measured", None, why)
    return Objective(name, f"at most {limit:.3g}{unit}", f"{value:.3g}{unit}", value <= limit, why)


def fair_wait(mix: dict[str, Any], users: int, engines: int, turns: float) -> float | None:
    """How long a job may wait: so many times the seconds until its turn, and one look of 1 s.

    Each user has one job at a time, so a new one has at most ``users - 1`` before it, on
    ``engines`` that each take as long as these jobs did after their wait.
    """
    worked = [
        job["seconds"] - job["wait"]
        for job in mix["jobs"]
        if job["status"] == "completed" and job["wait"] is not None
    ]
    if not worked:
        return None
    each = float(sum(worked)) / len(worked)
    return 1.0 + turns * (users - 1) / max(engines, 1) * each


def objectives(
    goals: Goals, ab: dict[str, Any] | None, mix: dict[str, Any] | None, users: int, engines: int
) -> list[Objective]:
    """All of them, of what was run."""
    found = []
    if ab is not None:
        answered = ab["complete"] - ab["failed"] - ab["other"]
        failed = ab["requested"] - answered
        found.append(
            Objective(
                "ab: requests not answered with a video",
                f"at most {goals.ab_failed} of {ab['requested']}",
                f"{failed}" + (f", ab ended with status {ab['status']}" if ab["status"] else ""),
                failed <= goals.ab_failed and ab["status"] == 0,
                "The queue holds more jobs than ab has clients, so none may be refused.",
            )
        )
        files = ab["files"]
        found.append(
            Objective(
                "ab: different files",
                f"{answered}, one for each video",
                "not listed" if files is None else f"{files}",
                None if files is None else files >= answered,
                "Names never collide, however many are made within a second.",
            )
        )
    if mix is None:
        return found
    by_name = {one.name: one for one in kinds(mix)}
    api = [by_name[name] for name in API if name in by_name]
    asked = sum(one.count for one in api)
    found.append(
        _at_most(
            "mix: share of submit, poll and cancel requests that failed",
            100 * sum(one.failed for one in api) / asked if asked else None,
            100 * goals.error_share,
            " %",
            "The error budget of the alert T2VApiErrorBudgetBurn. A 429 that says when to come "
            "back is no failure.",
        )
    )
    for name, limit in (("submit", goals.submit_p95), ("poll", goals.poll_p95)):
        found.append(
            _at_most(
                f"mix: {name}, 95 of 100 answered within",
                by_name[name].p95 if name in by_name else None,
                limit,
                " s",
                "The server tells clients to look every 0.5 s: an answer must be there before the "
                "next question.",
            )
        )
    wanted = [job for job in mix["jobs"] if not job["cancelled"]]
    done = sum(job["status"] == "completed" for job in wanted)
    unfinished = mix["wanted"] - len(mix["jobs"])
    total = len(wanted) + unfinished
    share = done / total if total else None
    found.append(
        Objective(
            "mix: jobs that became a video",
            f"at least {100 * goals.completed_share:g} % of {total}",
            "not measured" if share is None else f"{100 * share:.4g} %, {done} of {total}",
            None if share is None else share >= goals.completed_share,
            "An accepted job is never lost.",
        )
    )
    given_up = [job for job in mix["jobs"] if job["cancelled"]]
    ended = sum(job["status"] in ("failed", "completed") for job in given_up)
    found.append(
        Objective(
            "mix: cancelled jobs that ended",
            f"all {len(given_up)}",
            "not measured" if not given_up else f"{ended}",
            None if not given_up else ended == len(given_up),
            "A client that changes its mind frees the engine.",
        )
    )
    waits = [job["wait"] for job in mix["jobs"] if job["wait"] is not None and not job["cancelled"]]
    fair = fair_wait(mix, users, engines, goals.wait_turns)
    why = (
        f"{goals.wait_turns:g} times as long as {users} users' jobs take {engines} engines, and "
        "the second in which it is noticed: jobs are taken in their turn."
    )
    name = "mix: wait for an engine, 95 of 100 jobs within"
    if fair is None:
        found.append(Objective(name, "its turn", "not measured", None, why))
    else:
        found.append(_at_most(name, percentile(waits, 0.95), fair, " s", why))
    return found


def sentence(found: Sequence[Objective]) -> str:
    """The objectives that were missed, in one sentence; empty where all were met."""
    missed = [f"{one.name}: {one.seen}, and not {one.goal}" for one in found if one.met is False]
    if not missed:
        return ""
    were = "was" if len(missed) == 1 else "were"
    return f"{len(missed)} of {len(found)} objectives {were} missed: {'; '.join(missed)}."
