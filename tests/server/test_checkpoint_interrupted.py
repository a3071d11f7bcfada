"""Preparations that are killed, and ones that meet."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clones import save_tiny
from harness import SERVER_ROOT
from t2v_server.checkpoint import lock
from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import read_manifest, verify, work_directory
from t2v_server.checkpoint.wanted import Wanted
from t2v_server.engine.prepare import JOURNAL, prepare
from t2v_server.profiles import T4

SEED = 7
KILLS = 25

# Prepares in one forked process after the other, PyTorch being imported once.
PREPARER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from t2v_server.checkpoint.wanted import Wanted
from t2v_server.engine.prepare import prepare
from t2v_server.profiles import T4
torch.set_num_threads(1)
source, target, kills, seconds, seed = sys.argv[1:]
chance = random.Random(int(seed))
left = int(kills)
while True:
    pid = os.fork()
    if pid == 0:
        prepare(Wanted(source, T4, Path(target)), lambda line: print(line, flush=True))
        os._exit(0)
    if left:
        left -= 1
        time.sleep(chance.uniform(0, float(seconds)))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print("ENDED", status, flush=True)
    if status == 0:
        break
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In many files, between any two of which a preparation may be killed."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", shard="1MB")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SERVER_ROOT)}


def test_a_killed_preparation_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    whole = prepare(Wanted(str(tiny), T4, tmp_path / "at-once")).manifest
    seconds = (time.monotonic() - started) / 3  # so that several are needed
    target = tmp_path / "killed"

    done = subprocess.run(
        [sys.executable, "-c", PREPARER, str(tiny), str(target), *map(str, (KILLS, seconds, SEED))],
        cwd=SERVER_ROOT, env=environment(), capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = [line for line in done.stdout.splitlines() if line.startswith("ENDED")]
    killed = ends.count(f"ENDED {signal.SIGKILL.value}")
    went_on = done.stdout.count(": finished before")
    print(f"seed {SEED}: killed {killed} times, found {went_on} finished files")

    assert killed >= 3
    assert went_on >= 3
    manifest = read_manifest(target)
    assert manifest.files == whole.files  # to the byte
    verify(target, manifest.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-once", "killed"]


def interrupted(tiny: Path, target: Path, after: int = 4) -> Path:
    """What is left of a preparation that was killed after so many files."""

    class Killed(BaseException):
        pass

    def tell(line: str) -> None:
        if line.startswith(f"[{after}/"):
            raise Killed

    with pytest.raises(Killed):
        prepare(Wanted(str(tiny), T4, target), tell)
    return work_directory(target)


def test_killed_just_before_it_is_named_it_is_named_by_the_next(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            prepare(Wanted(str(tiny), T4, tmp_path / "wan"))
    assert prepare(Wanted(str(tiny), T4, tmp_path / "wan")).changed
    assert not (tmp_path / "wan" / JOURNAL).exists()
    verify(tmp_path / "wan", read_manifest(tmp_path / "wan").files)


def test_what_was_damaged_meanwhile_is_made_again(tiny: Path, tmp_path: Path) -> None:
    work = interrupted(tiny, tmp_path / "wan")
    finished = json.loads((work / JOURNAL).read_text())["files"]
    names = [name for name in finished if name.endswith(".safetensors")]
    assert len(names) == 3
    with (work / names[0]).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    told = list[str]()

    prepare(Wanted(str(tiny), T4, tmp_path / "wan"), told.append)

    assert f"{names[0]}: damaged since, made again" in told
    assert f"{names[1]}: finished before" in told
    verify(tmp_path / "wan", read_manifest(tmp_path / "wan").files)


def test_a_source_that_changed_meanwhile_is_refused(tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    work = interrupted(source, tmp_path / "wan")
    os.utime(source / "model_index.json")

    with pytest.raises(CheckpointError, match=r"was begun with another revision"):
        prepare(Wanted(str(source), T4, tmp_path / "wan"))
    with pytest.raises(CheckpointError, match=r"is an interrupted preparation from \S+ for t4"):
        prepare(Wanted(str(tiny), T4, tmp_path / "wan"))
    (work / JOURNAL).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{JOURNAL} is damaged .*: remove"):
        prepare(Wanted(str(source), T4, tmp_path / "wan"))


HOLDER = """
import sys, time
from pathlib import Path
from t2v_server.checkpoint import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_at_once_are_refused_and_a_dead_one_holds_nothing(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "wan"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)],
        cwd=SERVER_ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(CheckpointError, match=rf"being prepared by process {other.pid} of "):
            prepare(Wanted(str(tiny), T4, target))
    finally:
        other.kill()
        other.wait()
    assert prepare(Wanted(str(tiny), T4, target)).changed
    assert [path.name for path in tmp_path.iterdir()] == ["wan"]


def test_another_host_is_seen_where_locks_do_not_cross(tiny: Path, tmp_path: Path) -> None:
    """As on NFSv3 with nolock: the lock is free, and its file is of a host that is at it."""
    target = tmp_path / "wan"
    path = tmp_path / ".wan.lock"
    path.write_text(json.dumps({"host": "worker9", "pid": 4}))

    with pytest.raises(CheckpointError, match=r"by process 4 of worker9, who was there less than"):
        prepare(Wanted(str(tiny), T4, target))
    assert json.loads(path.read_text())["host"] == "worker9"
    long_ago = time.time() - lock.GONE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    assert prepare(Wanted(str(tiny), T4, target)).changed
    assert not path.exists()


def test_the_owner_of_a_lock_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.05)
    path = tmp_path / ".wan.lock"
    with lock.held(tmp_path / "wan"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not path.exists()
