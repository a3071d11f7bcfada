"""The engine: the real tiny pipeline, and a loop that survives what a job does to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pytest
from harness import probe
from t2v_server.engine.encoding import Frames, encode_mp4, encode_thumbnail
from t2v_server.engine.engine import (
    EXIT_AGAIN,
    EXIT_STOPPED,
    EXIT_UNUSABLE,
    Engine,
    EngineSite,
    Generator,
)
from t2v_server.engine.errors import (
    EncodingError,
    EngineLostError,
    GenerationError,
    OutOfMemory,
    Stopped,
)
from t2v_server.engine.pulse import Pulse
from t2v_server.jobs.readiness import EngineFiles, EngineState, EngineStatus
from t2v_server.jobs.record import (
    CANCELLED,
    Completed,
    Failed,
    FailureReason,
    Job,
    JobState,
    Parameters,
    Progress,
    Stage,
)
from t2v_server.jobs.sqlite_store import SqliteStore
from t2v_server.jobs.store import Admission, Claim, NewJob, Order
from t2v_server.metrics import Metrics
from t2v_server.profiles import TINY, VideoParameters
from t2v_server.storage.videos import DiskFull, VideoStore

PARAMETERS = Parameters("a dog", "", 4, TINY.defaults)


@runtime_checkable
class Saves(Protocol):
    def save_pretrained(self, save_directory: str) -> None: ...


def test_a_saved_checkpoint_generates_what_the_model_in_memory_does(tmp_path: Path) -> None:
    from t2v_server.engine.generator import load_generator

    built = load_generator("tiny", "cpu", "auto", 1)
    assert isinstance(built.pipeline, Saves)
    built.pipeline.save_pretrained(str(tmp_path))
    loaded = load_generator(str(tmp_path), "auto", "auto", None)

    frames = built.generate(PARAMETERS)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 5  # noise, but not a blank
    assert np.array_equal(loaded.generate(PARAMETERS), frames)


def test_every_parameter_changes_what_is_made() -> None:
    from t2v_server.engine.generator import load_generator

    generator = load_generator("tiny", "cpu", "auto", 1)
    video = TINY.defaults
    made = generator.generate(PARAMETERS)

    def changed(**parameters: float) -> Frames:
        return generator.generate(
            Parameters("a dog", "", 4, VideoParameters(**{**vars(video), **parameters}))
        )

    assert changed(width=96).shape == (9, 64, 96, 3)
    assert changed(num_frames=5).shape == (5, 64, 64, 3)
    for parameter in ({"num_inference_steps": 3}, {"guidance_scale": 1.0}, {"flow_shift": 3.0}):
        assert not np.array_equal(changed(**parameter), made), parameter
    assert np.array_equal(generator.generate(PARAMETERS), made)  # nothing stays behind
    other = Parameters("a dog", "green, blurred", 4, video)
    assert not np.array_equal(generator.generate(other), made)


def test_progress_is_told_for_every_step_and_every_latent_frame() -> None:
    from t2v_server.engine.generator import load_generator

    told = list[Progress]()
    video = VideoParameters(**{**vars(TINY.defaults), "num_inference_steps": 4})
    generator = load_generator("tiny", "cpu", "auto", 1)
    generator.generate(Parameters("a dog", "", 4, video), told.append)

    denoised = [one.done for one in told if one.stage is Stage.DENOISING]
    decoded = [one.done for one in told if one.stage is Stage.DECODING]
    assert denoised == [1, 2, 3, 4]
    assert decoded == [0, 1, 2]  # nine frames are three latent ones
    percents = [one.percent for one in told]
    assert percents == sorted(percents)
    assert 0 <= percents[0] < percents[-1] < 100


def test_what_the_watcher_raises_ends_the_generation_at_that_step() -> None:
    from t2v_server.engine.generator import load_generator

    steps = list[int]()
    video = VideoParameters(**{**vars(TINY.defaults), "num_inference_steps": 100})
    generator = load_generator("tiny", "cpu", "auto", 1)

    def stop_at_three(progress: Progress) -> None:
        if progress.stage is Stage.DENOISING:
            steps.append(progress.done)
            if progress.done == 3:
                raise Stopped

    with pytest.raises(Stopped):
        generator.generate(Parameters("a dog", "", 4, video), stop_at_three)
    assert steps == [1, 2, 3]
    assert generator.generate(PARAMETERS).std() > 5  # and the pipeline is none the worse


@pytest.mark.skipif(os.geteuid() != 0, reason="a full volume needs root")
def test_a_full_volume_is_named_whatever_else_ffmpeg_says(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        descriptor = os.open(tmp_path / "filler", os.O_CREAT | os.O_WRONLY)
        with suppress(OSError):
            while True:
                os.write(descriptor, bytes(4096))
        os.close(descriptor)
        frames = np.zeros((9, 64, 64, 3), np.uint8)
        with pytest.raises(DiskFull), VideoStore(tmp_path, "me").full_disk_named():
            encode_mp4(frames, tmp_path / "new.mp4", 24)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_encoding_says_what_ffmpeg_said(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 64, 3), np.uint8)

    encode_mp4(frames, tmp_path / "a.part", fps=12)
    video = probe(tmp_path / "a.part")
    assert (video.size, video.fps, video.num_frames) == ((64, 32), 12, 5)

    with pytest.raises(EncodingError, match=r"^ffmpeg: .*No such file or directory$"):
        encode_mp4(frames, tmp_path / "no" / "such" / "b.mp4", fps=12)


def test_signals_cut_no_video_short(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (33, 256, 256, 3), np.uint8)
    previous = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        encode_mp4(frames, tmp_path / "a.mp4", fps=8)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert probe(tmp_path / "a.mp4").num_frames == 33


def test_a_thumbnail_is_a_small_jpeg_of_the_middle_frame(tmp_path: Path) -> None:
    from PIL import Image

    frames = np.zeros((5, 704, 1280, 3), np.uint8)
    frames[2, :, :, 0] = 200

    encode_thumbnail(frames, tmp_path / "a.part")

    with Image.open(tmp_path / "a.part") as image:
        assert (image.format, image.size) == ("JPEG", (480, 264))
        red, green, _ = np.asarray(image.convert("RGB")).mean(axis=(0, 1))
        assert red > 190
        assert green < 10


def test_frames_that_are_not_numbers_are_refused() -> None:
    import torch
    from t2v_server.engine.decoding import _to_frames

    with pytest.raises(GenerationError, match="not finite"):
        _to_frames(torch.full((1, 3, 1, 2, 2), float("nan")), None)
    assert _to_frames(torch.full((1, 3, 1, 2, 2), 2.0), None).max() == 255
    assert _to_frames(torch.full((1, 3, 1, 2, 2), -1.0), None).max() == 0


@dataclass
class FakeGenerator:
    """Fails as the prompt says."""

    device: str = "cpu"
    dtype: str = "float32"
    generated: list[str] = field(default_factory=list)
    during: Callable[[str], None] = lambda _prompt: None

    def stream(
        self,
        parameters: Parameters,
        watch: Callable[[Progress], None],
        image: Path | None = None,
    ) -> Iterator[Frames]:
        self.generated.append(parameters.prompt)
        self.during(parameters.prompt)
        match parameters.prompt:
            case "too big":
                raise OutOfMemory("out of memory at 64x64, 9 frames")
            case "not finite":
                raise GenerationError("the model gave frames that are not finite numbers")
            case "bug":
                raise KeyError
            case "gpu gone":
                raise EngineLostError("the GPU failed")
            case "endless":
                for step in range(100_000):
                    watch(Progress(Stage.DENOISING, step, 100_000, 1))
                    time.sleep(0.01)
        yield np.full((1, 32, 32, 3), parameters.seed, np.uint8)

    def warm_up(self, video: VideoParameters) -> Iterator[Frames]:
        yield np.zeros((1, video.height, video.width, 3), np.uint8)

    def stage_seconds(self) -> dict[str, float]:
        return {"denoising": 0.5}

    def begin_memory_peak(self) -> None:
        pass

    def peak_memory_bytes(self) -> int:
        return 7


class Workshop:
    """One engine with a store of its own."""

    def __init__(self, directory: Path) -> None:
        (directory / "videos").mkdir()
        self.store = SqliteStore(directory / "jobs.db", lease=30)
        self.videos = VideoStore(directory / "videos", "me-e0")
        self.files = EngineFiles(directory, 0)
        self.generator = FakeGenerator()
        self.load: Callable[[], Generator] = lambda: self.generator
        self.metrics = Metrics()

    def engine(self) -> Engine:
        site = EngineSite(
            name="me/0",
            model="fake",
            profile="tiny",
            warm_up=TINY.defaults,
            encoder="libx264",
            max_attempts=3,
            lease=30,
            store=self.store,
            videos=self.videos,
            files=self.files,
            metrics=self.metrics,
        )
        return Engine(site, lambda: self.load())

    def submit(self, prompt: str, model: str = "fake") -> Job:
        new = NewJob("", model, Parameters(prompt, "", 1, TINY.defaults), 1000)
        return self.store.submit(new, Admission(100)).job

    def run(self, *prompts: str) -> tuple[int, list[Job]]:
        """Submit all, run an engine until all have ended or it has; its status and the jobs."""
        jobs = [self.submit(prompt) for prompt in prompts]
        engine = self.engine()
        statuses = list[int]()
        thread = threading.Thread(target=lambda: statuses.append(engine.run()))
        thread.start()
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:
            if all(self.job(job).state.ended for job in jobs):
                break
            time.sleep(0.02)
        engine.stop()
        thread.join(10)
        return statuses[0], [self.job(job) for job in jobs]

    def job(self, job: Job) -> Job:
        found = self.store.get(job.id)
        assert found is not None
        return found


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_a_failed_job_says_why_and_the_next_one_succeeds(shop: Workshop) -> None:
    status, (first, second, third) = shop.run("not finite", "bug", "a dog")

    assert status == EXIT_STOPPED
    assert first.outcome == Failed(
        FailureReason.GENERATION, "the model gave frames that are not finite numbers"
    )
    assert second.outcome == Failed(FailureReason.GENERATION, "KeyError")  # never empty
    assert isinstance(third.outcome, Completed)
    path = shop.videos.path(third.id)
    assert third.outcome.file_name == path.name
    assert third.outcome.num_bytes == path.stat().st_size
    assert shop.videos.thumbnail(third.id).stat().st_size > 0
    assert [one.path for one in shop.videos.all()] == [path]


def test_metadata_beside_a_video_are_enough_to_make_it_again(shop: Workshop) -> None:
    _, (job,) = shop.run("a dog")

    metadata = json.loads(shop.videos.metadata(job.id).read_text())
    assert Parameters.from_dict(metadata["parameters"]) == job.parameters
    assert metadata["model"] == "fake"
    assert metadata["id"] == job.id
    assert set(metadata["timings"]) == {
        "queue_seconds",
        "generation_seconds",
        "encoding_seconds",
    }
    assert metadata["peak_memory_bytes"] == 7


def test_out_of_memory_costs_that_job_alone_and_asks_for_a_new_process(shop: Workshop) -> None:
    status, (first, second) = shop.run("too big", "a dog")

    assert status == EXIT_AGAIN
    assert first.outcome == Failed(FailureReason.OUT_OF_MEMORY, "out of memory at 64x64, 9 frames")
    assert second.state is JobState.QUEUED  # for the next process
    assert not (last := shop.files.last()) or last.state is EngineState.LOADING
    assert shop.run()[0] == EXIT_STOPPED
    status, _ = shop.run("another")
    assert shop.job(second).state is JobState.COMPLETED


def test_a_job_that_takes_its_engines_with_it_is_given_up_after_the_cap(shop: Workshop) -> None:
    job = shop.submit("gpu gone")
    statuses = [shop.engine().run() for _ in range(3)]

    assert statuses == [EXIT_AGAIN] * 3
    assert shop.job(job).state is JobState.IN_PROGRESS
    _, (after,) = shop.run("a dog")
    assert shop.job(job).outcome == Failed(
        FailureReason.ENGINE_LOST, "3 engines were lost while they worked on it"
    )
    assert after.state is JobState.COMPLETED
    assert shop.generator.generated.count("gpu gone") == 3


def test_a_video_that_an_earlier_attempt_published_is_not_made_again(shop: Workshop) -> None:
    job = shop.submit("a dog")
    assert shop.store.claim("lost/0", 0) is not None  # and then it publishes, and dies
    with shop.videos.draft(job.id) as draft:
        draft.video.write_bytes(b"made before")
        shop.videos.publish(job.id, draft, {"timings": {"generation_seconds": 1.5}})
    shop.store.recover("lost/0")

    shop.run()
    _, _ = shop.run("another")

    outcome = shop.job(job).outcome
    assert outcome == Completed(f"{job.id}.mp4", 11, 1.5, 0, 0)
    assert shop.generator.generated == ["another"]
    assert shop.videos.path(job.id).read_bytes() == b"made before"


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_the_engine_is_free_within_a_step_of_the_wish(shop: Workshop, how: str) -> None:
    job = shop.submit("endless")
    engine = shop.engine()
    thread = threading.Thread(target=engine.run)
    thread.start()
    while shop.job(job).progress is None:
        time.sleep(0.01)
    asked_at = time.monotonic()
    if how == "cancel":
        shop.store.cancel(job.id)
    else:
        shop.store.delete(job.id)
    while (last := shop.files.last()) is None or last.job is not None:
        assert time.monotonic() - asked_at < 5
        time.sleep(0.005)
    took = time.monotonic() - asked_at
    engine.stop()
    thread.join(10)

    assert (
        took < 2
    )  # the job itself would not end; steps take 10 ms, orders are asked for every 50 ms
    found = shop.store.get(job.id)
    assert (found is None) if how == "delete" else (found is not None)
    assert found is None or found.outcome == CANCELLED
    assert shop.videos.all() == []


def test_a_video_deleted_while_it_is_published_leaves_no_file(shop: Workshop) -> None:
    publish = shop.videos.publish

    def publish_late(*arguments: object, **named: object) -> object:
        shop.store.delete(job.id)
        return publish(*arguments, **named)  # type: ignore[arg-type]

    shop.videos.publish = publish_late  # type: ignore[method-assign, assignment]
    job = shop.submit("a dog")
    engine = shop.engine()
    thread = threading.Thread(target=engine.run)
    thread.start()
    while shop.store.get(job.id) is not None:
        time.sleep(0.01)
    engine.stop()
    thread.join(10)

    assert list(shop.videos.directory.iterdir()) == []


def test_told_to_stop_at_once_it_hands_the_job_back_uncounted(shop: Workshop) -> None:
    job = shop.submit("endless")
    engine = shop.engine()
    thread = threading.Thread(target=engine.run)
    thread.start()
    while shop.job(job).progress is None:
        time.sleep(0.01)

    engine.stop(now=True)
    thread.join(10)

    assert not thread.is_alive()
    assert (shop.job(job).state, shop.job(job).attempts) == (JobState.QUEUED, 0)


def test_a_job_is_handed_back_without_waiting_for_its_step(shop: Workshop) -> None:
    stepping, done = threading.Event(), threading.Event()

    def long_step(prompt: str) -> None:
        if prompt == "slow":
            stepping.set()
            done.wait(20)

    shop.generator.during = long_step
    job = shop.submit("slow")
    engine = shop.engine()
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert stepping.wait(10)

    engine.stop(now=True)
    deadline = time.monotonic() + 3
    while shop.job(job).state is not JobState.QUEUED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert shop.job(job).attempts == 0
    done.set()
    thread.join(10)
    assert shop.job(job).state is JobState.QUEUED  # what it had made counts no more
    assert shop.videos.all() == []


def test_a_store_that_is_silent_does_not_hold_the_generation_up(shop: Workshop) -> None:
    heartbeat = shop.store.heartbeat
    silent = threading.Event()

    def late(claim: Claim, progress: Progress | None = None) -> Order:
        if progress is not None and not silent.is_set():
            silent.wait(20)
        return heartbeat(claim, progress)

    shop.store.heartbeat = late  # type: ignore[method-assign]
    started = time.monotonic()
    with Pulse(shop.store, _claim(shop, "x"), 30) as pulse:
        for step in range(100):
            pulse.report(Progress(Stage.DENOISING, step, 100, 1))
        took = time.monotonic() - started
        silent.set()
    assert took < 10


def _claim(shop: Workshop, prompt: str) -> Claim:
    shop.submit(prompt)
    claim = shop.store.claim("me/0", 0)
    assert claim is not None
    return claim


def test_a_status_that_could_not_be_written_is_written_later(shop: Workshop) -> None:
    write, refused = shop.files.write, list[EngineStatus]()

    def full(status: EngineStatus) -> None:
        if status.ready and len(refused) < 2:
            refused.append(status)
            raise OSError("No space left on device")
        write(status)

    shop.files.write = full  # type: ignore[method-assign]
    engine = shop.engine()
    thread = threading.Thread(target=engine.run)
    thread.start()
    deadline = time.monotonic() + 10
    while (last := shop.files.last()) is None or not last.ready:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engine.stop()
    thread.join(10)

    assert len(refused) == 2


def test_a_job_of_another_model_is_not_made_with_this_one(shop: Workshop) -> None:
    job = shop.submit("a dog", model="wan")
    shop.run("another")

    assert shop.job(job).outcome == Failed(
        FailureReason.GENERATION, "it was accepted for wan, and this server runs fake"
    )


def test_a_model_that_cannot_be_loaded_is_said_and_stays_said(shop: Workshop) -> None:
    def load() -> Generator:
        raise OSError("weights are missing\nsecond line")

    shop.load = load
    assert shop.engine().run() == EXIT_UNUSABLE

    status = shop.files.read()
    assert status.state is EngineState.FAILED
    assert status.message == "the model fake could not be loaded: weights are missing"


def test_what_a_dead_engine_said_counts_no_more(shop: Workshop) -> None:
    with shop.files.held():
        shop.run("a dog")
        assert shop.files.read().message == "the server is shutting down: send the request again"
        shop.files.write(EngineStatus(EngineState.READY, "ready", pid=os.getpid() + 1))
        assert not shop.files.read().ready  # a predecessor's word
        shop.files.write(EngineStatus(EngineState.READY, "ready", pid=os.getpid()))
        assert shop.files.read().ready
    assert not shop.files.read().ready
    assert shop.files.read().message == "the engine is being started again"
