"""Starting, failing and stopping, with a real gunicorn."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Server, probe, run_to_end


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has just been started; its generations take long."""
    with Server.start(tmp_path_factory.mktemp("fresh-videos"), T2V_STEPS="1000") as it:
        yield it


def test_alive_at_once_ready_only_when_warm(fresh_server: Server) -> None:
    server = fresh_server
    assert server.get("/healthz").status == 200
    assert server.metric("t2v_model_loaded") == 0
    early = server.get("/ready")
    refused = server.generate("too early")
    server.wait_until_ready()

    assert (early.status, early.text) == (503, "the model is still loading\n")
    assert (refused.status, refused.text) == (503, "the model is still loading\n")
    assert int(refused.headers["Retry-After"]) > 0
    assert server.metric("t2v_model_loaded") == 1
    assert list(server.output_dir.iterdir()) == []  # the warm-up's video is nobody's


# After the test above: it stops the server.
def test_sigint_stops_at_once_and_leaves_nothing_behind(fresh_server: Server) -> None:
    server = fresh_server
    with ThreadPoolExecutor(1) as pool:
        server.wait_until_ready()
        running = server.generate_later(pool, ["a long one"])[0]
        server.wait_for_metric("t2v_jobs_in_flight", 1)
        started = time.monotonic()

        server.process.send_signal(signal.SIGINT)

        assert running.result().status == 503
        server.process.wait(15)
        assert time.monotonic() - started < 5
        assert list(server.output_dir.iterdir()) == []


def test_a_model_that_cannot_load_is_explained_and_the_process_stays(tmp_path: Path) -> None:
    model = tmp_path / "no-such-model"
    with Server.start(tmp_path, T2V_MODEL=str(model)) as server:
        while (ready := server.get("/ready")).text == "the model is still loading\n":
            time.sleep(0.1)
        refused = server.generate("a dog")

        assert ready.status == refused.status == 503
        assert ready.text.startswith(f"the model {model} could not be loaded: ")
        assert refused.text == ready.text
        assert server.get("/healthz").text == "ok"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"T2V_FRAMES": "10"},
            "T2V_FRAMES=10 is not of the form 4k+1, which the Wan VAE needs: set it to 9 or 13.",
        ),
        (
            {"T2V_OUTPUT_DIR": "/nowhere/videos"},
            "T2V_OUTPUT_DIR: the directory /nowhere/videos does not exist: create or mount it.",
        ),
    ],
)
def test_an_unusable_setting_is_one_sentence_at_start(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    done = run_to_end(tmp_path, **settings)

    assert done.returncode == 2
    assert done.stderr == f"t2v-server: {sentence}\n"


def test_an_output_directory_that_refuses_files_is_one_sentence_at_start(tmp_path: Path) -> None:
    done = run_to_end(tmp_path, T2V_OUTPUT_DIR="/proc/self")  # refuses files, even root's

    assert done.returncode == 2
    assert done.stderr.startswith("t2v-server: T2V_OUTPUT_DIR: user ")
    assert "cannot write to /proc/self" in done.stderr
    assert done.stderr.count("\n") == 1


def test_leftovers_of_a_killed_server_are_swept_at_start(tmp_path: Path) -> None:
    own = tmp_path / ".01ABC.me.mp4.part"
    others = tmp_path / ".01ABC.not-me.mp4.part"
    own.touch()
    others.touch()

    with Server.start(tmp_path, T2V_INSTANCE="me"):
        assert not own.exists()
        assert others.exists()


def test_a_failed_generation_costs_that_job_alone(server: Server) -> None:
    away = server.output_dir.with_name("away")
    server.output_dir.rename(away)  # as when the file server goes away
    try:
        failed = server.generate("a dog")
    finally:
        away.rename(server.output_dir)

    assert failed.status == 500
    assert failed.text.startswith("generation failed: ffmpeg: ")
    assert failed.text.count("\n") == 1
    assert probe(server.generate("a dog").video).num_frames == 9
    assert server.metric("t2v_jobs_total", outcome="failed", reason="encoding") == 1
