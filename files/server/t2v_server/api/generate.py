"""``/generate``: submit a job, wait for it, answer with its file."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response, request

from t2v_server.api.answers import answer, problem
from t2v_server.api.schemas import GenerationRequest, InvalidRequest, parse_generation_request
from t2v_server.jobs.queue import JobQueue, QueueClosed, QueueFull
from t2v_server.jobs.readiness import Readiness, ReadyState
from t2v_server.jobs.record import Completed, Failed, FailureReason, Job
from t2v_server.metrics import Metrics

_RETRY_WHILE_LOADING = 5  # seconds
_RETRY_ELSEWHERE = 1  # seconds; another server may answer at once


def generate_blueprint(
    queue: JobQueue, readiness: Readiness, metrics: Metrics, max_prompt_chars: int
) -> Blueprint:
    blueprint = Blueprint("generate", __name__)

    @blueprint.route("/generate", methods=["GET", "POST"])
    def generate() -> Response:
        if request.method == "HEAD":  # Flask adds it to GET; it must not start a generation
            response = problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "use GET")
            response.headers["Allow"] = "GET, POST, OPTIONS"
            return response
        response = _submit_and_wait()
        response.headers["Cache-Control"] = "no-store"
        return response

    def _submit_and_wait() -> Response:
        try:
            wanted = parse_generation_request(request, max_prompt_chars)
        except InvalidRequest as error:
            return rejected(HTTPStatus.BAD_REQUEST, error.code, error.message)
        status = readiness.status
        if not status.ready:
            return rejected(
                HTTPStatus.SERVICE_UNAVAILABLE,
                _NOT_READY_CODES[status.state],
                status.message,
                _RETRY_AFTER[status.state],
            )
        try:
            job = queue.submit(wanted.prompt, wanted.seed)
        except QueueFull as error:
            # Not 503: a proxy may take that for a broken server, and bar it.
            return rejected(
                HTTPStatus.TOO_MANY_REQUESTS, "queue_full", str(error), error.retry_after
            )
        except QueueClosed as error:
            return rejected(
                HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down", str(error), _RETRY_ELSEWHERE
            )
        return _ended(job, wanted)

    def rejected(
        status: HTTPStatus, code: str, message: str, retry_after: int | None = None
    ) -> Response:
        metrics.jobs.labels("rejected", code).inc()
        return problem(status, code, message, retry_after=retry_after)

    return blueprint


_NOT_READY_CODES = {
    ReadyState.LOADING: "model_loading",
    ReadyState.FAILED: "model_failed",
    ReadyState.STOPPING: "shutting_down",
}
_RETRY_AFTER = {
    ReadyState.LOADING: _RETRY_WHILE_LOADING,
    ReadyState.FAILED: None,  # only a person can help
    ReadyState.STOPPING: _RETRY_ELSEWHERE,
}


def _ended(job: Job, wanted: GenerationRequest) -> Response:
    match job.wait():
        case Completed(path, num_bytes, seconds):
            return answer(
                f"Video generated at {path}\n",
                {
                    "id": job.id,
                    "path": str(path),
                    "prompt": wanted.prompt,
                    "seed": wanted.seed,
                    "bytes": num_bytes,
                    "seconds": round(seconds, 3),
                },
            )
        case Failed(FailureReason.SHUTTING_DOWN, message):
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "shutting_down",
                message,
                retry_after=_RETRY_ELSEWHERE,
            )
        case Failed(reason, message):
            return problem(
                HTTPStatus.INTERNAL_SERVER_ERROR, reason.value, f"generation failed: {message}"
            )
