"""What each engine process last said of itself, for the processes that answer requests.

An engine holds the lock ``engine-<index>.lock`` as long as it lives, which the kernel gives up
for it however it ends; so what ``engine-<index>.json`` says is true only while the lock is held.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class EngineState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True)
class EngineStatus:
    """A state and the sentence that explains it to a client.

    ``job`` is the id of the job it works on; ``since`` is Unix seconds of the state's begin.
    """

    state: EngineState
    message: str
    pid: int = 0
    job: str | None = None
    device: str | None = None
    dtype: str | None = None
    load_seconds: float | None = None
    since: float = 0.0

    @property
    def ready(self) -> bool:
        return self.state is EngineState.READY


LOADING = EngineStatus(EngineState.LOADING, "the model is still loading")


class EngineFiles:
    """The lock and the status file of engine ``index`` in ``directory``."""

    def __init__(self, directory: Path, index: int) -> None:
        self._lock = directory / f"engine-{index}.lock"
        self._status = directory / f"engine-{index}.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; wait for an earlier process of the same engine to end."""
        with self._lock.open("r+b" if self._lock.exists() else "w+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.truncate(0)
            stream.write(str(os.getpid()).encode())
            stream.flush()
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory for a while, even if a predecessor was killed in it."""
        directory = self._status.with_suffix(".tmp")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def write(self, status: EngineStatus) -> None:
        """Replace the status file, whole."""
        part = self._status.with_suffix(".part")
        part.write_text(json.dumps(asdict(status)))
        part.replace(self._status)

    def last(self) -> EngineStatus | None:
        """What was last written, whether or not its writer lives."""
        try:
            data = json.loads(self._status.read_text())
            return EngineStatus(**{**data, "state": EngineState(data["state"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def read(self) -> EngineStatus:
        """The status as it is now: that of a living engine, or that it is being started."""
        holder = self._holder()
        last = self.last()
        if holder is not None:
            # What a predecessor said does not count for the process that loads now.
            return LOADING if last is None or last.pid != holder else last
        if last is not None and last.state is EngineState.FAILED:
            return last  # it will be tried again; what failed is worth more than that
        if last is None:
            return LOADING
        return EngineStatus(EngineState.LOADING, "the engine is being started again")

    def _holder(self) -> int | None:
        """The process that holds the lock, 0 if it has not said which it is."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.read(descriptor, 20) or b"0")
        else:
            return None
        finally:
            os.close(descriptor)


def forget_statuses(directory: Path) -> None:
    """Remove what the engines of an earlier run said, before any of this one starts."""
    for path in directory.glob("engine-*.json"):
        path.unlink(missing_ok=True)


def status_of_all(directory: Path, engines: int) -> list[EngineStatus]:
    """The status of each of this server's engines."""
    return [EngineFiles(directory, index).read() for index in range(engines)]


def best_of(statuses: list[EngineStatus]) -> EngineStatus:
    """What the engines can do together: one that is ready is enough."""
    if not statuses:
        return EngineStatus(EngineState.READY, "ready", since=time.time())
    order = [EngineState.READY, EngineState.LOADING, EngineState.FAILED, EngineState.STOPPING]
    return min(statuses, key=lambda status: order.index(status.state))
