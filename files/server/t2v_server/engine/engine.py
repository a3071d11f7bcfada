"""One engine: load the model, then generate one job after the other."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Generator as Stream
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from t2v_server import __version__
from t2v_server.engine.errors import (
    EncodingError,
    EngineLostError,
    OutOfMemory,
    Stopped,
)
from t2v_server.engine.pulse import Pulse
from t2v_server.jobs.readiness import LOADING, EngineFiles, EngineState
from t2v_server.jobs.record import (
    CANCELLED,
    PERCENT_BEFORE,
    Completed,
    Failed,
    FailureReason,
    Job,
    Outcome,
    Parameters,
    Progress,
    Stage,
)
from t2v_server.jobs.store import Claim, JobStore, Order, StoreUnavailable
from t2v_server.metrics import Metrics
from t2v_server.profiles import VideoParameters
from t2v_server.storage.videos import DiskFull, Draft, Published, StorageError, VideoStore

if TYPE_CHECKING:  # NumPy and PyTorch are imported by ``load``, seconds after the first status
    from t2v_server.engine.encoding import Frames

log = logging.getLogger(__name__)

# Exit statuses, as of sysexits.h.
EXIT_STOPPED = 0
EXIT_AGAIN = 75  # this process can do no more, another one can
EXIT_UNUSABLE = 78  # the model cannot be loaded

_LOOK_SECONDS = 0.5  # between looks whether to stop
_STORE_AWAY_SECONDS = 0.5
_LAST_WORD_SECONDS = 10.0  # that a stopping engine tries to reach a store that is away


class Generator(Protocol):
    """What an engine needs of a loaded model."""

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    def stream(
        self, parameters: Parameters, watch: Callable[[Progress], None], image: Path | None
    ) -> Iterator[Frames]: ...

    def warm_up(self, video: VideoParameters) -> Iterator[Frames]: ...

    def stage_seconds(self) -> Mapping[str, float]: ...

    def begin_memory_peak(self) -> None: ...

    def peak_memory_bytes(self) -> int: ...


@dataclass(frozen=True)
class EngineSite:
    """Where an engine stands: its name among all that share the store, and what it uses.

    ``lease`` is seconds; ``warm_up`` is the clip that proves the model; ``encoder`` is one of
    ffmpeg's, or ``auto``.
    """

    name: str
    model: str
    profile: str
    warm_up: VideoParameters
    encoder: str
    max_attempts: int
    lease: float
    store: JobStore
    videos: VideoStore
    files: EngineFiles
    metrics: Metrics


class Engine:
    """Not for more than one thread, but ``stop`` may be called from a signal's handler."""

    def __init__(self, site: EngineSite, load: Callable[[], Generator]) -> None:
        self._site = site
        self._load = load
        self._store = site.store
        self._stopping = False
        self._stopping_now = False
        self._loading = True
        self._unsaid = False
        self._pulse: Pulse | None = None
        self._status = LOADING

    @property
    def loading(self) -> bool:
        """Whether there is no job yet that ``stop`` could spare."""
        return self._loading

    def stop(self, *, now: bool = False) -> None:
        """Take no more jobs; ``now``: hand back the running one too."""
        self._stopping = True
        self._stopping_now = self._stopping_now or now
        if now and self._pulse is not None:
            self._pulse.give_up()

    def run(self) -> int:
        """Work until told to stop; returns the exit status of the process."""
        self._begin()
        handed_back = self._hand_back_what_was_held()
        try:
            generator = self._load_and_warm_up()
        except Exception as error:
            log.exception("the model %s could not be loaded", self._site.model)
            message = f"the model {self._site.model} could not be loaded: {_first_line(error)}"
            self._say(EngineState.FAILED, message)
            return EXIT_UNUSABLE
        self._loading = False
        while not self._stopping:
            if self._unsaid:
                self._say_again()
            if not handed_back:
                handed_back = self._hand_back_what_was_held()
            try:
                claim = self._store.claim(self._site.name, _LOOK_SECONDS)
            except StoreUnavailable as error:
                log.warning("%s", error)
                time.sleep(_STORE_AWAY_SECONDS)
                continue
            if claim is None:
                continue
            if self._stopping:
                self._release(claim)
                break
            try:
                self._work(generator, claim)
            except (EngineLostError, OutOfMemory) as error:
                # Memory that was not given back would fail the next job too.
                log.critical("this engine ends, another begins: %s", error)
                self._say(EngineState.LOADING, "the engine is being started again")
                return EXIT_AGAIN
        self._say(EngineState.STOPPING, "the server is shutting down: send the request again")
        return EXIT_STOPPED

    def _begin(self) -> None:
        """Say that this engine loads."""
        before = self._site.files.last()
        self._site.metrics.engine_starts.inc()
        self._site.metrics.engine_busy.set(0)
        if before is not None and before.state is EngineState.FAILED:
            # A reason to look at is worth more than that it is tried again.
            self._say(EngineState.FAILED, before.message)
        else:
            self._say(EngineState.LOADING, LOADING.message)

    def _hand_back_what_was_held(self) -> bool:
        """Whether the store heard that a predecessor's jobs are nobody's now."""
        try:
            count = self._store.recover(self._site.name)
        except StoreUnavailable as error:
            log.warning("%s", error)
            time.sleep(_STORE_AWAY_SECONDS)
            return False
        if count:
            log.warning("handed back %d jobs of a lost predecessor", count)
        return True

    def _load_and_warm_up(self) -> Generator:
        started = time.monotonic()
        log.info("loading the model %s", self._site.model)
        generator = self._load()
        with self._site.files.scratch() as directory:
            draft = Draft(directory / "video.mp4", directory / "thumbnail.jpg")
            self._encode(generator.warm_up(self._site.warm_up), draft, self._site.warm_up)
        seconds = time.monotonic() - started
        self._site.metrics.model_load_seconds.set(seconds)
        self._site.metrics.model_info.labels(
            self._site.model, generator.device, generator.dtype, self._site.profile
        ).set(1)
        self._status = replace(
            self._status, device=generator.device, dtype=generator.dtype, load_seconds=seconds
        )
        self._say(EngineState.READY, "ready")
        log.info("ready after %.1f s on %s in %s", seconds, generator.device, generator.dtype)
        return generator

    def _work(self, generator: Generator, claim: Claim) -> None:
        """Bring one job to its end, or hand it back; raises what ends this engine."""
        job = claim.job
        self._site.metrics.queue_seconds.observe(max(0.0, time.time() - job.created_at))
        if job.attempts > 1:
            self._site.metrics.job_retries.inc()
        self._site.metrics.engine_busy.set(1)
        self._say(EngineState.READY, "ready", job.id)
        try:
            with Pulse(self._store, claim, self._site.lease) as pulse:
                self._pulse = pulse
                if self._stopping_now:  # said before there was a pulse to stop
                    pulse.give_up()
                self._produce_and_end(generator, claim, pulse)
        finally:
            self._pulse = None
            self._site.metrics.engine_busy.set(0)
            self._say(EngineState.READY, "ready")

    def _produce_and_end(self, generator: Generator, claim: Claim, pulse: Pulse) -> None:
        job = claim.job
        try:
            outcome = self._settled(job) or self._produce(generator, job, pulse)
        except Stopped:
            if pulse.order is Order.CANCEL:
                self._end(claim, CANCELLED)
            elif pulse.order is Order.LOST:
                log.warning("job %s was deleted, or taken over by another engine", job.id)
            return
        except OutOfMemory as error:
            self._end(claim, self._failed(job, FailureReason.OUT_OF_MEMORY, error))
            raise
        except EngineLostError:
            raise  # not this job's fault, perhaps: another engine takes it, up to the cap
        except DiskFull as error:
            outcome = self._failed(job, FailureReason.INSUFFICIENT_STORAGE, error)
        except EncodingError as error:
            outcome = self._failed(job, FailureReason.ENCODING, error)
        except StorageError as error:
            outcome = self._failed(job, FailureReason.STORAGE, error)
        except Exception as error:
            outcome = self._failed(job, FailureReason.GENERATION, error)
        self._end(claim, outcome)

    def _settled(self, job: Job) -> Outcome | None:
        """How the job ends without any more work, if it does."""
        published = self._site.videos.published(job.id)
        if published is not None:
            log.info("job %s: an earlier attempt had published it", job.id)
            return _completed(published)
        if job.cancel_requested:
            return CANCELLED
        if job.attempts > self._site.max_attempts:
            message = f"{job.attempts - 1} engines were lost while they worked on it"
            return Failed(FailureReason.ENGINE_LOST, message)
        if job.model != self._site.model:
            message = f"it was accepted for {job.model}, and this server runs {self._site.model}"
            return Failed(FailureReason.GENERATION, message)
        return None

    def _produce(self, generator: Generator, job: Job, pulse: Pulse) -> Outcome:
        started = time.monotonic()
        generator.begin_memory_peak()
        image = None
        if job.parameters.image is not None:
            image = self._site.videos.reference(job.parameters.image)
        with self._site.videos.draft(job.id) as draft:
            stream = _Timed(generator.stream(job.parameters, pulse.report, image))
            with self._site.videos.full_disk_named():
                # Frames are encoded while the next ones are decoded, and the rest at the end.
                self._encode(stream.told(pulse.report), draft, job.parameters.video)
            generated, encoded = stream.ended_at, time.monotonic()
            pulse.fence()
            published = self._site.videos.publish(
                job.id,
                draft,
                _metadata(
                    job,
                    generator,
                    self._site.profile,
                    {
                        "queue_seconds": round((job.started_at or 0) - job.created_at, 3),
                        "generation_seconds": round(generated - started, 3),
                        "encoding_seconds": round(encoded - generated, 3),
                    },
                ),
            )
        for stage, seconds in generator.stage_seconds().items():
            self._site.metrics.stage_seconds.labels(stage).observe(seconds)
        self._site.metrics.generation_seconds.observe(generated - started)
        self._site.metrics.encoding_seconds.observe(time.monotonic() - generated)
        return _completed(published)

    def _encode(self, frames: Iterator[Frames], draft: Draft, video: VideoParameters) -> None:
        from t2v_server.engine.encoding import choose_encoder, encode_clip

        encoder = choose_encoder(self._site.encoder)
        try:
            encode_clip(frames, video.num_frames, draft.video, draft.thumbnail, video.fps, encoder)
        finally:
            # So that what the generator holds is free before anything else happens.
            if isinstance(frames, Stream):
                frames.close()

    def _failed(self, job: Job, reason: FailureReason, error: Exception) -> Failed:
        log.error("job %s failed: %s", job.id, reason, exc_info=error, extra=_about(job))
        return Failed(reason, _first_line(error))

    def _end(self, claim: Claim, outcome: Outcome) -> None:
        """Say how the job ended until the store has heard it."""
        job = claim.job
        stopping_since: float | None = None
        while True:
            if self._stopping:
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > _LAST_WORD_SECONDS:
                    # Its lease runs out, and whoever takes it finds the video if there is one.
                    log.error("job %s has ended, and the store never heard of it", job.id)
                    return
            try:
                ended = self._store.finish(claim, outcome)
                if ended is None and self._store.get(job.id) is None:
                    self._site.videos.delete(job.id)  # deleted while it was published
                break
            except StoreUnavailable as error:
                log.warning("job %s has ended, and %s", job.id, error)
                time.sleep(_STORE_AWAY_SECONDS)
            except StorageError as error:
                log.error("job %s was deleted, and %s", job.id, error)
                return
        if ended is None:
            return
        match outcome:
            case Completed(num_bytes=num_bytes, generation_seconds=seconds):
                self._site.metrics.jobs.labels("completed", "ok").inc()
                self._site.metrics.bytes_written.inc(num_bytes)
                self._site.metrics.job_seconds.observe(max(0.0, time.time() - job.created_at))
                log.info(
                    "job %s completed in %.2f s, %d bytes",
                    job.id, seconds, num_bytes, extra=_about(job),
                )  # fmt: skip
            case Failed(reason=reason):
                self._site.metrics.jobs.labels("failed", reason.value).inc()
                log.info("job %s ended: %s", job.id, reason, extra=_about(job))

    def _release(self, claim: Claim) -> None:
        try:
            self._store.release(claim)
            log.info("job %s was handed back", claim.job.id)
        except StoreUnavailable as error:  # then its lease runs out
            log.warning("job %s could not be handed back: %s", claim.job.id, error)

    def _say(self, state: EngineState, message: str, job: str | None = None) -> None:
        self._status = replace(
            self._status, state=state, message=message, pid=os.getpid(), job=job, since=time.time()
        )
        self._say_again()

    def _say_again(self) -> None:
        try:
            self._site.files.write(self._status)
            self._unsaid = False
        except OSError as error:
            if not self._unsaid:
                log.error("the status of this engine cannot be written: %s", error)
            self._unsaid = True  # until it can be, nobody would send a job


def _about(job: Job) -> dict[str, str]:
    """What a record says of its job beside the message."""
    return {"job_id": job.id, "request_id": job.request_id}


class _Timed:
    """Frames as they come, and when the last one had."""

    def __init__(self, frames: Iterator[Frames]) -> None:
        self._frames = frames
        self.ended_at = 0.0

    def told(self, report: Callable[[Progress], None]) -> Iterator[Frames]:
        """The frames; ``report`` hears when there are no more, and it is only written."""
        yield from self._frames
        self.ended_at = time.monotonic()
        report(Progress(Stage.WRITING, 0, 1, PERCENT_BEFORE[Stage.WRITING]))


def _metadata(
    job: Job, generator: Generator, profile: str, timings: Mapping[str, float]
) -> Mapping[str, object]:
    """All that is needed to make the video again, and what it took."""
    return {
        "id": job.id,
        "model": job.model,
        "parameters": job.parameters.to_dict(),
        "created_at": job.created_at,
        "timings": dict(timings),
        "stage_seconds": {
            stage: round(seconds, 3) for stage, seconds in generator.stage_seconds().items()
        },
        "profile": profile,
        "peak_memory_bytes": generator.peak_memory_bytes(),
        "device": generator.device,
        "dtype": generator.dtype,
        "engine": job.engine,
        "attempts": job.attempts,
        "server_version": __version__,
    }


def _completed(published: Published) -> Completed:
    timings = published.metadata.get("timings", {})
    return Completed(
        file_name=published.path.name,
        num_bytes=published.num_bytes,
        generation_seconds=float(timings.get("generation_seconds", 0)),
        encoding_seconds=float(timings.get("encoding_seconds", 0)),
        peak_memory_bytes=int(published.metadata.get("peak_memory_bytes", 0)),
    )


def _first_line(error: BaseException) -> str:
    """A message fit for one line of an answer; never empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
