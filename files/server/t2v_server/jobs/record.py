"""One generation, from the request to its outcome."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class JobState(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class FailureReason(StrEnum):
    """Why a job failed; also the ``reason`` label of its metric."""

    GENERATION = "generation"
    ENCODING = "encoding"
    STORAGE = "storage"
    ENGINE_LOST = "engine_lost"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True)
class Completed:
    """A published video: where, how many bytes, and seconds the engine spent on it."""

    path: Path
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """Why there is no video; ``message`` is a sentence for the client."""

    reason: FailureReason
    message: str


Outcome = Completed | Failed


@dataclass(eq=False)
class Job:
    """One generation. Only the queue that made it changes it.

    ``id`` is unique, sorts by time and names the file. ``created_at`` and ``started_at`` are
    seconds of ``time.monotonic()``.
    """

    id: str
    prompt: str
    seed: int
    created_at: float
    started_at: float | None = None
    outcome: Outcome | None = None
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def state(self) -> JobState:
        match self.outcome:
            case Completed():
                return JobState.COMPLETED
            case Failed():
                return JobState.FAILED
            case None:
                return JobState.QUEUED if self.started_at is None else JobState.IN_PROGRESS

    def wait(self) -> Outcome:
        """Block until the job has ended and return how."""
        self.ended.wait()
        if self.outcome is None:
            raise RuntimeError(f"job {self.id} ended without an outcome")
        return self.outcome
