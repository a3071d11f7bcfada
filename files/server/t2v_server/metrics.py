"""Every metric of the server, named here and nowhere else.

Each process of the server writes its own into files of ``PROMETHEUS_MULTIPROC_DIR``; whichever
answers a scrape adds them up (``prometheus_client``'s multiprocess mode).
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import platform
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from t2v_server.profiles import Profile

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# A probe takes a millisecond, a 50-step 720p clip on a small GPU three quarters of an hour.
SECONDS_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60,
    120, 300, 600, 1200, 1800, 2700, 3600,
)  # fmt: skip


@dataclass(frozen=True)
class QueueReading:
    """The store's counts, and what this server's engines are up to, at the time of a scrape."""

    queued: int
    in_flight: int
    oldest_created_at: float | None


class Metrics:
    """The metrics of one server process."""

    def __init__(self, process: str | None = None) -> None:
        """``process`` names the files, so that a process started anew goes on counting."""
        disable_created_metrics()  # a second series for each counter, which nobody reads
        if process is not None and DIRECTORY_VARIABLE in os.environ:
            values.ValueClass = values.MultiProcessValue(lambda: process)
        self.own = CollectorRegistry()

        self.http_requests = Counter(
            "t2v_http_requests_total",
            "HTTP requests answered; its rate is the QPS.",
            ["method", "route", "code"],
            registry=self.own,
        )
        self.http_seconds = self._seconds(
            "t2v_http_request_duration_seconds", "Time to answer an HTTP request.", ["route"]
        )
        self.http_in_progress = self._gauge(
            "t2v_http_requests_in_progress",
            "HTTP requests being answered, waiting ones included.",
            "sum",
        )
        self.event_streams = self._gauge(
            "t2v_event_streams", "Clients that watch a job's events.", "sum"
        )

        self.jobs = Counter(
            "t2v_jobs_total",
            "Generation requests that ended, by outcome (completed, failed, rejected) and reason.",
            ["outcome", "reason"],
            registry=self.own,
        )
        self.jobs_reused = Counter(
            "t2v_jobs_reused_total",
            "Requests answered with an earlier job: an equal one, or the same idempotency key.",
            registry=self.own,
        )
        self.job_retries = Counter(
            "t2v_job_retries_total",
            "Jobs taken again after an engine was lost with them.",
            registry=self.own,
        )
        self.job_seconds = self._seconds(
            "t2v_job_duration_seconds", "Completed jobs: from submission to published file."
        )
        self.queue_seconds = self._seconds(
            "t2v_queue_wait_seconds", "Time a job waited before an engine took it."
        )
        self.generation_seconds = self._seconds(
            "t2v_generation_duration_seconds", "Time in the pipeline: text, denoising, VAE."
        )
        self.encoding_seconds = self._seconds(
            "t2v_encoding_duration_seconds",
            "Time to finish and publish the mp4 after its last frame.",
        )
        self.stage_seconds = self._seconds(
            "t2v_stage_duration_seconds",
            "Time in a stage of a generation: encoding_prompt, denoising, decoding.",
            ["stage"],
        )
        for stage in ("encoding_prompt", "denoising", "decoding"):
            self.stage_seconds.labels(stage)  # shown before there was one
        self.bytes_written = Counter(
            "t2v_video_bytes_written_total", "Bytes of published videos.", registry=self.own
        )
        self.bytes_expired = Counter(
            "t2v_video_bytes_expired_total", "Bytes that retention removed.", registry=self.own
        )

        self.engine_starts = Counter(
            "t2v_engine_starts_total",
            "Engine processes started; more than there are engines is restarts.",
            registry=self.own,
        )
        self.engine_busy = self._gauge(
            "t2v_engines_busy", "Engines of this server that work on a job.", "sum"
        )
        self.model_load_seconds = self._gauge(
            "t2v_model_load_seconds", "Time from an engine's start to warm; the slowest.", "max"
        )
        self.model_info = Gauge(
            "t2v_model_info",
            "Always 1; the labels name the model, its profile and where it runs.",
            ["model", "device", "dtype", "profile"],
            registry=self.own,
            multiprocess_mode="max",
        )

    def _seconds(self, name: str, text: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(name, text, labels or [], buckets=SECONDS_BUCKETS, registry=self.own)

    def _gauge(self, name: str, text: str, mode: str) -> Gauge:
        return Gauge(name, text, registry=self.own, multiprocess_mode=mode)  # type: ignore[arg-type]


class _AtScrape(Collector):
    """What is known elsewhere, read when asked for."""

    def __init__(
        self,
        version: str,
        capacity: int,
        profile: Profile,
        queue: Callable[[], QueueReading | None],
        engines_ready: Callable[[], int],
        free_bytes: Callable[[], int | None],
    ) -> None:
        self._version = version
        self._capacity = capacity
        self._profile = profile
        self._queue = queue
        self._engines_ready = engines_ready
        self._free_bytes = free_bytes

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily(
            "t2v_build_info", "Always 1; the labels say what runs.", labels=["version", "python"]
        )
        build.add_metric([self._version, platform.python_version()], 1)
        yield build
        yield from _expected(self._profile)
        ready = self._engines_ready()
        yield GaugeMetricFamily(
            "t2v_model_loaded", "1 while an engine has the model loaded and warm.", int(ready > 0)
        )
        yield GaugeMetricFamily(
            "t2v_engines_ready", "Engines of this server with the model loaded and warm.", ready
        )
        yield GaugeMetricFamily("t2v_queue_capacity", "Jobs that may wait at once.", self._capacity)
        free = self._free_bytes()
        if free is not None:
            yield GaugeMetricFamily(
                "t2v_volume_free_bytes", "What the volume of the videos can still take.", free
            )
        queue = self._queue()
        yield GaugeMetricFamily(
            "t2v_store_up", "1 while the job store answers.", int(queue is not None)
        )
        if queue is None:
            return
        yield GaugeMetricFamily("t2v_queue_depth", "Jobs waiting for an engine.", queue.queued)
        yield GaugeMetricFamily("t2v_jobs_in_flight", "Jobs that engines work on.", queue.in_flight)
        yield GaugeMetricFamily(
            "t2v_jobs_active",
            "Jobs waiting or in flight: what to scale on.",
            queue.queued + queue.in_flight,
        )
        age = 0.0
        if queue.oldest_created_at is not None:
            age = max(0.0, time.time() - queue.oldest_created_at)
        yield GaugeMetricFamily(
            "t2v_oldest_job_age_seconds",
            "Age of the oldest unfinished job; 0 when there is none.",
            age,
        )


def _expected(profile: Profile) -> Iterable[Metric]:
    """What to compare a generation of the default size with."""
    seconds = GaugeMetricFamily(
        "t2v_profile_expected_seconds",
        "From prompt to file, as the profile expects it of its defaults.",
        labels=["profile", "quality"],
    )
    seconds.add_metric([profile.name, profile.quality], profile.expected.seconds)
    yield seconds
    memory = GaugeMetricFamily(
        "t2v_profile_expected_memory_bytes",
        "The most memory that the profile expects to take, by where: gpu, host.",
        labels=["profile", "where"],
    )
    memory.add_metric([profile.name, "gpu"], profile.expected.gpu_bytes)
    memory.add_metric([profile.name, "host"], profile.expected.host_bytes)
    yield memory


class _Own(Collector):
    """The metrics of this process, when it is the only one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()


def scrape_registry(
    metrics: Metrics,
    *,
    version: str,
    capacity: int,
    profile: Profile,
    queue: Callable[[], QueueReading | None],
    engines_ready: Callable[[], int],
    free_bytes: Callable[[], int | None],
) -> CollectorRegistry:
    """What a scrape shows: all processes' files, and readings of this moment.

    ``queue`` gives ``None`` while the store does not answer, ``free_bytes`` while the volume
    does not. With a store that servers share, its readings are the same on each of them.
    """
    registry = CollectorRegistry()
    if DIRECTORY_VARIABLE in os.environ:
        MultiProcessCollector(registry)
    else:
        registry.register(_Own(metrics.own))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_AtScrape(version, capacity, profile, queue, engines_ready, free_bytes))
    return registry


def prepare_directory(directory: Path) -> None:
    """Empty the directory, before the first process of this server writes there."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()


def remove_directory(directory: Path) -> None:
    """Leave nothing behind, after the last process."""
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def slot(directory: Path) -> Iterator[str]:
    """A name for this process that none alive has, the lowest number that is free.

    So that whoever replaces a killed process goes on with its files, and there are never more
    files than there were processes at once.
    """
    for number in itertools.count():
        with (directory / f"http-{number}.lock").open("wb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield f"http-{number}"
            return


def directory_for(state_dir: Path) -> Path:
    """Where the processes of the server in ``state_dir`` put their files.

    In memory where that can be: a file that is mapped kills its process when the disk is full.
    """
    memory = Path("/dev/shm")
    name = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]
    directory = memory / f"t2v-{os.geteuid()}-{name}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return state_dir / "metrics"
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return directory if ours else state_dir / "metrics"
