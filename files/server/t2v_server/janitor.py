"""Removes what has had its time: old jobs, their videos, abandoned temporary files."""

from __future__ import annotations

import logging
import threading
import time

from t2v_server.config import RetentionSettings
from t2v_server.jobs.store import JobStore, StoreUnavailable
from t2v_server.metrics import Metrics
from t2v_server.storage.retention import expired_names, surplus_names
from t2v_server.storage.videos import StorageError, VideoStore

log = logging.getLogger(__name__)

_BETWEEN_SECONDS = 60.0
_SHORTEST_SECONDS = 1.0
_BATCH = 500

# An image that videos begin with is kept so long after it was last given: longer than any job
# waits, as it may be several jobs' and no job says that it needs it no more.
_REFERENCE_SECONDS = 7 * 86_400.0


class Janitor:
    """One look a minute, in a thread; several servers on one directory do no harm."""

    def __init__(
        self,
        store: JobStore,
        videos: VideoStore,
        retention: RetentionSettings,
        sweep_age: float,
        metrics: Metrics,
        *,
        shared: bool,
    ) -> None:
        """``shared``: the store knows the jobs of every server on the directory."""
        self._store = store
        self._shared = shared
        self._videos = videos
        self._retention = retention
        self._sweep_age = sweep_age
        self._metrics = metrics

    def start(self) -> None:
        threading.Thread(target=self._run, name="t2v-janitor", daemon=True).start()

    def clean(self) -> int:
        """Look once; say how many bytes came free.

        Raises:
            StoreUnavailable, StorageError: what is left is for the next look.
        """
        freed = 0
        if self._retention.max_age is not None:
            before = time.time() - self._retention.max_age
            for job in self._store.ended_before(before, _BATCH):
                freed += self._remove(job.id)
        # Files that no job knows of expire as well.
        for name in expired_names(self._videos, self._retention.max_age):
            if self._may_go(name, unknown=True):
                freed += self._remove(name)
        for name in surplus_names(self._videos, self._retention.max_bytes):
            # With a store of its own, this server cannot tell an orphan from another's video.
            if self._may_go(name, unknown=self._shared):
                freed += self._remove(name)
        self._metrics.bytes_expired.inc(freed)
        return freed

    def _may_go(self, name: str, *, unknown: bool) -> bool:
        job = self._store.get(name)
        return unknown if job is None else job.state.ended

    def _remove(self, name: str) -> int:
        """Files first: what cannot be removed now keeps its job, and is tried again."""
        try:
            freed = self._videos.delete(name)
        except StorageError as error:
            log.warning("retention: %s", error)
            return 0
        self._store.delete(name)
        return freed

    def _run(self) -> None:
        between = _BETWEEN_SECONDS
        if self._retention.max_age is not None:
            between = min(between, max(_SHORTEST_SECONDS, self._retention.max_age / 4))
        while True:
            try:
                self._videos.sweep_abandoned(self._sweep_age)
                self._videos.sweep_references(max(self._sweep_age, _REFERENCE_SECONDS))
                freed = self.clean()
                if freed:
                    log.info("retention: %d bytes came free", freed)
            except (StoreUnavailable, StorageError) as error:
                log.warning("retention: %s", error)
            except Exception:
                log.exception("retention")
            time.sleep(between)
