"""What the site's Prometheus recorded meanwhile."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from t2v_loadtest.settings import Settings

JOB = 'job="wan22-service"'
API = 'route=~"/v1/videos(/<video_id>(/cancel)?)?"'


@dataclass(frozen=True)
class Question:
    """A plot's curve. ``$w`` in ``expr`` is the time over which rates are taken."""

    plot: str
    legend: str
    expr: str


QUESTIONS = (
    Question("queue", "waiting", f"max(t2v_queue_depth{{{JOB}}})"),
    Question("queue", "in flight", f"max(t2v_jobs_in_flight{{{JOB}}})"),
    Question("queue", "room", f"max(t2v_queue_capacity{{{JOB}}})"),
    Question("replicas", "servers up", f"sum(up{{{JOB}}})"),
    Question("replicas", "engines ready", f"sum(t2v_engines_ready{{{JOB}}})"),
    Question(
        "replicas",
        "wanted by the autoscaler",
        'max(kube_horizontalpodautoscaler_status_desired_replicas{horizontalpodautoscaler=~".*wan22.*"})',
    ),
    Question("answers", "{{code}}", f"sum by (code) (rate(t2v_http_requests_total{{{JOB}}}[$w]))"),
    Question(
        "latency",
        "submit, poll, cancel: p95",
        "histogram_quantile(0.95, sum by (le) ("
        f"rate(t2v_http_request_duration_seconds_bucket{{{JOB}, {API}}}[$w])))",
    ),
    Question(
        "latency",
        "/generate: p95",
        "histogram_quantile(0.95, sum by (le) ("
        f'rate(t2v_http_request_duration_seconds_bucket{{{JOB}, route="/generate"}}[$w])))',
    ),
    Question(
        "latency",
        "wait in the queue: p95",
        f"histogram_quantile(0.95, sum by (le) (rate(t2v_queue_wait_seconds_bucket{{{JOB}}}[$w])))",
    ),
    Question(
        "processors",
        "CPU {{instance}}",
        "100 * (1 - avg by (instance) (rate("
        'node_cpu_seconds_total{job=~"node|kubernetes-nodes", mode="idle", instance=~"$hosts"}'
        "[$w])))",
    ),
    Question("processors", "GPU {{instance}} {{gpu}}", 'DCGM_FI_DEV_GPU_UTIL{job="dcgm"}'),
)


@dataclass
class Recorded:
    """Curves by plot and legend; ``fault``: why there are none."""

    curves: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    step: float = 0.0
    fault: str = ""


class PrometheusError(Exception):
    """It did not answer as it should."""


class Prometheus:
    """One Prometheus."""

    def __init__(self, settings: Settings) -> None:
        """Ask nothing yet."""
        self._url = settings.prometheus.rstrip("/")
        self._headers = {}
        if settings.prometheus_user:
            login = f"{settings.prometheus_user}:{settings.prometheus_password}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        self._context = (
            ssl.create_default_context(cafile=settings.prometheus_ca)
            if settings.prometheus_ca
            else None
        )

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The ``data`` of an answer. Raises PrometheusError."""
        body = urllib.parse.urlencode(parameters).encode() or None
        request = urllib.request.Request(f"{self._url}/api/v1/{path}", body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:
                return json.load(answer)["data"]
        except (OSError, ValueError, KeyError) as error:
            raise PrometheusError(f"{self._url} does not answer as it should: {error}") from error

    def interval(self) -> float:
        """How often the service is scraped, in seconds; 15 where it does not say."""
        active = self.ask("targets?state=active")["activeTargets"]
        found = [
            _seconds(one.get("scrapeInterval", "15s"))
            for one in active
            if one["labels"].get("job") == "wan22-service"
        ]
        return max(found, default=15.0)

    def value(self, expr: str) -> list[dict[str, Any]]:
        """An instant query's result."""
        result = self.ask("query", query=expr)["result"]
        assert isinstance(result, list)
        return result


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number = text.rstrip("hms")
    try:
        return float(number) * units[text[len(number) :]]
    except (KeyError, ValueError):
        return 15.0


def legend(pattern: str, labels: dict[str, str]) -> str:
    """A curve's name, its labels filled in."""
    for name, value in labels.items():
        pattern = pattern.replace("{{" + name + "}}", value)
    return pattern.replace("{{gpu}}", "").strip()


def record(settings: Settings, began: float, ended: float, hosts: list[str]) -> Recorded:
    """All questions, over the test's time."""
    if not settings.prometheus:
        return Recorded(fault="t2v_monitoring is false: nothing was recorded")
    prometheus = Prometheus(settings)
    try:
        interval = prometheus.interval()
        recorded = Recorded(step=max(interval, (ended - began) / 240))
        window = f"{max(4 * interval, 2 * recorded.step):.0f}s"
        for one in QUESTIONS:
            expr = one.expr.replace("$w", window).replace("$hosts", "|".join(hosts))
            answer = prometheus.ask(
                "query_range", query=expr, start=began, end=ended, step=recorded.step
            )
            for series in answer["result"]:
                points = [
                    (float(at), float(value)) for at, value in series["values"] if value != "NaN"
                ]
                if points:
                    name = legend(one.legend, series["metric"])
                    recorded.curves.setdefault(one.plot, {})[name] = points
    except PrometheusError as error:
        return Recorded(fault=str(error))
    return recorded


def pause(settings: Settings) -> float:
    """Seconds until the end has been scraped."""
    try:
        return Prometheus(settings).interval() + 1
    except PrometheusError:
        return 0.0
