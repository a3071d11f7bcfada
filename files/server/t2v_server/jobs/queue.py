"""A bounded first-in-first-out queue of jobs, in memory, for one engine."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from t2v_server.jobs.record import Failed, Job, Outcome

_FIRST_GUESS_SECONDS = 5.0
_LONGEST_RETRY_AFTER = 3600


class QueueFull(Exception):
    """No job may wait in addition; ``retry_after`` is seconds until a place should be free."""

    def __init__(self, capacity: int, retry_after: int) -> None:
        super().__init__(f"all {capacity} places in the queue are taken")
        self.retry_after = retry_after


class QueueClosed(Exception):
    """The queue takes no more jobs; the message says why."""


class JobQueue:
    """Jobs wait here; one engine claims them in order and says how each ended.

    Safe to use from any thread. ``capacity`` bounds the waiting jobs, not the claimed one.
    """

    def __init__(self, capacity: int, new_id: Callable[[], str]) -> None:
        self.capacity = capacity
        self._new_id = new_id
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._claimed: list[Job] = []
        self._closed: Failed | None = None
        self._last_seconds = _FIRST_GUESS_SECONDS

    def submit(self, prompt: str, seed: int) -> Job:
        """Put a new job at the end of the queue.

        Raises:
            QueueFull: when ``capacity`` jobs wait already.
            QueueClosed: after ``close``.
        """
        with self._changed:
            if self._closed is not None:
                raise QueueClosed(self._closed.message)
            if len(self._waiting) >= self.capacity:
                raise QueueFull(self.capacity, self._retry_after())
            # The id is taken under the lock, so that file names sort as jobs were accepted.
            job = Job(self._new_id(), prompt, seed, created_at=time.monotonic())
            self._waiting.append(job)
            self._changed.notify()
        return job

    def claim(self) -> Job | None:
        """Take the oldest waiting job, blocking for one; ``None`` once the queue is closed."""
        with self._changed:
            while not self._waiting:
                if self._closed is not None:
                    return None
                self._changed.wait()
            job = self._waiting.popleft()
            job.started_at = time.monotonic()
            self._claimed.append(job)
            return job

    def end(self, job: Job, outcome: Outcome) -> bool:
        """Record how a claimed job ended; ``False`` if it had been given up already."""
        with self._changed:
            if job not in self._claimed:
                return False
            self._claimed.remove(job)
            if job.started_at is not None:
                self._last_seconds = time.monotonic() - job.started_at
            _settle(job, outcome)
            return True

    def close(self, failure: Failed, *, give_up_claimed: bool = False) -> int:
        """Take no more jobs and fail those that wait; say how many failed.

        The claimed job may end by itself unless ``give_up_claimed``. Closing twice is fine;
        the first failure is the one that later callers are told.
        """
        with self._changed:
            self._closed = self._closed or failure
            dropped = list(self._waiting)
            self._waiting.clear()
            if give_up_claimed:
                dropped += self._claimed
                self._claimed.clear()
            for job in dropped:
                _settle(job, failure)
            self._changed.notify_all()
            return len(dropped)

    def depth(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return len(self._waiting)

    def in_flight(self) -> int:
        """Jobs that an engine has claimed and not ended."""
        with self._changed:
            return len(self._claimed)

    def oldest_age(self) -> float:
        """Seconds since the oldest unfinished job was submitted; 0 if there is none."""
        with self._changed:
            oldest = min((job.created_at for job in (*self._claimed, *self._waiting)), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def _retry_after(self) -> int:
        # A place comes free when the running job ends, so one job's time is a fair guess.
        return min(max(1, math.ceil(self._last_seconds)), _LONGEST_RETRY_AFTER)


def _settle(job: Job, outcome: Outcome) -> None:
    job.outcome = outcome
    job.ended.set()
