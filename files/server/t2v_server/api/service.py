"""What the handlers of requests share: accept a job, wait for it, and know when to stop."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from flask import g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest

from t2v_server.api.auth import ADMIN, GENERATE, READ, Authenticator, Client, require
from t2v_server.api.errors import ApiError
from t2v_server.api.images import IMAGE, check_image
from t2v_server.api.rates import RateLimiter
from t2v_server.api.schemas import RequestRules, Wanted
from t2v_server.jobs.readiness import EngineState, EngineStatus
from t2v_server.jobs.record import CANCELLED, Failed, Job, JobState
from t2v_server.jobs.store import (
    Admission,
    ClientLimit,
    JobStore,
    KeyConflict,
    NewJob,
    NoSpace,
    QueueFull,
    StoreUnavailable,
    Submission,
)
from t2v_server.metrics import Metrics
from t2v_server.storage.videos import DiskFull, StorageError, VideoStore

log = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down: send the request again"
_LOOK_SECONDS = 0.5  # how soon a waiting request notices that its client, or the server, goes
_STORE_PATIENCE = 30.0  # seconds that a waiting request bears a store that is away
_RETRY_WHILE_LOADING = 5  # seconds
_RETRY_ELSEWHERE = 1  # seconds; another server may answer at once
_LONGEST_KEY = 255

_NOT_READY_CODES = {
    EngineState.LOADING: "model_loading",
    EngineState.FAILED: "model_failed",
    EngineState.STOPPING: "shutting_down",
}
_RETRY_AFTER = {
    EngineState.LOADING: _RETRY_WHILE_LOADING,
    EngineState.FAILED: None,  # only a person can help
    EngineState.STOPPING: _RETRY_ELSEWHERE,
}


@dataclass
class Stopping:
    """Whether this process is to end; ``now``: without waiting for any job."""

    requested: threading.Event = field(default_factory=threading.Event)
    now: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Accepted:
    """A job, and whether it is nobody's but this request's."""

    job: Job
    alone: bool


@dataclass(frozen=True)
class Service:
    """Everything that a handler needs. ``shared``: other servers' engines take jobs as well."""

    model: str
    instance: str
    rules: RequestRules
    store: JobStore
    shared: bool
    videos: VideoStore
    free_bytes: Callable[[], int]
    engine_status: Callable[[], EngineStatus]
    authenticator: Authenticator
    authenticated: bool
    rates: RateLimiter
    metrics: Metrics
    stopping: Stopping
    waiters: threading.BoundedSemaphore
    queue_size: int
    min_free_bytes: int
    client_active: int | None
    client_daily: int | None
    expires_after: int | None
    log_prompts: bool

    # Who asks, and for what.

    def client(self, scope: str) -> Client:
        """Who sends this request, if it may do what ``scope`` names.

        Raises:
            ApiError: 401 or 403.
        """
        client = self.authenticator.client(request.headers.get("Authorization"))
        g.client = client.name
        require(client, scope)
        return client

    def owner_filter(self, client: Client) -> str | None:
        """Whose jobs the client may list; ``None``: everybody's."""
        return None if not self.authenticated or ADMIN in client.scopes else client.name

    def job_for(self, client: Client, job_id: str) -> Job:
        """The job, if there is one that the client may see.

        Raises:
            ApiError: 404, also for a job of somebody else.
        """
        job = self.store.get(job_id)
        owner = self.owner_filter(client)
        if job is None or (owner is not None and job.owner != owner):
            raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "there is no such video")
        return job

    def readable(self, job_id: str) -> Job:
        """As ``job_for``, for the client of this request."""
        return self.job_for(self.client(READ), job_id)

    # Accepting.

    @contextmanager
    def counting_rejections(self) -> Iterator[None]:
        """Count what is refused, by reason."""
        try:
            yield
        except ApiError as error:
            self.metrics.jobs.labels("rejected", error.code).inc()
            raise
        except StoreUnavailable:
            self.metrics.jobs.labels("rejected", "store_unavailable").inc()
            raise

    def accept(self) -> Accepted:
        """Validate this request and queue its job.

        Raises:
            ApiError: nothing was queued, and why.
            StoreUnavailable: the job may be queued or not: send it again with the same key.
        """
        with self.counting_rejections():
            client = self.client(GENERATE)
            fields, typed = _fields()
            image = _image()
            if image is not None:
                fields = {name: value for name, value in fields.items() if name != IMAGE}
            wanted = self.rules.read(fields, typed=typed, image=image)
            self._require_ready()
            self.rates.check(client.name or request.remote_addr or "")
            if image is not None:
                self._keep(image)
            submission = self._submit(client, wanted)
            if not submission.created and self._has_lost_its_video(submission.job):
                self.store.delete(submission.job.id)
                submission = self._submit(client, wanted)
        if not submission.created:
            self.metrics.jobs_reused.inc()
        g.job_id = submission.job.id
        extra: dict[str, object] = {"job_id": submission.job.id, "request_id": g.request_id}
        if self.log_prompts:
            extra["prompt"] = wanted.parameters.prompt
        log.info(
            "job %s %s", submission.job.id, "accepted" if submission.created else "found again",
            extra=extra,
        )  # fmt: skip
        # With a key, or when it may be shared, somebody else may come for the same job.
        alone = submission.created and not wanted.reuse and _idempotency_key() is None
        return Accepted(submission.job, alone)

    def _keep(self, image: bytes) -> None:
        """Put the image where the engines find it, whatever becomes of the job."""
        try:
            self.videos.keep_reference(image)
        except DiskFull as error:
            raise ApiError(
                HTTPStatus.INSUFFICIENT_STORAGE, "insufficient_storage", str(error)
            ) from error
        except StorageError as error:
            raise _storage_unavailable(error) from error

    def _require_ready(self) -> None:
        status = self.engine_status()
        if self.stopping.requested.is_set():
            status = EngineStatus(EngineState.STOPPING, SHUTTING_DOWN)
        if not status.ready and not (self.shared and status.state is EngineState.LOADING):
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                _NOT_READY_CODES[status.state],
                status.message,
                retry_after=_RETRY_AFTER[status.state],
            )

    def _has_lost_its_video(self, job: Job) -> bool:
        try:
            return job.state is JobState.COMPLETED and self.videos.published(job.id) is None
        except StorageError:
            return False

    def _submit(self, client: Client, wanted: Wanted) -> Submission:
        needed = wanted.parameters.video.most_bytes
        try:
            free: int | None = self.free_bytes() - self.min_free_bytes
        except StorageError as error:
            raise _storage_unavailable(error) from error
        new = NewJob(
            owner=client.name,
            model=self.model,
            parameters=wanted.parameters,
            reserve_bytes=needed,
            reuse=wanted.reuse,
            idempotency_key=_idempotency_key() or _retry_key(),
            request_digest=wanted.digest,
            request_id=g.request_id,
        )
        admission = Admission(self.queue_size, free, self.client_active, self.client_daily)
        try:
            return self.store.submit(new, admission)
        except QueueFull as error:
            # Not 503: a proxy may take that for a broken server, and bar it.
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "queue_full",
                str(error),
                retry_after=error.retry_after,
            ) from error
        except ClientLimit as error:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "client_limit",
                str(error),
                retry_after=error.retry_after,
            ) from error
        except NoSpace as error:
            raise ApiError(
                HTTPStatus.INSUFFICIENT_STORAGE, "insufficient_storage", str(error)
            ) from error
        except KeyConflict as error:
            raise ApiError(HTTPStatus.CONFLICT, "idempotency_conflict", str(error)) from error

    # Waiting and ending.

    def wait_for_end(self, accepted: Accepted) -> Job:
        """Wait until the job has ended, and return it.

        A client that goes away takes the job with it, if it is this request's alone.

        Raises:
            ApiError: the job will not be waited for here any longer, or was forgotten.
        """
        if not self.waiters.acquire(blocking=False):
            # Each waits in a thread, and some threads must be left for all else.
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_waiting",
                f"too many requests wait here: job {accepted.job.id} goes on, ask for it instead",
                retry_after=_RETRY_WHILE_LOADING,
            )
        try:
            return self._wait_for_end(accepted)
        finally:
            self.waiters.release()

    def _wait_for_end(self, accepted: Accepted) -> Job:
        job, alone = accepted.job, accepted.alone
        away_since: float | None = None
        while not job.state.ended:
            try:
                latest = self.store.wait(job.id, job.version, _LOOK_SECONDS)
                away_since = None
            except StoreUnavailable as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _STORE_PATIENCE:
                    raise ApiError(
                        HTTPStatus.SERVICE_UNAVAILABLE,
                        "store_unavailable",
                        f"job {job.id} was accepted, and {error}",
                        retry_after=_RETRY_WHILE_LOADING,
                    ) from error
                time.sleep(_LOOK_SECONDS)
                latest = job
            if latest is None:
                raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"job {job.id} was deleted")
            job = latest
            if not job.state.ended:
                self._look_around(job, alone)
        return job

    def _look_around(self, job: Job, alone: bool) -> None:
        stopping = self.stopping
        if stopping.now.is_set() or (
            # Nobody would generate it before the server is back: the client can ask elsewhere.
            stopping.requested.is_set() and not self.shared and job.state is JobState.QUEUED
        ):
            if alone:
                self.cancel(job.id)
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "shutting_down",
                SHUTTING_DOWN,
                retry_after=_RETRY_ELSEWHERE,
            )
        if client_is_gone():
            if alone:
                self.cancel(job.id)
            raise ApiError(HTTPStatus.BAD_REQUEST, "client_gone", "the client went away")

    def cancel(self, job_id: str) -> Job | None:
        """End the job, or have its engine end it."""
        before = self.store.get(job_id)
        job = self.store.cancel(job_id)
        if before is not None and before.state is JobState.QUEUED and job is not None:
            outcome = job.outcome
            if isinstance(outcome, Failed) and outcome == CANCELLED:
                self.metrics.jobs.labels("failed", outcome.reason.value).inc()
        return job


def failure_status(failed: Failed) -> HTTPStatus:
    """The status with which a request that waited hears of a failed job."""
    if failed.reason.value == "insufficient_storage":
        return HTTPStatus.INSUFFICIENT_STORAGE
    if failed.reason.value == "cancelled":
        return HTTPStatus.CONFLICT
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _fields() -> tuple[Mapping[str, object], bool]:
    """The request's parameters, and whether they have types (JSON) or are strings."""
    if request.method == "GET":
        return request.args.to_dict(), False
    if request.is_json:
        try:
            body: object = request.get_json()
        except (BadRequest, RecursionError) as error:
            raise ApiError(
                HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not valid JSON"
            ) from error
        except (OSError, ParseException) as error:
            raise _unreadable() from error
        if not isinstance(body, dict):
            raise ApiError(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not a JSON object")
        return {str(name): value for name, value in body.items()}, True
    if request.mimetype not in ("application/x-www-form-urlencoded", "multipart/form-data", ""):
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send application/json, application/x-www-form-urlencoded or multipart/form-data",
        )
    try:
        fields: dict[str, object] = dict(request.values.to_dict())
        fields |= dict.fromkeys(request.files, "")
    except (OSError, ParseException) as error:
        raise _unreadable() from error
    return fields, False


def _image() -> bytes | None:
    """The picture that the video begins with, if the form has one.

    Raises:
        ApiError: it is none.
    """
    if request.mimetype != "multipart/form-data" or IMAGE not in request.files:
        return None
    data: bytes = request.files[IMAGE].read()
    check_image(data)
    return data


def _storage_unavailable(error: StorageError) -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "storage_unavailable",
        str(error),
        retry_after=_RETRY_WHILE_LOADING,
    )


def _unreadable() -> ApiError:
    return ApiError(
        HTTPStatus.BAD_REQUEST,
        "invalid_body",
        "the body ended early or is not well formed",
        headers={"Connection": "close"},
    )


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not re.fullmatch(r"[!-~]+( +[!-~]+)*", key) or len(key) > _LONGEST_KEY:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            "invalid_parameter",
            f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters",
            param="Idempotency-Key",
        )
    return key


def _retry_key() -> str | None:
    """What the edge sends with each try of one request, when a server dies under it."""
    key = request.headers.get("X-T2V-Retry-Key", "")
    return f"retry {key}" if re.fullmatch(r"[!-~]{1,128}", key) else None


def client_is_gone() -> bool:
    """Whether the connection was closed at the other end; gunicorn hands its socket over."""
    connection = request.environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
