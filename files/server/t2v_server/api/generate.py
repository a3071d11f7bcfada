"""``/generate``: submit a job, wait for it, answer with its file."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response, request

from t2v_server.api.answers import answer
from t2v_server.api.auth import GENERATE
from t2v_server.api.errors import ApiError
from t2v_server.api.openapi import IDEMPOTENCY_KEY, Operation, documented
from t2v_server.api.schemas import Generated
from t2v_server.api.service import Service, failure_status
from t2v_server.jobs.record import Completed, Failed, Job


def generate_blueprint(service: Service) -> Blueprint:
    blueprint = Blueprint("generate", __name__)

    @blueprint.route("/generate", methods=["GET", "POST"])
    @documented(
        Operation(
            "Make a video and wait for it",
            "Answers when the file is there. A client that goes away cancels its job.",
            scope=GENERATE,
            request=True,
            headers=[IDEMPOTENCY_KEY],
            answers={"text/plain": "text", "application/json": Generated},
            errors=(400, 404, 405, 409, 413, 414, 415, 429, 500, 503, 507),
        )
    )
    def generate() -> Response:
        if request.method == "HEAD":  # Flask adds it to GET; it must not start a generation
            raise ApiError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "method not allowed",
                headers={"Allow": "GET, POST, OPTIONS"},
            )
        response = _ended(service, service.wait_for_end(service.accept()))
        response.headers["Cache-Control"] = "no-store"
        return response

    return blueprint


def _ended(service: Service, job: Job) -> Response:
    match job.outcome:
        case Completed(file_name=file_name, num_bytes=num_bytes) as completed:
            path = service.videos.directory / file_name
            return answer(
                f"Video generated at {path}\n",
                Generated(
                    id=job.id,
                    path=str(path),
                    prompt=job.parameters.prompt,
                    seed=job.parameters.seed,
                    bytes=num_bytes,
                    seconds=round(completed.generation_seconds + completed.encoding_seconds, 3),
                ),
            )
        case Failed(reason, message) as failed:
            raise ApiError(
                failure_status(failed),
                reason.value,
                message,
                text=f"generation failed: {message}",
            )
        case None:
            raise AssertionError(f"job {job.id} has ended without an outcome")
