"""A realistic mix through the API, with locust: submit, poll, download, cancel, delete.

Run as a program of its own (``python -m t2v_loadtest.mix``), because importing locust changes
Python's sockets and threads: settings in, records out, both as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import gevent
from locust import HttpUser, task
from locust.env import Environment
from locust.exception import StopUser

from t2v_loadtest.settings import Settings

SECONDS = 60.0  # for one request
POLL = 0.5  # where the server does not say how soon to ask again
PROMPTS = (
    "a dog running on a beach",
    "a cat dancing in the rain",
    "a paper boat on a river",
    "snow falling on a city at night",
    "a lighthouse in a storm",
    "a train crossing a bridge",
)


@dataclass
class Job:
    """One job, as its client saw it. ``wait``: until it was seen in progress, or ended."""

    accepted: float
    id: str
    status: str = "lost"
    cancelled: bool = False
    wait: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass
class Records:
    """``requests``: when it ended, what, seconds, status (0: no answer), what is wrong with it."""

    began: float = 0.0
    ended: float = 0.0
    requests: list[tuple[float, str, float, int, str]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


class Work:
    """What is left to do, shared by all users."""

    def __init__(self, settings: Settings) -> None:
        """The same seed gives the same prompts, and cancels the same jobs."""
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.left = settings.jobs
        self.running = 0
        self.records = Records()

    def take(self) -> tuple[str, bool, float] | None:
        """Prompt, whether it is cancelled, and after how long; ``None``: all are taken."""
        if self.left <= 0:
            return None
        self.left -= 1
        chosen = self.random.choice(PROMPTS)
        cancelled = self.random.random() < self.settings.cancel_share
        return chosen, cancelled, self.random.uniform(0, 2 * POLL)


class Client(HttpUser):
    """Somebody who wants videos, one after the other."""

    work: Work

    def wait_time(self) -> float:
        """Seconds in which a person looks at what was made."""
        return self.work.random.uniform(0, 2 * self.work.settings.think)

    def on_start(self) -> None:
        """Under the site's name, and without this machine's proxies."""
        self.client.trust_env = False
        self.client.headers["Host"] = self.work.settings.host
        if self.work.settings.token:
            self.client.headers["Authorization"] = f"Bearer {self.work.settings.token}"

    def _ask(self, method: str, path: str, name: str, **more: Any) -> tuple[int, bytes, Any]:
        """Status (0: no answer), body and headers. 429 tells a client to come back: no error."""
        with self.client.request(
            method, path, name=name, timeout=SECONDS, catch_response=True, **more
        ) as answer:
            if answer.status_code == 429 and "Retry-After" in answer.headers:
                answer.success()
            elif answer.status_code not in (200, 206):
                said = " ".join((answer.text or str(answer.error or "no answer")).split())
                answer.failure(f"{answer.status_code}: {said[:160]}")
            return answer.status_code, answer.content or b"", answer.headers

    @task
    def one_video(self) -> None:
        """From the prompt to the file, or to the change of mind."""
        taken = self.work.take()
        if taken is None:
            raise StopUser
        self.work.running += 1
        try:
            self._one(*taken)
        finally:
            self.work.running -= 1

    def _one(self, prompt: str, cancelled: bool, after: float) -> None:
        accepted = self._submit({"prompt": prompt, **self.work.settings.parameters})
        if accepted is None:
            return
        job = Job(time.time(), accepted, cancelled=cancelled)
        self.work.records.jobs.append(job)
        if cancelled:
            gevent.sleep(after)
            self._ask("POST", f"/v1/videos/{job.id}/cancel", "cancel")
        last = self._poll(job)
        if job.status == "completed":
            self._download(job, last)
        if job.status != "lost" and not self.work.settings.keep_videos:
            self._ask("DELETE", f"/v1/videos/{job.id}", "delete")

    def _submit(self, body: dict[str, Any]) -> str | None:
        """The job's id; a full queue is asked again when it says so."""
        end = time.time() + self.work.settings.job_timeout
        while time.time() < end:
            status, content, headers = self._ask("POST", "/v1/videos", "submit", json=body)
            if status == 200:
                return str(json.loads(content)["id"])
            if status != 429:
                return None
            gevent.sleep(float(headers.get("Retry-After", 1)))
        return None

    def _poll(self, job: Job) -> dict[str, Any]:
        """Look until it has ended, as often as the server says; returns what was seen last."""
        end = job.accepted + self.work.settings.job_timeout
        while time.time() < end:
            status, content, headers = self._ask("GET", f"/v1/videos/{job.id}", "poll")
            now = time.time() - job.accepted
            if status == 200:
                seen: dict[str, Any] = json.loads(content)
                if seen["status"] != "queued" and job.wait is None:
                    job.wait = now
                if seen["status"] in ("completed", "failed"):
                    job.status, job.seconds = seen["status"], now
                    job.error = (seen.get("error") or {}).get("code", "")
                    return seen
            gevent.sleep(float(headers.get("openai-poll-after-ms", POLL * 1000)) / 1000)
        return {}

    def _download(self, job: Job, seen: dict[str, Any]) -> None:
        status, content, _ = self._ask("GET", f"/v1/videos/{job.id}/content", "download")
        if status == 200 and (content[4:8] != b"ftyp" or len(content) != seen.get("num_bytes")):
            job.status, job.error = "failed", "not_the_video"


def run(settings: Settings) -> Records:
    """All jobs, by as many users at once."""
    work = Work(settings)
    environment = Environment(user_classes=[Client], host=settings.url)
    Client.work = work

    def note(name: str, response_time: float, response: Any, exception: Any, **_: Any) -> None:
        status = getattr(response, "status_code", 0) or 0
        error = "" if exception is None else str(exception)
        work.records.requests.append((time.time(), name, response_time / 1000, status, error))

    environment.events.request.add_listener(note)
    runner = environment.create_local_runner()
    work.records.began = time.time()
    runner.start(min(settings.users, settings.jobs), spawn_rate=settings.users)
    while work.left > 0 or work.running > 0:
        gevent.sleep(0.1)
    work.records.ended = time.time()
    runner.quit()
    return work.records


def main() -> None:
    """Of standard input, to standard output."""
    print(json.dumps(asdict(run(Settings.read(json.load(sys.stdin))))))


if __name__ == "__main__":
    main()
