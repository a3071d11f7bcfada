"""An engine's sign of life for the job it works on, and the orders that come back."""

from __future__ import annotations

import logging
import threading
import time

from t2v_server.engine.errors import Stopped
from t2v_server.jobs.record import Progress
from t2v_server.jobs.store import Claim, JobStore, Order, StoreUnavailable

log = logging.getLogger(__name__)

# A store is told of progress at most this often, however fast the steps are ...
_BETWEEN_REPORTS = 0.05
# ... and asked for orders at least this often, however slow they are.
_BETWEEN_BEATS = 0.5
_BEATS_PER_LEASE = 3


class Pulse:
    """Renews the lease of ``claim`` from a thread while open, as one step may outlast a lease.

    The thread that generates never waits for the store: one that is away stops nothing, and the
    job's end will be said when it is back.
    """

    def __init__(self, store: JobStore, claim: Claim, lease: float) -> None:
        self._store = store
        self._claim = claim
        self._between = min(lease / _BEATS_PER_LEASE, _BETWEEN_BEATS)
        self._wake = threading.Event()
        self._closed = False
        self._giving_up = False
        self._progress: Progress | None = None  # not yet told
        self._order = Order.GO_ON
        self._thread = threading.Thread(target=self._run, name="t2v-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    @property
    def order(self) -> Order:
        """What was last heard."""
        return self._order

    def give_up(self) -> None:
        """Hand the job back now, not at the next step: the process may be killed before that."""
        self._giving_up = True
        self._wake.set()

    def report(self, progress: Progress) -> None:
        """Have the store told.

        Raises:
            Stopped: the job was cancelled, is somebody else's by now, or was given up here.
        """
        self._progress = progress
        self._wake.set()
        self.check()

    def fence(self) -> None:
        """Ask the store, and wait for its answer, before what cannot be taken back.

        Raises:
            Stopped: as ``report``.
        """
        self._tell(None)
        self.check()

    def check(self) -> None:
        """Raise ``Stopped`` if there is reason to."""
        if self._giving_up or self._order is not Order.GO_ON:
            raise Stopped

    def _run(self) -> None:
        while True:
            self._wake.wait(self._between)
            self._wake.clear()
            if self._giving_up:
                self._hand_back()  # without effect if the job has ended meanwhile
                return
            if self._closed:
                return
            progress, self._progress = self._progress, None
            self._tell(progress)
            time.sleep(_BETWEEN_REPORTS)

    def _tell(self, progress: Progress | None) -> None:
        try:
            order = self._store.heartbeat(self._claim, progress)
        except StoreUnavailable as error:
            log.warning("job %s: %s", self._claim.job.id, error)
            return
        if self._order is not Order.LOST:  # what is lost stays lost
            self._order = order

    def _hand_back(self) -> None:
        try:
            self._store.release(self._claim)
            log.info("job %s was handed back", self._claim.job.id)
        except StoreUnavailable as error:  # then its lease runs out
            log.warning("job %s could not be handed back: %s", self._claim.job.id, error)
