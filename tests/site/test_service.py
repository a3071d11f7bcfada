"""What a user of ``t2v.sanchuang.ai`` was promised, with the real thing behind it."""

import http.client
import json
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge import Answer, Edge
from machines import Machines

WORKERS = {"worker1", "worker2"}


def ask(edge: Edge, count: int, prompt: str) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda i: edge.generate(f"{prompt} {i}"), range(count)))


def probe(path: Path) -> dict[str, object]:
    shown = subprocess.run(
        [
            "ffprobe",
            "-v",
            "error",
            "-count_frames",
            "-show_entries",
            "stream=codec_name,width,height,nb_read_frames",
            "-of",
            "json",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    streams = json.loads(shown)["streams"]
    assert len(streams) == 1
    return dict(streams[0])


def test_fifty_at_once_get_fifty_different_valid_videos_from_both_workers(
    edge: Edge, machines: Machines, tmp_path: Path
) -> None:
    answers = ask(edge, 50, "a dog running")

    assert Counter(answer.status for answer in answers) == {200: 50}
    paths = {answer.path for answer in answers}
    assert len(paths) == 50
    assert {answer.worker for answer in answers} == WORKERS

    # Every file as the *other* worker sees it: the directory is shared.
    names = " ".join(Path(path).name for path in paths)
    archive = machines.ssh("worker1", f"tar -C /shared/videos -cf - {names}")
    subprocess.run(["tar", "-C", tmp_path, "-xf", "-"], input=archive, check=True)
    for path in paths:
        stream = probe(tmp_path / Path(path).name)
        assert stream["codec_name"] == "h264"
        assert (stream["width"], stream["height"], stream["nb_read_frames"]) == (64, 64, "9")


def test_without_a_prompt_the_documented_refusal_comes_through(edge: Edge) -> None:
    answer = edge.get("/generate")
    assert (answer.status, answer.body) == (400, "missing prompt\n")


def test_health_readiness_and_metrics_are_reachable(edge: Edge) -> None:
    assert edge.get("/healthz").body.strip() == "ok"
    assert edge.get("/ready").status == 200


def test_another_host_name_is_not_served(edge: Edge) -> None:
    assert edge.get("/healthz").status == 200
    # Closed without an answer, by the same nginx that has just answered.
    with pytest.raises(http.client.RemoteDisconnected):
        Edge(edge.address, "example.org").get("/healthz")


def test_a_worker_whose_plug_is_pulled_costs_no_request_and_comes_back(
    edge: Edge, machines: Machines
) -> None:
    with ThreadPoolExecutor(48) as pool:
        asked = [pool.submit(edge.generate, f"plug {i}", 180.0) for i in range(48)]
        time.sleep(0.5)
        machines.power("off", "worker2")
        # Asked before, while the plug was pulled, and after.
        asked += [pool.submit(edge.generate, f"after {i}", 180.0) for i in range(12)]
        answers = [one.result() for one in asked]
    assert Counter(answer.status for answer in answers) == {200: 60}
    assert len({answer.path for answer in answers}) == 60
    # Some were with worker2 when it died, and were asked of worker1 again.
    log = machines.ssh("master", "tail -n 200 /var/log/nginx/access.log").decode()
    assert '"192.168.0.22:31080, 192.168.0.21:31080"' in log
    assert {answer.worker for answer in ask(edge, 8, "one left")} == {"worker1"}

    machines.power("on", "worker2")
    deadline = time.monotonic() + 120
    seen: set[str] = set()
    while seen != WORKERS and time.monotonic() < deadline:
        answers = ask(edge, 8, "back again")
        assert Counter(answer.status for answer in answers) == {200: 8}
        seen |= {answer.worker for answer in answers}
    assert seen == WORKERS
