"""``make serve``: the server by hand, as the README says, without root."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534


def unprivileged() -> list[str]:
    """What drops root's rights, where the repository can be read without them."""
    if os.geteuid() != 0:
        return []
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    readable = subprocess.run([*drop, "test", "-x", REPOSITORY / ".venv-server/bin/python"])
    if readable.returncode != 0:
        pytest.skip("an account without root's rights cannot read this clone")
    return drop


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


@pytest.fixture
def videos() -> Iterator[Path]:
    # pytest's own temporary directories are closed to other accounts.
    with tempfile.TemporaryDirectory(prefix="t2v-serve-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_it_says_where_to_point_curl_and_answers_there_without_root(videos: Path) -> None:
    drop = unprivileged()
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [*drop, "make", "--no-print-directory", "serve", f"VIDEOS={videos}"],
        cwd=REPOSITORY,
        env={**os.environ, "T2V_BIND": address, "HOME": str(videos)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert f"http://{address}/" in said[0]
        deadline = time.monotonic() + 60
        while True:
            try:
                assert fetch(f"http://{address}/ready")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.3)
        assert fetch(f"http://{address}/generate?prompt=a%20dog").startswith(
            f"Video generated at {videos}/"
        )
        assert len(list(videos.glob("*.mp4"))) == 1
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
