"""How much room the volume has, asked so that a stalled volume stalls nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from t2v_server.storage.videos import StorageError

_FRESH_SECONDS = 0.5
_PATIENCE_SECONDS = 5.0


class FreeSpace:
    """The last answer of ``ask`` (bytes), at most half a second old while the volume answers.

    An NFS mount whose server is away blocks whoever touches it, for as long as it takes: one
    thread asks, all others read what it heard.
    """

    def __init__(self, ask: Callable[[], int]) -> None:
        self._ask = ask
        self._condition = threading.Condition()
        self._asking = False
        self._asked_at = 0.0
        self._answer: int | StorageError | None = None

    def __call__(self) -> int:
        """Free bytes.

        Raises:
            StorageError: the volume cannot be used, or has not answered for five seconds.
        """
        now = time.monotonic()
        with self._condition:
            fresh = isinstance(self._answer, int) and now - self._asked_at <= _FRESH_SECONDS
            if not fresh:
                if not self._asking:
                    threading.Thread(target=self._refresh, name="t2v-space", daemon=True).start()
                    self._asking = True  # it cannot answer before this lock is free
                self._condition.wait_for(lambda: not self._asking, _PATIENCE_SECONDS)
                if self._asking:
                    raise StorageError("the volume of the videos does not answer")
            answer = self._answer
        if isinstance(answer, int):
            return answer
        raise answer or StorageError("the volume of the videos does not answer")

    def _refresh(self) -> None:
        answer: int | StorageError = StorageError("the volume of the videos does not answer")
        try:
            answer = self._ask()
        except StorageError as error:
            answer = error
        except OSError as error:
            answer = StorageError(str(error))
        with self._condition:
            self._answer, self._asked_at, self._asking = answer, time.monotonic(), False
            self._condition.notify_all()
