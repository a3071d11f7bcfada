"""``/healthz`` and ``/ready``: is the process alive, can it take generations."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response

from t2v_server.api.answers import answer
from t2v_server.api.openapi import Operation, documented
from t2v_server.api.schemas import ReadyObject
from t2v_server.api.service import SHUTTING_DOWN, Service
from t2v_server.jobs.readiness import EngineState, EngineStatus
from t2v_server.jobs.store import StoreUnavailable


def health_blueprint(service: Service) -> Blueprint:
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz")
    @documented(
        Operation("Whether the server answers", tag="service", answers={"text/plain": "text"})
    )
    def healthz() -> Response:
        return Response("ok", mimetype="text/plain")

    @blueprint.get("/ready")
    @documented(
        Operation(
            "Whether it can make videos",
            "200 once an engine has proven itself with a warm-up video and the job store answers.",
            tag="service",
            answers={"text/plain": "text", "application/json": ReadyObject},
            more={503: "Not now; the message says why."},
        )
    )
    def ready() -> Response:
        status = _status(service)
        return answer(
            f"{status.message}\n",
            ReadyObject(
                ready=status.ready,
                state=status.state.value,
                message=status.message,
                model=service.model,
                instance=service.instance,
            ),
            HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    return blueprint


def _status(service: Service) -> EngineStatus:
    if service.stopping.requested.is_set():
        return EngineStatus(EngineState.STOPPING, SHUTTING_DOWN)
    status = service.engine_status()
    if status.ready:
        try:
            service.store.counts()
        except StoreUnavailable as error:
            return EngineStatus(EngineState.FAILED, str(error))
    return status
