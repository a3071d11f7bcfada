"""Start, ask and stop a real server; look into the videos it made."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import imageio_ffmpeg

SERVER_ROOT = Path(__file__).parents[2] / "files" / "server"
START_SECONDS = 60.0
REQUEST_SECONDS = 120.0

Found = TypeVar("Found")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def video(self) -> Path:
        """The path in a successful answer of ``/generate``."""
        match = re.fullmatch(r"Video generated at (/\S+\.mp4)\n", self.text)
        assert match, (self.status, self.text)
        return Path(match[1])

    def json(self) -> dict[str, object]:
        data = json.loads(self.text)
        assert isinstance(data, dict)
        return data


def environment(output_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("T2V_")}
    return {
        **inherited,
        "T2V_OUTPUT_DIR": str(output_dir),
        "T2V_BIND": "127.0.0.1:0",
        "T2V_TORCH_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


COMMAND = [sys.executable, "-m", "gunicorn", "-c", "t2v_server/gunicorn.conf.py"]


def run_to_end(output_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start a server that is expected to refuse its settings."""
    return subprocess.run(
        COMMAND,
        cwd=SERVER_ROOT,
        env=environment(output_dir, settings),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


class Server:
    """One running gunicorn master and its worker."""

    def __init__(self, process: subprocess.Popen[bytes], output_dir: Path, log: Path) -> None:
        self.process = process
        self.output_dir = output_dir
        self.log = log
        self.port = self._listening_port()

    @classmethod
    @contextmanager
    def start(cls, output_dir: Path, **settings: str) -> Iterator[Server]:
        log = output_dir.with_name(output_dir.name + ".log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                COMMAND,
                cwd=SERVER_ROOT,
                env=environment(output_dir, settings),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield cls(process, output_dir, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _listening_port(self) -> int:
        def port() -> int | None:
            match = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.log.read_text())
            return int(match[1]) if match else None

        return wait_for(port, "the server to listen", self)

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.get("/ready").status == 200 or None, "readiness", self)

    def request(
        self,
        method: str,
        path: str,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            text = response.read().decode()
            return Answer(response.status, dict(response.getheaders()), text)
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def generate(self, prompt: str, **query: str) -> Answer:
        return self.get("/generate?" + urlencode({"prompt": prompt, **query}))

    def generate_later(self, pool: ThreadPoolExecutor, prompts: list[str]) -> list[Future[Answer]]:
        return [pool.submit(self.generate, prompt) for prompt in prompts]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that carry ``labels``."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and wanted <= set((match[1] or "").split(",")):
                total += float(match[2])
        return total

    def wait_for_metric(self, name: str, value: float) -> None:
        wait_for(lambda: self.metric(name) == value or None, f"{name} to be {value}", self)


def wait_for(look: Callable[[], Found | None], what: str, server: Server) -> Found:
    """Look until there is something to return; fail with the server's log if it takes long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no sign of {what}:\n{server.log.read_text()}")


@dataclass(frozen=True)
class Video:
    codec: str
    pixel_format: str
    size: tuple[int, int]
    fps: float
    num_frames: int
    index_first: bool


def probe(path: Path) -> Video:
    """Decode every frame of ``path`` with ffmpeg."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    num_frames = sum(1 for _ in reader)
    data = path.read_bytes()
    return Video(
        codec=meta["codec"],
        pixel_format=meta["pix_fmt"].partition("(")[0],
        size=meta["source_size"],
        fps=meta["fps"],
        num_frames=num_frames,
        index_first=0 < data.find(b"moov") < data.find(b"mdat"),
    )
