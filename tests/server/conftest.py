"""Fixtures: real servers on loopback, with the real tiny WanPipeline."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SERVER_ROOT = HERE.parents[1] / "files" / "server"
sys.path[:0] = [str(SERVER_ROOT), str(HERE)]

from harness import Server  # noqa: E402

# What a shell starts in the background ignores Ctrl-C, and so would every program started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the default settings, ready, shared by tests that leave it as it was."""
    with Server.start(tmp_path_factory.mktemp("videos"), T2V_INSTANCE="worker-under-test") as it:
        it.wait_until_ready()
        yield it
