"""The engine: the real tiny pipeline, and a worker that survives what a job does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pytest
from harness import probe
from t2v_server.engine.encoding import Frames, encode_mp4
from t2v_server.engine.errors import EncodingError, EngineLostError, GenerationError
from t2v_server.engine.worker import EngineWorker, Generator
from t2v_server.jobs.queue import JobQueue
from t2v_server.jobs.readiness import Readiness, ReadyState
from t2v_server.jobs.record import Completed, Failed, FailureReason, Outcome
from t2v_server.metrics import Metrics
from t2v_server.profiles import TINY
from t2v_server.storage.ids import IdFactory
from t2v_server.storage.videos import VideoStore


@runtime_checkable
class Saves(Protocol):
    def save_pretrained(self, save_directory: str) -> None: ...


def test_a_saved_checkpoint_generates_what_the_model_in_memory_does(tmp_path: Path) -> None:
    from t2v_server.engine.generator import load_generator

    built = load_generator("tiny", TINY, "cpu", "auto", 1)
    assert isinstance(built.pipeline, Saves)
    built.pipeline.save_pretrained(str(tmp_path))
    loaded = load_generator(str(tmp_path), TINY, "auto", "auto", None)

    frames = built.generate("a dog", seed=4)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 5  # noise, but not a blank
    assert np.array_equal(loaded.generate("a dog", seed=4), frames)


def test_encoding_says_what_ffmpeg_said(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 64, 3), np.uint8)

    encode_mp4(frames, tmp_path / "a.part", fps=12)
    video = probe(tmp_path / "a.part")
    assert (video.size, video.fps, video.num_frames) == ((64, 32), 12, 5)

    with pytest.raises(EncodingError, match=r"^ffmpeg: .*No such file or directory$"):
        encode_mp4(frames, tmp_path / "no" / "such" / "b.mp4", fps=12)


@dataclass
class FakeGenerator:
    """Fails as the prompt says."""

    device: str = "cpu"
    dtype: str = "float32"

    def generate(self, prompt: str, seed: int) -> Frames:
        match prompt:
            case "too big":
                raise GenerationError("out of GPU memory")
            case "bug":
                raise KeyError
            case "gpu gone":
                raise EngineLostError("the GPU failed")
            case "thread ends":
                raise SystemExit("no more")
        return np.full((1, 32, 32, 3), seed, np.uint8)

    def warm_up(self) -> Frames:
        return self.generate("warm-up", 0)


@dataclass
class Engine:
    queue: JobQueue
    readiness: Readiness
    worker: EngineWorker
    lost: list[str]

    def run(self, *prompts: str) -> list[Outcome]:
        """Submit all, then start, wait for the outcomes and for the thread's end."""
        jobs = [self.queue.submit(prompt, seed=1) for prompt in prompts]
        self.worker.start()
        outcomes = [job.wait() for job in jobs]
        self.queue.close(Failed(FailureReason.SHUTTING_DOWN, "end of test"))
        self.worker.join(10)
        return outcomes


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(tmp_path, FakeGenerator)


def make_engine(directory: Path, load: Callable[[], Generator]) -> Engine:
    queue, readiness, lost = JobQueue(8, IdFactory()), Readiness(), list[str]()
    worker = EngineWorker(
        model="fake",
        load=load,
        fps=8,
        queue=queue,
        readiness=readiness,
        store=VideoStore(directory, "me"),
        metrics=Metrics(),
        on_lost=lambda: lost.append("lost"),
    )
    return Engine(queue, readiness, worker, lost)


def test_a_failed_job_says_why_and_the_next_one_succeeds(engine: Engine, tmp_path: Path) -> None:
    first, second, third = engine.run("too big", "bug", "a dog")

    assert first == Failed(FailureReason.GENERATION, "out of GPU memory")
    assert second == Failed(FailureReason.GENERATION, "KeyError")  # never an empty message
    assert isinstance(third, Completed)
    assert [third.path] == list(tmp_path.iterdir())
    assert third.num_bytes == third.path.stat().st_size
    assert engine.lost == []


def test_a_lost_engine_fails_all_that_wait_and_asks_for_a_new_process(engine: Engine) -> None:
    first, second = engine.run("gpu gone", "a dog")

    assert first == Failed(FailureReason.ENGINE_LOST, "the GPU failed")
    assert second == Failed(FailureReason.ENGINE_LOST, "the engine is lost: the GPU failed")
    assert engine.readiness.status.state is ReadyState.FAILED
    assert engine.lost == ["lost"]


def test_nobody_waits_for_an_engine_thread_that_has_ended(engine: Engine) -> None:
    first, second = engine.run("thread ends", "a dog")

    assert first == second == Failed(FailureReason.ENGINE_LOST, "the engine is lost: no more")
    assert engine.lost == ["lost"]


def test_a_model_that_generates_nothing_usable_never_becomes_ready(tmp_path: Path) -> None:
    def load() -> Generator:
        raise OSError("weights are missing\nsecond line")

    engine = make_engine(tmp_path, load)
    engine.worker.start()
    engine.worker.join(10)

    status = engine.readiness.status
    assert status.state is ReadyState.FAILED
    assert status.message == "the model fake could not be loaded: weights are missing"


def test_frames_that_are_not_numbers_are_refused() -> None:
    from t2v_server.engine.generator import _to_uint8

    with pytest.raises(GenerationError, match="not finite"):
        _to_uint8(np.full((1, 2, 2, 3), np.nan, np.float32))
    assert _to_uint8(np.full((1, 1, 1, 3), 1.0, np.float32)).max() == 255
