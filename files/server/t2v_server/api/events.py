"""``/v1/videos/{id}/events``: a job's progress as server-sent events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

from flask import Blueprint, Response, request, stream_with_context

from t2v_server.api.auth import READ
from t2v_server.api.errors import ApiError
from t2v_server.api.openapi import Operation, documented
from t2v_server.api.schemas import video_object
from t2v_server.api.service import Service, client_is_gone
from t2v_server.jobs.record import Job
from t2v_server.jobs.store import StoreUnavailable

_LOOK_SECONDS = 0.5  # how soon a stream notices that the server stops
_SILENCE_SECONDS = 10.0  # proxies cut connections that say nothing
_RETRY_MS = 1000  # when a client's EventSource should come back
_RETRY_WHEN_FULL = 5  # seconds


def events_blueprint(service: Service, max_streams: int) -> Blueprint:
    blueprint = Blueprint("events", __name__)
    places = threading.BoundedSemaphore(max_streams)

    @blueprint.get("/v1/videos/<video_id>/events")
    @documented(
        Operation(
            "Watch a job",
            "Server-sent events: `video` with the job at each change, and `end` with its last "
            "state. The stream also ends when the server stops: then connect again.",
            scope=READ,
            answers={"text/event-stream": "text"},
            more={204: "The job has ended, and the client has heard of it."},
            errors=(404, 503),
        )
    )
    def watch_video(video_id: str) -> Response:
        job = service.readable(video_id)
        if job.state.ended and request.headers.get("Last-Event-ID") == str(job.version):
            return Response(status=HTTPStatus.NO_CONTENT)  # an EventSource then stays away
        if not places.acquire(blocking=False):
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_streams",
                f"all {max_streams} event streams are in use: ask for the video instead",
                retry_after=_RETRY_WHEN_FULL,
            )
        service.metrics.event_streams.inc()
        response = Response(
            stream_with_context(_events(service, job)), mimetype="text/event-stream"
        )
        # Also when the client is gone before the first event.
        response.call_on_close(places.release)
        response.call_on_close(service.metrics.event_streams.dec)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
        return response

    return blueprint


def _events(service: Service, job: Job) -> Iterator[str]:
    yield f"retry: {_RETRY_MS}\n\n"
    yield _event(service, job)
    said_at = time.monotonic()
    while not job.state.ended and not service.stopping.requested.is_set():
        try:
            latest = service.store.wait(job.id, job.version, _LOOK_SECONDS)
        except StoreUnavailable:
            return  # the client comes back and asks again
        if latest is None or client_is_gone():
            return
        if latest.version != job.version:
            job = latest
            yield _event(service, job)
            said_at = time.monotonic()
        elif time.monotonic() - said_at > _SILENCE_SECONDS:
            yield ": still here\n\n"
            said_at = time.monotonic()


def _event(service: Service, job: Job) -> str:
    name = "end" if job.state.ended else "video"
    data = video_object(job, service.expires_after).model_dump_json()
    return f"event: {name}\nid: {job.version}\ndata: {data}\n\n"
