"""Start, ask and stop a real server; look into the videos it made."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import imageio_ffmpeg
from t2v_server.metrics import directory_for, remove_directory

SERVER_ROOT = Path(__file__).parents[2] / "files" / "server"
START_SECONDS = 60.0
REQUEST_SECONDS = 120.0
STOP_SECONDS = 30.0

Found = TypeVar("Found")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def video(self) -> Path:
        """The path in a successful answer of ``/generate``."""
        match = re.fullmatch(r"Video generated at (/\S+\.mp4)\n", self.text)
        assert match, (self.status, self.text)
        return Path(match[1])

    def json(self) -> dict[str, Any]:
        data = json.loads(self.body)
        assert isinstance(data, dict)
        return data

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.json()["error"]["code"])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(output_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("T2V_")}
    return {
        **inherited,
        "PYTHONPATH": str(SERVER_ROOT),
        "T2V_OUTPUT_DIR": str(output_dir),
        "T2V_STATE_DIR": str(output_dir.with_name(output_dir.name + "-state")),
        "T2V_BIND": "127.0.0.1:0",
        "T2V_TORCH_THREADS": "1",
        "T2V_MIN_FREE_BYTES": "0",
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


PROGRAM = [sys.executable, "-m", "t2v_server"]


def run_program(
    *arguments: str, output_dir: Path, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of ``t2v-server`` to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=SERVER_ROOT,
        env=environment(output_dir, settings),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def run_to_end(output_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start a server that is expected to refuse its settings."""
    return run_program("serve", output_dir=output_dir, **settings)


class Server:
    """One running server: the supervisor, gunicorn and its workers, the engines."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        output_dir: Path,
        state_dir: Path,
        log: Path,
        said_before: int,
    ) -> None:
        self.process = process
        self.output_dir = output_dir
        self.state_dir = state_dir
        self.log = log
        self.port = self._listening_port(said_before)

    @classmethod
    @contextmanager
    def start(cls, output_dir: Path, log: Path | None = None, **settings: str) -> Iterator[Server]:
        log = log or output_dir.with_name(output_dir.name + ".log")
        said_before = log.stat().st_size if log.exists() else 0
        variables = environment(output_dir, settings)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [*PROGRAM, "serve"],
                cwd=SERVER_ROOT,
                env=variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield cls(process, output_dir, Path(variables["T2V_STATE_DIR"]), log, said_before)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            # A killed one leaves its metrics for the next start, which these never see.
            remove_directory(directory_for(Path(variables["T2V_STATE_DIR"])))

    def _listening_port(self, said_before: int) -> int:
        def port() -> int | None:
            said = self.log.read_bytes()[said_before:].decode(errors="replace")
            match = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", said)
            return int(match[1]) if match else None

        return wait_for(port, "the server to listen", self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        def look() -> bool | None:
            try:
                return self.get("/ready").status == 200 or None
            except OSError:
                return None

        wait_for(look, "readiness", self)

    # The processes.

    def children(self) -> dict[int, str]:
        """The supervisor's children: process ids and command lines."""
        return _children_of(self.process.pid)

    def engine_pids(self) -> list[int]:
        return sorted(pid for pid, line in self.children().items() if "t2v_server engine" in line)

    def wait_for_engines(self, number: int = 1) -> list[int]:
        def look() -> list[int] | None:
            pids = self.engine_pids()
            return pids if len(pids) == number else None

        return wait_for(look, f"{number} engines", self)

    def gunicorn_pid(self) -> int:
        def look() -> int | None:
            return next((pid for pid, line in self.children().items() if "gunicorn" in line), None)

        return wait_for(look, "gunicorn", self)

    def http_worker_pids(self) -> list[int]:
        def look() -> list[int] | None:
            return sorted(_children_of(self.gunicorn_pid())) or None

        return wait_for(look, "gunicorn's workers", self)

    def all_pids(self) -> set[int]:
        """Every process of the server, itself included."""
        found, new = set[int](), {self.process.pid}
        while new:
            found |= new
            new = {child for pid in new for child in _children_of(pid)} - found
        return found

    # Requests.

    def request(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        except http.client.HTTPException as error:  # the server went away half way
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def generate(self, prompt: str, **query: str) -> Answer:
        return self.get("/generate?" + urlencode({"prompt": prompt, **query}))

    def generate_later(
        self, pool: ThreadPoolExecutor, prompts: list[str], **query: str
    ) -> list[Future[Answer]]:
        return [pool.submit(self.generate, prompt, **query) for prompt in prompts]

    def post_json(
        self, path: str, data: object, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return self.request(
            "POST",
            path,
            json.dumps(data),
            {"Content-Type": "application/json", **(headers or {})},
        )

    def create(self, prompt: str, headers: Mapping[str, str] | None = None, **more: object) -> str:
        """Create a video; returns its id."""
        answer = self.post_json("/v1/videos", {"prompt": prompt, **more}, headers)
        assert answer.status == 200, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        answer = self.get(f"/v1/videos/{job_id}", headers)
        assert answer.status == 200, answer.text
        return answer.json()

    def wait_for_job(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until the job has ended, or has one of ``statuses``."""

        def look() -> dict[str, Any] | None:
            try:
                job = self.job(job_id)
            except OSError:
                return None
            return job if job["status"] in (statuses or ("completed", "failed")) else None

        return wait_for(look, f"job {job_id} to be {statuses or 'ended'}", self)

    def engine_status(self, index: int = 0) -> dict[str, Any]:
        """What an engine says of itself."""
        data = json.loads((self.state_dir / f"engine-{index}.json").read_text())
        assert isinstance(data, dict)
        return data

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that carry ``labels``."""
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and wanted <= set((match[1] or "").split(",")):
                total += float(match[2])
        return total

    def wait_for_metric(self, metric: str, value: float, **labels: str) -> None:
        wait_for(
            lambda: self.metric(metric, **labels) == value or None,
            f"{metric} {labels or ''} to be {value}",
            self,
        )


def _children_of(pid: int) -> dict[int, str]:
    found = {}
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return {}
    for child in children:
        try:
            line = Path(f"/proc/{child}/cmdline").read_bytes()
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found[int(child)] = line.replace(b"\0", b" ").decode()
    return found


def wait_for(
    look: Callable[[], Found | None], what: str, server: Server, seconds: float = START_SECONDS
) -> Found:
    """Look until there is something to return; fail with the server's log if it takes long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no sign of {what}:\n{server.log.read_text(errors='replace')[-8000:]}")


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
