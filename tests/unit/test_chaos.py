"""The parts of chaos that need no lab: what a seed draws, what breaks a promise, the table."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from chaos_faults import FAULTS
from chaos_plan import (
    LONG,
    QUICK,
    Accepted,
    Broken,
    Ended,
    Evidence,
    Round,
    Video,
    asks_of,
    fault_of,
    judge,
    table,
    verdict,
)

PROMPTS = {"A": "a dog", "B": "a cat"}
VIDEOS = {
    key: Video(prompt, 100, f"digest of {key}", number, 9, f"digest of {key}", f"digest of {key}")
    for number, (key, prompt) in enumerate(PROMPTS.items())
}
KEPT = Evidence(
    accepted={key: Accepted(prompt) for key, prompt in PROMPTS.items()},
    jobs={key: Ended("completed", num_bytes=100) for key in PROMPTS},
    listed=Counter(PROMPTS.values()),
    videos=VIDEOS,
    earlier={"Z": (VIDEOS["A"], VIDEOS["A"])},
)


def test_fifty_rounds_have_every_fault_and_each_long_one_once() -> None:
    drawn = Counter(fault_of(seed) for seed in range(1, 51))
    assert set(drawn) == set(QUICK) | set(LONG) == set(FAULTS)
    assert {drawn[name] for name in LONG} == {1}
    assert min(drawn[name] for name in QUICK) >= 2


def test_a_seed_draws_the_same_jobs_again_and_another_one_others() -> None:
    assert asks_of(random.Random(7)) == asks_of(random.Random(7))
    assert asks_of(random.Random(7)) != asks_of(random.Random(8))


def test_kept_promises_are_not_blamed() -> None:
    assert judge(KEPT) == []
    cancelled = {**KEPT.accepted, "C": Accepted("a cow", asked_to_cancel=True, cancelled=True)}
    jobs = {**KEPT.jobs, "C": Ended("failed", "cancelled")}
    listed = KEPT.listed + Counter(["a cow"])
    assert judge(replace(KEPT, accepted=cancelled, jobs=jobs, listed=listed)) == []
    full = {**KEPT.jobs, "B": Ended("failed", "storage_failed")}
    one = {"A": VIDEOS["A"]}
    allowed = frozenset({"storage_failed"})
    assert judge(replace(KEPT, jobs=full, videos=one, allowed=allowed)) == []


BROKEN = {
    "denied": (replace(KEPT, jobs={**KEPT.jobs, "B": None}, videos={"A": VIDEOS["A"]}), "lost"),
    "never ends": (
        replace(KEPT, jobs={**KEPT.jobs, "B": Ended("queued")}, videos={"A": VIDEOS["A"]}),
        "lost",
    ),
    "no file": (replace(KEPT, videos={"A": VIDEOS["A"]}), "lost"),
    "fails without a cause": (
        replace(
            KEPT,
            jobs={**KEPT.jobs, "B": Ended("failed", "engine_lost")},
            videos={"A": VIDEOS["A"]},
        ),
        "lost",
    ),
    "cancelled by nobody": (
        replace(
            KEPT, jobs={**KEPT.jobs, "B": Ended("failed", "cancelled")}, videos={"A": VIDEOS["A"]}
        ),
        "lost",
    ),
    "not listed": (replace(KEPT, listed=Counter(["a dog"])), "lost"),
    "an earlier file gone": (replace(KEPT, earlier={"Z": (VIDEOS["A"], None)}), "lost"),
    "a file too many": (
        replace(KEPT, videos={**VIDEOS, "C": replace(VIDEOS["A"], prompt="a cow")}),
        "duplicated",
    ),
    "listed twice": (replace(KEPT, listed=KEPT.listed + Counter(["a dog"])), "duplicated"),
    "a job of nobody": (replace(KEPT, listed=KEPT.listed + Counter(["a cow"])), "duplicated"),
    "an earlier file written again": (
        replace(KEPT, earlier={"Z": (VIDEOS["A"], replace(VIDEOS["A"], inode=99))}),
        "duplicated",
    ),
    "too short": (
        replace(KEPT, videos={**VIDEOS, "B": replace(VIDEOS["B"], num_bytes=50)}),
        "partial",
    ),
    "frames missing": (
        replace(KEPT, videos={**VIDEOS, "B": replace(VIDEOS["B"], frames=8)}),
        "partial",
    ),
    "seen before it was whole": (
        replace(KEPT, videos={**VIDEOS, "B": replace(VIDEOS["B"], first_digest="half of it")}),
        "partial",
    ),
    "sent otherwise": (
        replace(KEPT, videos={**VIDEOS, "B": replace(VIDEOS["B"], fetched="something else")}),
        "partial",
    ),
    "another job's metadata": (
        replace(KEPT, videos={**VIDEOS, "B": replace(VIDEOS["B"], prompt="a horse")}),
        "other",
    ),
    "made though cancelled": (
        replace(KEPT, accepted={**KEPT.accepted, "B": Accepted("a cat", True, True)}),
        "other",
    ),
    "no reason": (
        replace(KEPT, jobs={**KEPT.jobs, "B": Ended("failed")}, videos={"A": VIDEOS["A"]}),
        "other",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_named(name: str) -> None:
    evidence, kind = BROKEN[name]
    assert [one.kind for one in judge(evidence)] == [kind]


def test_a_file_made_twice_is_named_twice() -> None:
    """As a file of no job, and as the second one of a job."""
    evidence = replace(KEPT, videos={**VIDEOS, "C": VIDEOS["A"]})
    assert [one.kind for one in judge(evidence)] == ["duplicated", "duplicated"]


def test_the_table_has_a_row_for_each_fault_and_the_sums() -> None:
    rounds = [
        Round(1, QUICK[0], 6, Counter({"completed": 5, "cancelled": 1}), 4.0),
        Round(2, QUICK[0], 8, Counter({"completed": 6, "storage_failed": 2}), 8.0),
        Round(9, LONG[0], 7, Counter(completed=7), 30.0, alerts=["HostDown"]),
        Round(3, QUICK[1], 7, Counter(completed=7), 90.0, broken=[Broken("lost", "a job")]),
    ]
    assert table(rounds).splitlines()[2:] == [
        f"| {QUICK[0]} | 2 | 2 | 6 s | 8 s | 14 | 11 | 1 | storage_failed 2 |  |",
        f"| {QUICK[1]} | 1 | 0 |  |  | 7 | 7 | 0 |  |  |",
        f"| {LONG[0]} | 1 | 1 | 30 s | 30 s | 7 | 7 | 0 |  | HostDown |",
        "| **all** | 4 | 3 | 8 s | 30 s | 28 | 25 | 1 | storage_failed 2 | HostDown |",
    ]
    assert verdict(rounds) == (
        "4 rounds, 3 survived; 28 jobs accepted, 1 lost, 0 made twice, 0 partial, 0 other"
    )
