"""``t2v-server``, the command."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PROGRAM, SERVER_ROOT, Server, environment, probe, run_program


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "home"
    directory.mkdir()
    yield directory
    assert not list(directory.glob(".*")), "temporary files are left"


def test_generate_makes_a_video_here(videos: Path, home: Path) -> None:
    done = run_program(
        "generate", "a dog", "-o", str(home / "a.mp4"), "--seed", "5", "--size", "96x64",
        output_dir=videos,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{home / 'a.mp4'} (seed 5)\n"
    assert "100%" in done.stderr  # the progress bar
    assert probe(home / "a.mp4").size == (96, 64)
    assert list(videos.iterdir()) == []  # that is the server's


def test_generate_makes_the_same_video_here_and_by_a_server(
    server: Server, videos: Path, home: Path
) -> None:
    here = run_program("generate", "x", "-o", str(home / "a.mp4"), "--seed", "5", output_dir=videos)
    there = run_program(
        "generate", "x", "-o", str(home / "b.mp4"), "--seed", "5", "--server", server.url,
        output_dir=videos,
    )  # fmt: skip

    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    assert (home / "a.mp4").read_bytes() == (home / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "100x64"], "width must be a multiple of 32 from 32 to 512, not 100"),
        (["--num-frames", "ten"], "num_frames must be a whole number"),
        (["--server", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer: "),
    ],
)
def test_generate_says_what_is_wrong_in_one_sentence(
    videos: Path, home: Path, arguments: list[str], sentence: str
) -> None:
    done = run_program("generate", "x", "-o", str(home / "a.mp4"), *arguments, output_dir=videos)

    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"t2v-server: {sentence}")
    assert "Traceback" not in done.stderr


def test_generate_writes_over_nothing(videos: Path, home: Path) -> None:
    (home / "a.mp4").write_bytes(b"mine")

    done = run_program("generate", "x", "-o", str(home / "a.mp4"), output_dir=videos)
    assert (done.returncode, (home / "a.mp4").read_bytes()) == (1, b"mine")
    assert "exists: name another file, or use --force" in done.stderr
    nowhere = run_program("generate", "x", "-o", str(home / "no/a.mp4"), output_dir=videos)
    assert "does not exist: make it first" in nowhere.stderr


def test_an_interrupted_generate_cancels_its_job_and_leaves_nothing(
    server: Server, videos: Path, home: Path
) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "generate", "to be interrupted", "-o", str(home / "a.mp4"), "--steps", "1000",
         "--server", server.url],
        cwd=SERVER_ROOT, env=environment(videos, {}), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (job := server.engine_status()["job"]) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 130
    assert server.wait_for_job(str(job))["error"]["code"] == "cancelled"
    assert list(home.iterdir()) == []


def test_a_model_that_is_none_is_said(videos: Path, tmp_path: Path) -> None:
    done = run_program("model", "check", output_dir=videos, T2V_MODEL=str(tmp_path / "none"))

    assert done.returncode == 1
    assert done.stderr.startswith(f"t2v-server: {tmp_path / 'none'} is no directory: name one ")
    hub = run_program("model", "check", output_dir=videos, T2V_MODEL="no/model", HF_HUB_OFFLINE="1")
    assert hub.returncode == 2
    assert hub.stderr.splitlines()[-1].startswith("t2v-server: T2V_MODEL='no/model' cannot be load")


def test_doctor_finds_nothing_wrong_or_says_what(videos: Path, tmp_path: Path) -> None:
    well = run_program("doctor", output_dir=videos)
    assert well.returncode == 0, well.stdout
    assert "WRONG" not in well.stdout
    for title in ("settings", "videos", "state directory", "job store", "ffmpeg", "PyTorch"):
        assert f"ok       {title}" in well.stdout

    ill = run_program(
        "doctor", output_dir=videos, T2V_MODEL="/no/model", T2V_MIN_FREE_BYTES=str(1 << 59),
        T2V_TYPO="1", T2V_STORE="redis://127.0.0.1:1/0",
    )  # fmt: skip
    assert ill.returncode == 1
    assert "T2V_TYPO is not a setting" in ill.stdout
    assert "WRONG    videos: " in ill.stdout
    assert "WRONG    job store: " in ill.stdout
    assert "WRONG    model: /no/model is no directory: name one that 'model" in ill.stdout
    assert "WRONG    settings" in run_program("doctor", output_dir=videos, T2V_FPS="x").stdout


def test_a_new_key_opens_the_door(videos: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    made = run_program("key", "new", "ann", "--file", str(keys), output_dir=videos)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key not in keys.read_text()  # only its hash

    with Server.start(videos, T2V_API_KEYS_FILE=str(keys)) as server:
        server.wait_until_ready()
        assert server.generate("a dog").status == 401
        bearer = {"Authorization": f"Bearer {key}"}
        answer = server.request("GET", "/generate?prompt=a", headers=bearer)
        assert answer.status == 200
        assert key not in server.log.read_text()
        # Another key is taken without a restart.
        other = run_program("key", "new", "bob", "--file", str(keys), output_dir=videos)
        other_bearer = {"Authorization": f"Bearer {other.stdout.strip()}"}
        theirs = server.get("/v1/videos", other_bearer)
        assert (theirs.status, theirs.json()["data"]) == (200, [])
        hidden = server.get(f"/v1/videos/{answer.video.stem}", other_bearer)
        assert (hidden.status, hidden.code) == (404, "not_found")


def test_without_a_command_it_says_which_there_are() -> None:
    done = subprocess.run(
        [*PROGRAM, "--help"], cwd=SERVER_ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(SERVER_ROOT)},
    )  # fmt: skip
    for command in ("serve", "generate", "model", "doctor", "key"):
        assert f"\n    {command} " in done.stdout
