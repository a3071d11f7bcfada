"""The engine thread: load, warm up, then one job after the other."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from t2v_server.engine.errors import EncodingError, EngineLostError
from t2v_server.jobs.queue import JobQueue
from t2v_server.jobs.readiness import Readiness, ReadyState
from t2v_server.jobs.record import Completed, Failed, FailureReason, Job, Outcome
from t2v_server.metrics import Metrics
from t2v_server.storage.videos import StorageError, VideoStore

if TYPE_CHECKING:  # NumPy is imported by the engine thread, so that the server listens sooner
    from t2v_server.engine.encoding import Frames

log = logging.getLogger(__name__)


class Generator(Protocol):
    """What the worker needs of a loaded model."""

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    def generate(self, prompt: str, seed: int) -> Frames: ...

    def warm_up(self) -> Frames: ...


class EngineWorker:
    """Owns the model. Everything that touches it runs in this one thread."""

    def __init__(
        self,
        *,
        model: str,
        load: Callable[[], Generator],
        fps: int,
        queue: JobQueue,
        readiness: Readiness,
        store: VideoStore,
        metrics: Metrics,
        on_lost: Callable[[], None],
    ) -> None:
        """``on_lost`` is called once if the engine can never work again in this process."""
        self._model = model
        self._load = load
        self._fps = fps
        self._queue = queue
        self._readiness = readiness
        self._store = store
        self._metrics = metrics
        self._on_lost = on_lost
        self._thread = threading.Thread(target=self._run, name="t2v-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the thread to end, as it does on a closed queue."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            generator = self._load_and_warm_up()
        except Exception as error:
            log.exception("the model %s could not be loaded", self._model)
            message = f"the model {self._model} could not be loaded: {_first_line(error)}"
            self._readiness.set(ReadyState.FAILED, message)
            return
        try:
            while (job := self._queue.claim()) is not None:
                self._work(generator, job)
        except BaseException as error:
            # Whatever ends this thread: nobody may wait for it for ever.
            log.critical("the engine is lost", exc_info=True)
            self._give_up(f"the engine is lost: {_first_line(error)}")

    def _load_and_warm_up(self) -> Generator:
        started = time.monotonic()
        log.info("loading the model %s", self._model)
        generator = self._load()
        frames = generator.warm_up()
        with tempfile.TemporaryDirectory(prefix="t2v-warm-up-") as directory:
            self._encode(frames, Path(directory) / "warm-up.mp4")
        seconds = time.monotonic() - started
        self._metrics.model_load_seconds.set(seconds)
        self._metrics.model_info.labels(self._model, generator.device, generator.dtype).set(1)
        self._metrics.model_loaded.set(1)
        self._readiness.set(ReadyState.READY, "ready")
        log.info("ready after %.1f s on %s in %s", seconds, generator.device, generator.dtype)
        return generator

    def _work(self, generator: Generator, job: Job) -> None:
        """Run one job; whatever goes wrong is the job's outcome, unless the engine is lost."""
        started = time.monotonic()
        self._metrics.queue_seconds.observe(started - job.created_at)
        try:
            outcome = self._produce(generator, job)
        except EngineLostError as error:
            self._end(job, Failed(FailureReason.ENGINE_LOST, _first_line(error)))
            raise
        except EncodingError as error:
            log.exception("job %s failed", job.id)
            outcome = Failed(FailureReason.ENCODING, _first_line(error))
        except StorageError as error:
            log.exception("job %s failed", job.id)
            outcome = Failed(FailureReason.STORAGE, _first_line(error))
        except Exception as error:
            log.exception("job %s failed", job.id)
            outcome = Failed(FailureReason.GENERATION, _first_line(error))
        self._end(job, outcome)

    def _produce(self, generator: Generator, job: Job) -> Outcome:
        started = time.monotonic()
        frames = generator.generate(job.prompt, job.seed)
        generated = time.monotonic()
        self._metrics.generation_seconds.observe(generated - started)
        with self._store.writing(job.id) as part:
            self._encode(frames, part)
            num_bytes = part.stat().st_size
        ended = time.monotonic()
        self._metrics.encoding_seconds.observe(ended - generated)
        return Completed(self._store.path(job.id), num_bytes, ended - started)

    def _encode(self, frames: Frames, path: Path) -> None:
        from t2v_server.engine.encoding import encode_mp4

        encode_mp4(frames, path, self._fps)

    def _end(self, job: Job, outcome: Outcome) -> None:
        match outcome:
            case Completed(num_bytes=num_bytes, seconds=seconds):
                self._metrics.jobs.labels("completed", "ok").inc()
                self._metrics.bytes_written.inc(num_bytes)
                self._metrics.job_seconds.observe(time.monotonic() - job.created_at)
                log.info("job %s completed in %.2f s, %d bytes", job.id, seconds, num_bytes)
            case Failed(reason=reason):
                self._metrics.jobs.labels("failed", reason.value).inc()
        # Last, so that whoever reads the metrics after an answer finds the answer counted.
        self._queue.end(job, outcome)

    def _give_up(self, message: str) -> None:
        self._metrics.model_loaded.set(0)
        self._readiness.set(ReadyState.FAILED, message)
        dropped = self._queue.close(
            Failed(FailureReason.ENGINE_LOST, message), give_up_claimed=True
        )
        self._metrics.jobs.labels("failed", FailureReason.ENGINE_LOST.value).inc(dropped)
        self._on_lost()


def _first_line(error: BaseException) -> str:
    """A message fit for one line of an answer; never empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
