"""Everything that is watched, on loopback: real programs where they can be had, and Prometheus.

Real: the video server with the tiny model, node_exporter, the registry, nginx and Redis with
their exporters, Alertmanager, and Prometheus with the role's rules. Stand-ins (``stand_ins.py``):
a GPU, a cluster, the kernel's NFS server and systemd, which a container has not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import stand_ins

ROOT = Path(__file__).resolve().parents[2]
SERVER_PYTHON = ROOT / ".venv-server/bin/python"
PROGRAMS = (
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-node-exporter",
    "prometheus-nginx-exporter",
    "prometheus-redis-exporter",
    "docker-registry",
    "nginx",
    "redis-server",
)
START_SECONDS = 90.0


class Stack:
    """The running programs; ``url`` is Prometheus'."""

    def __init__(self, folder: Path) -> None:
        """``folder`` takes data, configuration and logs."""
        self.folder = folder
        self.url = ""
        self.server = ""
        self.registry = ""
        self.edge = ""
        # What is scraped: job to address.
        self.addresses: dict[str, str] = {}
        self._programs: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *command: str | Path, **settings: str) -> None:
        """Start a program; its output goes to a file of its name."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.folder,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._programs.append((name, process))

    def wait_for(self, url: str, seconds: float = START_SECONDS) -> None:
        """Wait until there is an answer; a program that ended says why."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, process in self._programs:
                if process.poll() is not None:
                    raise RuntimeError(f"{name} has ended: {self.log_of(name)}")
            try:
                ask(url)
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(f"no answer from {url} in {seconds:.0f} s: {self.log_of('server')}")

    def log_of(self, name: str) -> str:
        """The last lines that a program wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def pause(self, name: str, paused: bool) -> None:
        """Stop a program and all that it started as they are, or let them go on."""
        (process,) = [process for known, process in self._programs if known == name]
        for pid in _family(process.pid):
            os.kill(pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def stop(self) -> None:
        """End every program that was started, the last one first."""
        for _, process in reversed(self._programs):
            if process.poll() is None:
                process.terminate()
        for _, process in reversed(self._programs):
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def query(self, expr: str) -> list[Any]:
        """The series of an expression, now. Raises ValueError where Prometheus refuses it."""
        return self._api("query", {"query": expr})

    def query_range(self, expr: str, seconds: float, step: float) -> list[Any]:
        """Its series over the last seconds."""
        now = time.time()
        return self._api(
            "query_range",
            {"query": expr, "start": str(now - seconds), "end": str(now), "step": str(step)},
        )

    def _api(self, path: str, parameters: dict[str, str]) -> list[Any]:
        try:
            text = ask(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters['query']}: {error.read().decode()}") from error
        result = json.loads(text)["data"]["result"]
        assert isinstance(result, list)
        return result

    def work(self) -> None:
        """A little of everything that the dashboards show: videos, refusals, pulls, requests."""
        body = json.dumps({"prompt": "a dog"}).encode()
        made = json.loads(ask(f"{self.server}/v1/videos", body))
        for path in (f"/v1/videos/{made['id']}", "/v1/videos", "/generate?prompt=a%20cat"):
            ask(self.server + path)
        for path in ("/generate", "/v1/videos/unknown"):
            try:
                ask(self.server + path)
            except urllib.error.HTTPError as error:
                error.close()
        ask(f"{self.registry}/v2/")
        ask(f"{self.edge}/status")


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def ask(url: str, body: bytes | None = None) -> str:
    """What a URL answers."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serve(page: Callable[[], str]) -> Iterator[str]:
    """Serve what ``page`` gives at /metrics; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page().encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def running(folder: Path, interval: str = "1s") -> Iterator[Stack]:
    """Start all of it, scraped at the interval; end it in any case."""
    stack = Stack(folder)
    with ExitStack() as cleanup:
        cleanup.callback(stack.stop)
        targets = {
            "wan22-service": ("worker1", "workers", _server(stack)),
            "node": ("worker1", "workers", _node(stack)),
            "registry": ("harbor", "harbor", _registry(stack)),
            "edge": ("master", "masters", _edge(stack)),
            "redis": ("master", "masters", _redis(stack)),
            "alertmanager": ("prometheus", "prometheus", _alertmanager(stack)),
            "dcgm": ("worker1", "workers", cleanup.enter_context(serve(stand_ins.dcgm))),
            "kube-state-metrics": (
                "kube-state-metrics",
                "masters",
                cleanup.enter_context(serve(stand_ins.kube_state_metrics)),
            ),
        }
        stack.addresses = {job: address for job, (_, _, address) in targets.items()}
        nfs = cleanup.enter_context(serve(stand_ins.nfs_server))
        _prometheus(stack, targets, nfs, interval)
        stack.wait_for(f"{stack.server}/ready")
        yield stack


def _server(stack: Stack) -> str:
    port = free_port()
    (stack.folder / "videos").mkdir()
    stack.server = f"http://127.0.0.1:{port}"
    stack.start(
        "server",
        SERVER_PYTHON,
        "-m",
        "t2v_server",
        "serve",
        PYTHONPATH=str(ROOT / "files/server"),
        T2V_OUTPUT_DIR=str(stack.folder / "videos"),
        T2V_STATE_DIR=str(stack.folder / "state"),
        T2V_BIND=f"127.0.0.1:{port}",
        T2V_TORCH_THREADS="1",
        T2V_MIN_FREE_BYTES="0",
        T2V_GRACEFUL_TIMEOUT="5",
    )
    return f"127.0.0.1:{port}"


def _node(stack: Stack) -> str:
    """With what the role nfs_server's own program says of a directory here."""
    port, texts = free_port(), stack.folder / "textfile"
    texts.mkdir()
    subprocess.run(
        [
            "sh",
            ROOT / "roles/nfs_server/files/t2v-capacity",
            stack.folder,
            "85",
            texts / "t2v_nfs.prom",
        ],
        check=True,
        timeout=20,
    )
    (texts / "t2v_certificates.prom").write_text(stand_ins.certificates())
    stack.start(
        "node_exporter",
        "prometheus-node-exporter",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--collector.textfile.directory={texts}",
        # A container's root is an overlay, which is left out by default.
        "--collector.filesystem.fs-types-exclude=^(proc|sysfs|cgroup2?|devpts|mqueue)$",
    )
    return f"127.0.0.1:{port}"


def _registry(stack: Stack) -> str:
    port, debug = free_port(), free_port()
    config = stack.folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {stack.folder}/registry}}}}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n  secret: none\n"
        f"  debug: {{addr: '127.0.0.1:{debug}', prometheus: {{enabled: true, path: /metrics}}}}\n"
    )
    stack.start("registry", "docker-registry", "serve", config)
    stack.registry = f"http://127.0.0.1:{port}"
    return f"127.0.0.1:{debug}"


def _edge(stack: Stack) -> str:
    port, exporter = free_port(), free_port()
    config = stack.folder / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # for root alone by default
    temporary = "".join(f"{kind}_temp_path {stack.folder}/nginx-{kind};" for kind in kinds)
    config.write_text(
        f"daemon off; pid {stack.folder}/nginx.pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\n server {{ listen 127.0.0.1:{port};\n"
        "  location = /status { stub_status; } } }\n"
    )
    stack.start("nginx", "nginx", "-p", stack.folder, "-e", "stderr", "-c", config)
    stack.edge = f"http://127.0.0.1:{port}"
    stack.start(
        "nginx_exporter",
        "prometheus-nginx-exporter",
        f"-nginx.scrape-uri=http://127.0.0.1:{port}/status",
        "-nginx.retries=20",
        f"-web.listen-address=127.0.0.1:{exporter}",
    )
    return f"127.0.0.1:{exporter}"


def _redis(stack: Stack) -> str:
    port, exporter = free_port(), free_port()
    data = stack.folder / "redis"
    data.mkdir()
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(data),
        "appendonly": "yes",
        "maxmemory": "268435456",
        "save": "",
    }
    stack.start(
        "redis",
        "redis-server",
        *[part for key, value in options.items() for part in (f"--{key}", value)],
    )
    stack.start(
        "redis_exporter",
        "prometheus-redis-exporter",
        f"-redis.addr=redis://127.0.0.1:{port}",
        f"-web.listen-address=127.0.0.1:{exporter}",
    )
    return f"127.0.0.1:{exporter}"


def _alertmanager(stack: Stack) -> str:
    port = free_port()
    config = stack.folder / "alertmanager.yml"
    config.write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    stack.start(
        "alertmanager",
        "prometheus-alertmanager",
        f"--config.file={config}",
        f"--storage.path={stack.folder}/alertmanager",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )
    return f"127.0.0.1:{port}"


def _prometheus(
    stack: Stack, targets: dict[str, tuple[str, str, str]], nfs: str, interval: str
) -> None:
    port = free_port()
    me = f"127.0.0.1:{port}"
    found = [*((job, *rest) for job, rest in targets.items()), ("node", "nfs-server", "nfs", nfs)]
    found.append(("prometheus", "prometheus", "prometheus", me))
    jobs: dict[str, list[dict[str, Any]]] = {}
    for job, instance, group, address in found:
        labels = {"instance": instance, "group": group}
        jobs.setdefault(job, []).append({"targets": [address], "labels": labels})
    config = stack.folder / "prometheus.json"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": interval, "evaluation_interval": interval},
                "rule_files": [str(ROOT / "roles/prometheus/files/rules/*.yml")],
                "alerting": {
                    "alertmanagers": [
                        {"static_configs": [{"targets": [targets["alertmanager"][2]]}]}
                    ]
                },
                "scrape_configs": [
                    {"job_name": job, "static_configs": each} for job, each in jobs.items()
                ],
            }
        )
    )
    stack.start(
        "prometheus",
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={stack.folder}/prometheus",
        f"--web.listen-address={me}",
        "--rules.alert.resend-delay=2s",
        "--log.level=warn",
    )
    stack.url = f"http://{me}"
    stack.wait_for(f"{stack.url}/-/ready")
