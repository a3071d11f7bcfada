"""Every metric of the server, named here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

# A probe takes a millisecond, a 50-step 720p clip on a small GPU three quarters of an hour.
SECONDS_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60,
    120, 300, 600, 1200, 1800, 2700, 3600,
)  # fmt: skip


class Metrics:
    """The metrics of one server process, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each counter, which nobody reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        self.http_requests = Counter(
            "t2v_http_requests_total",
            "HTTP requests answered; its rate is the QPS.",
            ["method", "route", "code"],
            registry=self.registry,
        )
        self.http_seconds = self._seconds(
            "t2v_http_request_duration_seconds", "Time to answer an HTTP request.", ["route"]
        )
        self.http_in_progress = self._gauge(
            "t2v_http_requests_in_progress", "HTTP requests being answered, waiting ones included."
        )

        self.jobs = Counter(
            "t2v_jobs_total",
            "Generation requests that ended, by outcome (completed, failed, rejected) and reason.",
            ["outcome", "reason"],
            registry=self.registry,
        )
        self.job_seconds = self._seconds(
            "t2v_job_duration_seconds", "Completed jobs: from submission to published file."
        )
        self.queue_seconds = self._seconds(
            "t2v_queue_wait_seconds", "Time a job waited before the engine took it."
        )
        self.generation_seconds = self._seconds(
            "t2v_generation_duration_seconds", "Time in the pipeline: text, denoising, VAE."
        )
        self.encoding_seconds = self._seconds(
            "t2v_encoding_duration_seconds", "Time to encode and publish the mp4."
        )
        self.bytes_written = Counter(
            "t2v_video_bytes_written_total", "Bytes of published videos.", registry=self.registry
        )

        self.queue_depth = self._gauge("t2v_queue_depth", "Jobs waiting for the engine.")
        self.queue_capacity = self._gauge("t2v_queue_capacity", "Jobs that may wait at once.")
        self.jobs_in_flight = self._gauge("t2v_jobs_in_flight", "Jobs the engine is working on.")
        self.jobs_active = self._gauge(
            "t2v_jobs_active", "Jobs waiting or in flight: what to scale on."
        )
        self.oldest_job_age = self._gauge(
            "t2v_oldest_job_age_seconds", "Age of the oldest unfinished job; 0 when there is none."
        )

        self.model_loaded = self._gauge("t2v_model_loaded", "1 once the model is loaded and warm.")
        self.model_load_seconds = self._gauge(
            "t2v_model_load_seconds", "Time from process start-up of the engine to warm."
        )
        self.model_info = Gauge(
            "t2v_model_info",
            "Always 1; the labels name the model and where it runs.",
            ["model", "device", "dtype"],
            registry=self.registry,
        )

    def _seconds(self, name: str, text: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(name, text, labels or [], buckets=SECONDS_BUCKETS, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def watch_queue(
        self,
        *,
        capacity: int,
        depth: Callable[[], int],
        in_flight: Callable[[], int],
        oldest_age: Callable[[], float],
    ) -> None:
        """Read the queue's gauges from the queue itself at every scrape."""
        self.queue_capacity.set(capacity)
        self.queue_depth.set_function(depth)
        self.jobs_in_flight.set_function(in_flight)
        self.jobs_active.set_function(lambda: depth() + in_flight())
        self.oldest_job_age.set_function(oldest_age)
