"""The one protocol through which the API and the engines share jobs.

A job is *queued* until an engine claims it, *in progress* while that engine's lease lasts, and
then ended, once and for all. A claim is fenced by its token: when a lease ran out and another
engine took over, what the first one still says of the job has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from t2v_server.jobs.record import Job, Outcome, Parameters, Progress


class StoreUnavailable(Exception):
    """The store does not answer now; the same call may succeed later."""


class QueueFull(Exception):
    """``capacity`` jobs wait already; ``retry_after`` is seconds until a place should be free."""

    def __init__(self, capacity: int, retry_after: int) -> None:
        super().__init__(f"all {capacity} places in the queue are taken")
        self.retry_after = retry_after


class ClientLimit(Exception):
    """This client has as many jobs as it may; the message says which limit.

    ``retry_after`` is seconds.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoSpace(Exception):
    """The volume has no room for this video beside those accepted before. Sizes are bytes."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(
            f"no space for this video: it may take {needed} bytes, {max(0, available)} are free"
        )


class KeyConflict(Exception):
    """The idempotency key was used before, for a different request."""


@dataclass(frozen=True)
class NewJob:
    """A validated request.

    ``reuse``: an equal job of this owner may be returned instead, if it is completed or was
    itself submitted so; the clients of such a job share it, and none of them may cancel it by
    going away.
    ``idempotency_key``: a repeated submission returns the job of the first, if the
    ``request_digest``, of what the client sent, is the same.
    ``reserve_bytes`` is set aside on the volume until the job has ended.
    """

    owner: str
    model: str
    parameters: Parameters
    reserve_bytes: int
    reuse: bool = False
    idempotency_key: str | None = None
    request_digest: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class Admission:
    """What a submission is checked against, in the same transaction that accepts it.

    ``free_bytes`` is what the volume can take for all unfinished jobs together (``None``: not
    known); ``client_active`` and ``client_daily`` bound one owner's unfinished jobs and its
    submissions in 24 hours (``None``: unbounded).
    """

    capacity: int
    free_bytes: int | None = None
    client_active: int | None = None
    client_daily: int | None = None


@dataclass(frozen=True)
class Submission:
    """``created`` is false when an earlier job answers: the same key, or reuse."""

    job: Job
    created: bool


@dataclass(frozen=True)
class Claim:
    """One engine's right to work on ``job`` until its lease runs out."""

    job: Job
    token: int


class Order(StrEnum):
    """What an engine hears when it says that it is alive."""

    GO_ON = "go_on"
    CANCEL = "cancel"  # the client wants it stopped: end it as cancelled
    LOST = "lost"  # deleted, or another engine's by now: drop it, nobody waits for a word


@dataclass(frozen=True)
class Counts:
    """The queue at one moment. ``oldest_created_at`` is Unix seconds of the oldest unfinished
    job; ``job_seconds`` is the recent mean from claim to end, ``None`` before the first."""

    queued: int
    in_progress: int
    oldest_created_at: float | None
    job_seconds: float | None


_FIRST_GUESS_SECONDS = 5.0
_LONGEST_RETRY_AFTER = 3600


def retry_after(counts: Counts) -> int:
    """Seconds until a place in the queue should be free."""
    seconds = math.ceil(counts.job_seconds or _FIRST_GUESS_SECONDS)
    return min(max(seconds, 1), _LONGEST_RETRY_AFTER)


@dataclass(frozen=True)
class Page:
    jobs: Sequence[Job]
    has_more: bool


class JobStore(Protocol):
    """Safe to use from any thread. Every method may raise ``StoreUnavailable``.

    Nothing that was answered is forgotten: a submission is on disk before it returns.
    """

    def submit(self, new: NewJob, admission: Admission) -> Submission:
        """Accept a job at the end of the queue, or return the earlier one that answers it.

        Raises:
            QueueFull, ClientLimit, NoSpace: the job was not accepted; nothing was stored.
            KeyConflict: the key belongs to a different request.
        """

    def claim(self, engine: str, wait: float) -> Claim | None:
        """Take the oldest queued job, or one whose lease ran out; wait up to ``wait`` seconds.

        Counts an attempt. The caller looks at ``attempts`` and ``cancel_requested``, as only it
        can tell whether an earlier attempt published the video.
        """

    def heartbeat(self, claim: Claim, progress: Progress | None = None) -> Order:
        """Renew the lease, note the progress if given, and hear how to go on."""

    def finish(self, claim: Claim, outcome: Outcome) -> Job | None:
        """Record how the job ended; ``None`` if it is not this claim's any more."""

    def release(self, claim: Claim) -> bool:
        """Hand an unfinished job back to the front of the queue; the attempt does not count."""

    def recover(self, engine: str) -> int:
        """Hand back what earlier processes of the same ``engine`` held; say how many jobs.

        Only for the one process that is this engine now. The attempts count.
        """

    def cancel(self, job_id: str) -> Job | None:
        """End a queued job, ask the engine to end a claimed one, leave an ended one."""

    def delete(self, job_id: str) -> Job | None:
        """Forget the job, whatever its state, and return what it was."""

    def get(self, job_id: str) -> Job | None: ...

    def list(self, owner: str | None, after: str | None, limit: int, *, newest_first: bool) -> Page:
        """A page of jobs by time; ``owner`` None: everybody's; ``after``: an id, exclusive."""

    def wait(self, job_id: str, version: int, timeout: float) -> Job | None:
        """Wait until the job's version is above ``version`` or ``timeout`` seconds have passed.

        Returns the job as it is then, ``None`` if there is none.
        """

    def counts(self) -> Counts: ...

    def ended_before(self, when: float, limit: int) -> Sequence[Job]:
        """Jobs that ended before ``when`` (Unix seconds), oldest first."""

    def close(self) -> None: ...
