"""The report: one HTML file that needs no network, and the same numbers as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

from t2v_loadtest import figures, plots
from t2v_loadtest.prom import Recorded
from t2v_loadtest.settings import Settings

Bands = dict[str, tuple[float, float]]


def when(seconds: float) -> str:
    """A time for a reader."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def progress(jobs: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """How many jobs were accepted, completed and cancelled by then."""
    accepted = sorted(job["accepted"] for job in jobs)
    done = sorted(job["accepted"] + job["seconds"] for job in jobs if job["status"] == "completed")
    cancelled = sorted(
        job["accepted"] + job["seconds"]
        for job in jobs
        if job["status"] == "failed" and job["seconds"] is not None
    )
    found = {"accepted": accepted, "completed": done, "cancelled or failed": cancelled}
    return {
        name: [(at, number + 1.0) for number, at in enumerate(times)]
        for name, times in found.items()
        if times
    }


def all_plots(
    result: Mapping[str, Any], recorded: Recorded, began: float, seconds: float, bands: Bands
) -> list[dict[str, str]]:
    """Title, picture and caption of each plot."""
    drawn = []

    def add(
        title: str,
        unit: str,
        curves: Mapping[str, Any],
        caption: str,
        part: str = "",
        **how: bool,
    ) -> None:
        """Over the whole test with its parts shaded, or over one part alone."""
        says = f"{caption} {plots.summed(curves, unit)}"
        start, end = bands[part] if part else (began, began + seconds)
        shaded = {} if part else bands
        label = f"seconds since {part or 'the test'} began"
        svg = plots.draw(title, says, unit, label, curves, start, end - start, shaded, **how)
        drawn.append({"title": title, "svg": svg, "caption": caption})

    ab, mix = result["ab"], result["mix"]
    if ab:
        add(
            "Time to a video, as ab saw it", "seconds", {"/generate": ab["points"]},
            "Each dot is a request, at the second in which it was sent: it waits in the queue for "
            "those before it.", "ab", dots=True,
        )  # fmt: skip
    if mix:
        curves = {
            kind: points
            for kind in figures.KINDS
            if (points := plots.series(mix["requests"], kind))
        }
        add(
            "Time to answer, as the mix saw it", "seconds", curves,
            "Each dot is a request of the mix, when it was answered.", "mix", dots=True, log=True,
        )  # fmt: skip
        add(
            "Jobs of the mix", "jobs", progress(mix["jobs"]),
            "How many were accepted, completed and cancelled by then.", "mix", steps=True,
        )  # fmt: skip
    if recorded.fault:
        return drawn
    curves_of = recorded.curves.get
    add(
        "Queue", "jobs", curves_of("queue", {}),
        "Jobs that wait, and jobs that engines work on; with no room left a request gets 429.",
        steps=True,
    )  # fmt: skip
    add(
        "Replicas", "count", curves_of("replicas", {}),
        "Servers that Prometheus reaches, engines with the model loaded and warm, and what an "
        "autoscaler wants, where there is one.", steps=True,
    )  # fmt: skip
    add(
        "Answers by status", "a second", curves_of("answers", {}),
        "All answers of all servers, probes and scrapes included; 4xx and 5xx are the errors.",
    )  # fmt: skip
    add(
        "Latency, as the servers saw it", "seconds", curves_of("latency", {}),
        "95 of 100 requests, and of 100 waits, were shorter. /generate lasts as long as its video.",
    )  # fmt: skip
    add(
        "Processors", "% busy", curves_of("processors", {}),
        "Hosts' CPUs and the GPUs, as far as there are any. Machines that share one computer show "
        "its load, each of them.",
    )  # fmt: skip
    return drawn


def in_short(ab: dict[str, Any] | None, mix: dict[str, Any] | None) -> dict[str, str]:
    """A handful of numbers for the top of the page."""
    numbers = {}
    if ab:
        failed = ab["requested"] - (ab["complete"] - ab["failed"] - ab["other"])
        numbers[f"of {ab['requested']} requests of ab failed, {ab['clients']} at once"] = (
            f"{failed}"
        )
        numbers["videos a second under ab"] = f"{ab['rate']:.2f}"
        if "95%" in ab["percentiles"]:
            numbers["to a video under ab, 95 of 100"] = f"{ab['percentiles']['95%']:.1f} s"
    if mix:
        done = sum(job["status"] == "completed" for job in mix["jobs"])
        numbers[f"of {len(mix['jobs'])} jobs of the mix became a video"] = f"{done}"
        slowest = figures.percentile(
            [one[2] for one in mix["requests"] if one[1] in figures.API], 0.95
        )
        if slowest is not None:
            numbers["to answer submit, poll, cancel, 95 of 100"] = f"{1000 * slowest:.0f} ms"
    return numbers


def job_times(mix: dict[str, Any]) -> dict[str, str]:
    """Waits and whole lives of the jobs that became a video."""
    done = [job for job in mix["jobs"] if job["status"] == "completed"]
    found = {}
    for name, key in (("wait for an engine", "wait"), ("from prompt to video", "seconds")):
        values = [job[key] for job in done if job[key] is not None]
        for word, share in (("median", 0.5), ("95 %", 0.95)):
            value = figures.percentile(values, share)
            if value is not None:
                found[f"{name}, {word}"] = f"{value:.2f} s"
    return found


def write(
    folder: Path,
    settings: Settings,
    result: dict[str, Any],
    recorded: Recorded,
    began: float,
    ended: float,
) -> dict[str, Any]:
    """``report.html`` and ``report.json`` in the folder; returns what stands in the latter."""
    ab, mix = result["ab"], result["mix"]
    found = figures.objectives(settings.goals, ab, mix, settings.users, settings.engines)
    missed = figures.sentence(found)
    bands: Bands = {
        name: (part["began"], part["ended"]) for name, part in (("ab", ab), ("mix", mix)) if part
    }
    kinds = figures.kinds(mix) if mix else []
    errors = Counter(
        f"{one[1]}: {one[4]}" for one in (mix["requests"] if mix else []) if one[4]
    ).most_common(10)
    wanted = (
        f"{settings.users} users at once, {settings.jobs} jobs, {100 * settings.cancel_share:g} % "
        f"of which are cancelled; seed {settings.seed}."
    )
    environment = {**settings.environment, **result["environment"]}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    html = page.render(
        site=settings.host,
        url=settings.url,
        when=when(began),
        seconds=ended - began,
        missed=missed,
        met=sum(one.met is True for one in found),
        unmeasured=sum(one.met is None for one in found),
        numbers=in_short(ab, mix),
        objectives=found,
        recorded=recorded.fault
        or f"Recorded by the site's Prometheus every {recorded.step:.0f} s, dots by the clients.",
        plots=all_plots(result, recorded, began, ended - began, bands),
        ab=ab,
        kinds=kinds,
        jobs=figures.job_counts(mix) if mix else {},
        times=job_times(mix) if mix else {},
        errors=errors,
        mix_says=wanted,
        environment=environment,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(html)
    return {
        "site": settings.host,
        "url": settings.url,
        "began": when(began),
        "seconds": round(ended - began, 1),
        "met": not missed,
        "missed": missed,
        "objectives": [asdict(one) for one in found],
        "ab": None if ab is None else {key: ab[key] for key in ab if key not in ("points", "said")},
        "mix": None
        if mix is None
        else {
            "requests": [asdict(one) for one in kinds],
            "jobs": figures.job_counts(mix),
            "times": job_times(mix),
            "errors": dict(errors),
        },
        "environment": environment,
        "recorded": {"fault": recorded.fault, "step": recorded.step, "curves": recorded.curves},
    }
