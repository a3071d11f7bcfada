"""``/healthz`` and ``/ready``: is the process alive, can it generate."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response

from t2v_server.api.answers import answer
from t2v_server.jobs.readiness import Readiness


def health_blueprint(readiness: Readiness, model: str, instance: str) -> Blueprint:
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    def healthz() -> Response:
        return Response("ok", mimetype="text/plain")

    @blueprint.get("/ready")
    def ready() -> Response:
        status = readiness.status
        return answer(
            f"{status.message}\n",
            {
                "ready": status.ready,
                "state": status.state.value,
                "message": status.message,
                "model": model,
                "instance": instance,
            },
            HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    return blueprint
