"""A real Redis on loopback, which keeps what it answered and may be killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from harness import free_port

PROGRAM = "redis-server"
START_SECONDS = 30.0
STOP_SECONDS = 10.0


class RedisServer:
    """One ``redis-server`` that writes every command to its append-only file."""

    def __init__(self, program: str, directory: Path, port: int, password: str | None) -> None:
        self._program = program
        self._directory = directory
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.log = directory / "redis.log"

    @classmethod
    @contextmanager
    def running(cls, directory: Path, password: str | None = None) -> Iterator[RedisServer]:
        """A Redis on a free port, with its files in ``directory``; ended with the block.

        Without the program the test is skipped, and fails where ``CI`` is set.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            reason = f"{PROGRAM} is not installed: apt-get install redis-server"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        server = cls(program, directory.resolve(), free_port(), password)
        try:
            server.start()
            yield server
        finally:
            server.kill()

    def start(self) -> None:
        """Start it on its port and wait until it has read its file."""
        assert self._process is None
        settings = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f'dir "{self._directory}"',
            "appendonly yes",
            "appendfsync always",
            'save ""',
            *([f'requirepass "{self._password}"'] if self._password else []),
        ]
        with self.log.open("ab") as log:
            # The settings come by standard input: a password is nobody else's to read.
            self._process = subprocess.Popen(
                [self._program, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join(settings).encode())
        self._process.stdin.close()
        self._wait_until_ready(self._process)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, password=self._password, decode_responses=True)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        with self.client() as client:
            while time.monotonic() < deadline and process.poll() is None:
                with suppress(redis.ConnectionError, redis.TimeoutError):  # also while it loads
                    if client.ping():
                        return
                time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"Redis did not start:\n{self.log.read_text()[-2000:]}")
