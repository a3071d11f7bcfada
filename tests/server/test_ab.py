"""``ab``, as in the article: a thousand requests, fifty at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Server


def run_ab(server: Server, requests: int, clients: int, path: str) -> dict[str, int]:
    program = shutil.which("ab")
    if program is None:
        assert not os.environ.get("CI"), "no ab: apt-get install apache2-utils"
        pytest.skip("no ab: apt-get install apache2-utils")
    done = subprocess.run(
        [program, "-n", str(requests), "-c", str(clients), "-s", "120", server.url + path],
        capture_output=True, text=True, timeout=590, check=True,
    )  # fmt: skip
    found = {
        name: int(match[1])
        for name, pattern in (
            ("complete", r"Complete requests:\s+(\d+)"),
            ("failed", r"Failed requests:\s+(\d+)"),
            ("other", r"Non-2xx responses:\s+(\d+)"),
        )
        if (match := re.search(pattern, done.stdout))
    }
    return {"failed": 0, "other": 0, **found}


def test_a_thousand_requests_make_a_thousand_files(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with Server.start(
        videos, T2V_WIDTH="32", T2V_HEIGHT="32", T2V_FRAMES="1", T2V_STEPS="1", T2V_ENGINES="2"
    ) as server:
        server.wait_until_ready()

        result = run_ab(server, 1000, 50, "/generate?prompt=a%20dog%20running")

        assert result == {"complete": 1000, "failed": 0, "other": 0}
        assert len(list(videos.glob("*.mp4"))) == 1000
        assert server.metric("t2v_jobs_active") == 0
        server.wait_for_metric("t2v_jobs_total", 1000, outcome="completed")


def test_who_hits_the_bound_is_told_when_to_come_back_and_succeeds_then(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    with Server.start(
        videos, T2V_WIDTH="32", T2V_HEIGHT="32", T2V_FRAMES="1", T2V_STEPS="20", T2V_QUEUE_SIZE="4"
    ) as server:
        server.wait_until_ready()
        refusals = list[int]()
        depths = list[float]()

        def ask(number: int) -> int:
            """A client that honours Retry-After."""
            while True:
                answer = server.generate(f"number {number}")
                if answer.status != 429:
                    return answer.status
                refusals.append(int(answer.headers["Retry-After"]))
                time.sleep(refusals[-1])

        with ThreadPoolExecutor(21) as pool:
            answers = [pool.submit(ask, number) for number in range(20)]
            while not all(answer.done() for answer in answers):
                depths.append(server.metric("t2v_queue_depth"))
                time.sleep(0.05)

        assert [answer.result() for answer in answers] == [200] * 20
        assert len(refusals) > 0
        assert min(refusals) >= 1
        assert max(depths) <= 4  # the queue is bounded
        assert len(list(videos.glob("*.mp4"))) == 20
