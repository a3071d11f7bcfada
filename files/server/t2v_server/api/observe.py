"""``/metrics``, and what every request adds to them."""

from __future__ import annotations

import time

from flask import Blueprint, Flask, Response, g, request
from prometheus_client.exposition import choose_encoder

from t2v_server.metrics import Metrics

INSTANCE_HEADER = "X-T2V-Instance"


def metrics_blueprint(metrics: Metrics) -> Blueprint:
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def scrape() -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(metrics.registry), content_type=content_type)

    return blueprint


def observe_requests(app: Flask, metrics: Metrics, instance: str) -> None:
    """Time and count every request, and say in a header which instance answered."""

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        metrics.http_in_progress.inc()

    @app.after_request
    def end(response: Response) -> Response:
        # The rule, not the path: a scanner's thousand paths must not become a thousand series.
        route = request.url_rule.rule if request.url_rule else "other"
        metrics.http_requests.labels(request.method, route, str(response.status_code)).inc()
        metrics.http_seconds.labels(route).observe(time.perf_counter() - g.started)
        response.headers[INSTANCE_HEADER] = instance
        return response

    @app.teardown_request
    def finish(_error: BaseException | None) -> None:
        metrics.http_in_progress.dec()
