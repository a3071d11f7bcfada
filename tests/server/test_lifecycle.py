"""Starting, failing and stopping, with a real gunicorn."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Server, probe, run_to_end, wait_for


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
        assert time.monotonic() - started < 12
        assert list(server.output_dir.iterdir()) == []


def test_a_model_that_cannot_load_is_explained_and_the_process_stays(tmp_path: Path) -> None:
    model = tmp_path / "no-such-model"
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_MODEL=str(model)) as server:
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
    videos = tmp_path / "videos"
    videos.mkdir()
    own = videos / ".01ABC.me-e0.mp4.part"
    others = videos / ".01ABC.not-me-e0.mp4.part"
    own.touch()
    others.touch()

    with Server.start(videos, T2V_INSTANCE="me") as server:
        server.wait_until_ready()
        assert not own.exists()
        assert others.exists()


def test_a_volume_that_goes_away_is_said_and_comes_back(server: Server) -> None:
    away = server.output_dir.with_name("away")
    server.output_dir.rename(away)  # as when the file server goes away
    try:
        failed = server.generate("a dog")
    finally:
        away.rename(server.output_dir)

    assert failed.status == 503  # it is not even queued
    assert failed.text.startswith("cannot ask for the free space of ")
    assert failed.text.count("\n") == 1
    assert probe(server.generate("a dog").video).num_frames == 9
    assert server.metric("t2v_jobs_total", outcome="rejected", reason="storage_unavailable") == 1


def test_a_job_whose_file_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with Server.start(videos, T2V_STEPS="100") as server:
        server.wait_until_ready()
        job = server.create("a dog")
        server.wait_for_job(job, "in_progress")
        videos.rename(tmp_path / "away")  # as when the file server goes away
        failed = server.wait_for_job(job)
        (tmp_path / "away").rename(videos)

        assert failed["error"]["code"] == "encoding_failed"
        assert failed["error"]["message"].startswith("ffmpeg: ")
        assert server.generate("a dog", num_inference_steps="1").status == 200


def test_nothing_is_left_running(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with Server.start(videos, T2V_ENGINES="2") as server:
        server.wait_until_ready()
        pids = server.all_pids()
        assert len(pids) >= 5  # supervisor, gunicorn, its worker, two engines

        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 5
        while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)


def test_sigterm_does_not_wait_for_a_model_that_loads(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_WIDTH="512", T2V_HEIGHT="512") as server:
        wait_for(lambda: "loading the model" in server.log.read_text() or None, "loading", server)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.process.wait(30) == 0
        assert time.monotonic() - started < 10


def test_a_connection_that_says_nothing_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos") as server:
        server.wait_until_ready()
        with socket.create_connection(("127.0.0.1", server.port)):
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(15) == 0


def test_what_failed_in_an_earlier_run_is_not_said_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_MODEL=str(tmp_path / "none")) as server:
        wait_for(lambda: "could not be" in server.get("/ready").text or None, "failure", server)
    with Server.start(tmp_path / "videos") as server:
        assert "could not be loaded" not in server.get("/ready").text
        server.wait_until_ready()


def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with Server.start(videos):
        done = run_to_end(videos)

    assert done.returncode == 2
    assert "is another running server's: stop that one or set another directory." in done.stderr


def test_an_address_in_use_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Server.start(tmp_path / "a") as server:
        done = run_to_end(tmp_path / "b", T2V_BIND=f"127.0.0.1:{server.port}")

    assert done.returncode == 2
    assert "cannot be listened on (Address already in use)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_507_before_and_during(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with Server.start(videos, T2V_MIN_FREE_BYTES=str(1 << 59)) as server:
        server.wait_until_ready()

        answer = server.post_json("/v1/videos", {"prompt": "a dog"})
        assert (answer.status, answer.code) == (507, "insufficient_storage")
        assert "are free" in answer.json()["error"]["message"]
        plain = server.generate("a dog")
        assert plain.status == 507
        assert plain.text.startswith("no space for this video: it may take ")
        assert server.get("/v1/videos").json()["data"] == []
