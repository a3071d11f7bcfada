"""Whether generations can be taken: written by the engine, read by the API."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum


class ReadyState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Status:
    """A state and the sentence that explains it to a client."""

    state: ReadyState
    message: str

    @property
    def ready(self) -> bool:
        return self.state is ReadyState.READY


class Readiness:
    """The current status. Safe to use from any thread; once stopping, always stopping."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status = Status(ReadyState.LOADING, "the model is still loading")

    @property
    def status(self) -> Status:
        return self._status

    def set(self, state: ReadyState, message: str) -> None:
        with self._lock:
            if self._status.state is not ReadyState.STOPPING:
                self._status = Status(state, message)
