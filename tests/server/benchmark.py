"""What the server costs beside the pipeline, and how soon it answers: ratios of one run.

``python tests/server/benchmark.py``. The bare pipeline and ``/generate`` make the same videos,
turn by turn, with the same number of threads; then 50 clients create and look at jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "files" / "server"), str(HERE)]

from harness import Server  # noqa: E402

CLIENTS = 50


def overhead(server: Server, rounds: int, steps: int) -> str:
    """Compare a bare pipeline call with a generation over HTTP, in turns."""
    from t2v_server.engine.encoding import encode_mp4
    from t2v_server.engine.generator import load_generator
    from t2v_server.jobs.record import Parameters
    from t2v_server.profiles import TINY, VideoParameters

    generator = load_generator("tiny", "cpu", "auto", 1)
    video = VideoParameters(**{**vars(TINY.defaults), "num_inference_steps": steps})
    parameters = Parameters("a dog", "", 1, video)

    def bare() -> None:
        with tempfile.TemporaryDirectory() as directory:
            encode_mp4(generator.generate(parameters), Path(directory) / "a.mp4", video.fps)

    def served() -> None:
        answer = server.generate("a dog", seed="1", num_inference_steps=str(steps))
        assert answer.status == 200, answer.text

    for one in (bare, served):
        one()  # warm
    times: dict[Callable[[], None], list[float]] = {bare: [], served: []}
    for _ in range(rounds):
        for one in (bare, served):
            started = time.perf_counter()
            one()
            times[one].append(time.perf_counter() - started)
    plain, over_http = (statistics.median(times[one]) for one in (bare, served))
    allowed = plain * 1.05 + 0.020
    return (
        f"{steps:>4} steps: bare {plain * 1000:7.1f} ms, through HTTP {over_http * 1000:7.1f} ms, "
        f"ratio {over_http / plain:.3f} (5 % + 20 ms would be {allowed * 1000:.1f} ms: "
        f"{'within' if over_http <= allowed else 'OVER'})"
    )


def latencies(server: Server, requests: int) -> list[str]:
    """Create, then look at jobs with 50 clients at once, while an engine works on them."""
    jobs = list[str]()
    lock = threading.Lock()

    def create(number: int) -> float:
        started = time.perf_counter()
        answer = server.post_json("/v1/videos", {"prompt": f"number {number}"})
        took = time.perf_counter() - started
        assert answer.status == 200, answer.text
        with lock:
            jobs.append(str(answer.json()["id"]))
        return took

    def look(number: int) -> float:
        started = time.perf_counter()
        answer = server.get(f"/v1/videos/{jobs[number % len(jobs)]}")
        took = time.perf_counter() - started
        assert answer.status == 200, answer.text
        return took

    lines = []
    for title, one in (("POST /v1/videos", create), ("GET /v1/videos/{id}", look)):
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            times = sorted(pool.map(one, range(requests)))
        rate = requests / (time.perf_counter() - started)
        lines.append(f"{title:<20} {CLIENTS} clients: {_percentiles(times)}, {rate:.0f} a second")
    return lines


def _percentiles(times: Sequence[float]) -> str:
    return ", ".join(
        f"p{percent} {times[min(len(times) - 1, len(times) * percent // 100)] * 1000:.1f} ms"
        for percent in (50, 99)
    )


def main() -> int:
    """Print the figures; nothing here fails for being slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--store", default="sqlite", help="sqlite or a redis:// URL")
    options = parser.parse_args()
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    with tempfile.TemporaryDirectory(prefix="t2v-benchmark-") as name:
        videos = Path(name) / "videos"
        videos.mkdir()
        with Server.start(videos, T2V_QUEUE_SIZE="4096", T2V_STORE=options.store) as server:
            server.wait_until_ready()
            for steps in (10, 50, 150):
                print(overhead(server, options.rounds, steps), flush=True)
            for line in latencies(server, options.requests):
                print(line, flush=True)
            print(json.dumps({"store": options.store, "rounds": options.rounds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
