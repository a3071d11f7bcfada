"""Many clients at once: every one gets its own whole file."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Server, probe

CLIENTS = 50  # as `ab -c 50` in the load test


def test_fifty_clients_get_fifty_videos_and_probes_are_answered_meanwhile(server: Server) -> None:
    prompts = [f"a dog running {number}" for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool, _SightingsOf(server.output_dir) as sightings:
        futures = server.generate_later(pool, prompts)
        slowest_probe = 0.0
        while not all(future.done() for future in futures):
            started = time.monotonic()
            assert server.get("/healthz").status == 200
            assert server.get("/metrics").status == 200
            slowest_probe = max(slowest_probe, time.monotonic() - started)
            time.sleep(0.1)
        answers = [future.result() for future in futures]

    assert [answer.status for answer in answers] == [200] * CLIENTS
    videos = {answer.video for answer in answers}
    assert len(videos) == CLIENTS
    for video in videos:
        assert probe(video).num_frames == 9
    assert slowest_probe < 3.0  # the probes' timeout in the Deployment

    # Whoever saw a final name saw the whole file at once.
    assert set(sightings.first_bytes) >= videos
    for video, first_bytes in sightings.first_bytes.items():
        assert first_bytes == video.read_bytes(), f"{video} was seen half written"
    assert not list(server.output_dir.glob(".*"))


class _SightingsOf:
    """Watches a directory and keeps what each video held when its name was first seen."""

    def __init__(self, directory: Path) -> None:
        self.first_bytes: dict[Path, bytes] = {}
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _SightingsOf:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._look()
        self._look()

    def _look(self) -> None:
        for path in self._directory.glob("[!.]*"):
            if path not in self.first_bytes:
                self.first_bytes[path] = path.read_bytes()
