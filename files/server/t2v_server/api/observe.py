"""``/metrics``, and what every request adds to them and to the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from http import HTTPStatus
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from werkzeug.exceptions import HTTPException

from t2v_server.api.answers import problem, wants_json
from t2v_server.api.errors import ApiError
from t2v_server.api.openapi import Operation, documented
from t2v_server.jobs.store import StoreUnavailable
from t2v_server.metrics import Metrics

log = logging.getLogger("t2v_server.access")

INSTANCE_HEADER = "X-T2V-Instance"
REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Of what Flask itself refuses; its own names change with Python's versions.
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    500: "internal_error",
}
_QUIET = {"/healthz", "/ready", "/metrics"}  # asked all day long
_RETRY_AFTER_STORE = 2  # seconds


def metrics_blueprint(registry: CollectorRegistry) -> Blueprint:
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    @documented(Operation("Prometheus metrics", tag="service", answers={"text/plain": "text"}))
    def scrape() -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    return blueprint


def refuse_other_sites(app: Flask) -> None:
    """Refuse what a page of another site makes a browser send, while nobody needs a token.

    Whoever browses the web near such a server could otherwise be made to use it.
    """

    @app.before_request
    def look_at_the_origin() -> None:
        if not request.path.startswith(("/generate", "/v1/")):
            return
        site = request.headers.get("Sec-Fetch-Site", "none")
        origin = urlsplit(request.headers.get("Origin", "")).hostname
        here = urlsplit(f"//{request.host}").hostname
        if site in ("cross-site", "same-site") or (origin is not None and origin != here):
            raise ApiError(
                HTTPStatus.FORBIDDEN, "cross_site", "pages of other sites may not use this server"
            )


def observe_requests(app: Flask, metrics: Metrics, instance: str) -> None:
    """Give every request an id, count and log it, and say which instance answered."""

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        given = request.headers.get(REQUEST_ID_HEADER, "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        metrics.http_in_progress.inc()

    @app.after_request
    def end(response: Response) -> Response:
        # The rule, not the path: a scanner's thousand paths must not become a thousand series.
        route = request.url_rule.rule if request.url_rule else "other"
        seconds = time.perf_counter() - g.started
        method = request.method if request.method in _METHODS else "other"
        metrics.http_requests.labels(method, route, str(response.status_code)).inc()
        metrics.http_seconds.labels(route).observe(seconds)
        response.headers[INSTANCE_HEADER] = instance
        response.headers[REQUEST_ID_HEADER] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        # The path without its query: prompts are the clients' own business.
        path = request.path.encode("ascii", "backslashreplace").decode()[:200]
        extra = {
            "request_id": g.request_id,
            "client": g.get("client") or request.remote_addr or "",
            "method": request.method,
            "path": path,
            "status": response.status_code,
            "seconds": round(seconds, 4),
        }
        if "job_id" in g:
            extra["job_id"] = g.job_id
        log.log(
            logging.DEBUG if request.path in _QUIET else logging.INFO,
            "%s %s %s %d %.0f ms", extra["client"], request.method, path.translate(_ESCAPED),
            response.status_code, seconds * 1000, extra=extra,
        )  # fmt: skip
        return response

    @app.teardown_request
    def finish(_error: BaseException | None) -> None:
        if "started" in g:
            metrics.http_in_progress.dec()


# A path may hold line breaks once it is decoded; a line of the log may not.
_ESCAPED = {number: f"\\x{number:02x}" for number in (*range(32), 127)}


def answer_errors(app: Flask) -> None:
    """Answer every error in the one shape: JSON, or a line of text beside ``/v1``."""

    def answered(error: ApiError) -> Response:
        return problem(error, as_text=not request.path.startswith("/v1/") and not wants_json())

    @app.errorhandler(ApiError)
    def api_error(error: ApiError) -> Response:
        return answered(error)

    @app.errorhandler(StoreUnavailable)
    def store_away(error: StoreUnavailable) -> Response:
        logging.getLogger(__name__).warning("%s", error)
        return answered(
            ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "store_unavailable",
                str(error),
                retry_after=_RETRY_AFTER_STORE,
            )
        )

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
        headers = {
            name: value
            for name, value in error.get_headers()
            if name in ("Allow", "Content-Range", "Location")
        }
        return answered(
            ApiError(
                status,
                _CODES.get(status, f"http_{status.value}"),
                status.phrase.lower(),
                headers=headers,
            )
        )
