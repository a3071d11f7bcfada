"""Faults into a running server, seeded: no accepted job is lost, none is made twice.

As a program: ``python tests/server/faults.py --store sqlite --rounds 100 --seed 1``. Every round
starts jobs, does one thing to the server at a random moment, lets it recover and then looks at
every job and every file. What failed is printed with the seed that makes the round again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "files" / "server"), str(HERE)]

from harness import Server, free_port, probe  # noqa: E402
from redis_server import RedisServer  # noqa: E402

LEASE_SECONDS = 2
RECOVERY_SECONDS = 90.0
VOLUME_MIB = 48


class Wrong(AssertionError):
    """A promise was broken; the message says which."""


@dataclass
class Volume:
    """A small ext4 of its own, which can be filled and frozen. Needs root and loop devices."""

    mount: Path

    @classmethod
    @contextmanager
    def make(cls, directory: Path) -> Iterator[Volume]:
        image, mount = directory / "volume.img", directory / "volume"
        with image.open("wb") as stream:
            stream.truncate(VOLUME_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        mount.mkdir()
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        try:
            (mount / "videos").mkdir()
            yield cls(mount)
        finally:
            subprocess.run(["umount", mount], check=True)

    @property
    def videos(self) -> Path:
        return self.mount / "videos"

    def fill(self) -> None:
        with (self.mount / "filler").open("wb") as stream:
            block = bytes(1 << 20)
            try:
                while True:
                    stream.write(block)
            except OSError:
                return

    def empty(self) -> None:
        (self.mount / "filler").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Every write waits from now on, as on an NFS mount whose server is away."""
        subprocess.run(["fsfreeze", "--freeze", self.mount], check=True)

    def thaw(self) -> None:
        subprocess.run(["fsfreeze", "--unfreeze", self.mount], check=True)


@dataclass
class Site:
    """One server that is started again whenever a fault ended it, and what was promised so far."""

    volume: Volume
    state: Path
    port: int
    redis: RedisServer | None
    rng: random.Random
    stack: ExitStack = field(default_factory=ExitStack)
    accepted: dict[str, str] = field(default_factory=dict)  # id -> prompt
    digests: dict[str, str] = field(default_factory=dict)  # id -> SHA-256 when first completed

    def start(self) -> None:
        store = {"T2V_STORE": self.redis.url} if self.redis else {}
        self.server = self.stack.enter_context(
            Server.start(
                self.volume.videos,
                log=self.state.with_name("server.log"),
                T2V_BIND=f"127.0.0.1:{self.port}",
                T2V_STATE_DIR=str(self.state),
                T2V_ENGINES="2",
                T2V_LEASE=str(LEASE_SECONDS),
                T2V_GRACEFUL_TIMEOUT="10",
                T2V_QUEUE_SIZE="256",
                T2V_INSTANCE="faults",
                **store,
            )
        )

    def restart(self) -> None:
        """Start again once the old processes are gone."""
        self.stack.close()
        self.start()

    def submit(self, delay: float, steps: int, deadline: float) -> None:
        """As a careful client does: the same key until there is an answer."""
        time.sleep(delay)
        key, prompt = uuid.uuid4().hex, f"fault {uuid.uuid4().hex}"
        body = json.dumps({"prompt": prompt, "num_inference_steps": steps, "seed": 1})
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        while time.monotonic() < deadline:
            try:
                answer = self.server.request("POST", "/v1/videos", body, headers)
            except OSError:
                time.sleep(0.2)
                continue
            if answer.status in (200, 201, 202):
                self.accepted[str(answer.json()["id"])] = prompt
                return
            if answer.status not in (429, 503, 507):
                raise Wrong(f"a submission was answered {answer.status}: {answer.text}")
            time.sleep(0.2)
        raise Wrong(f"a submission found no answer in {RECOVERY_SECONDS:.0f} s")

    def ended(self, job_id: str, deadline: float) -> dict[str, object]:
        while time.monotonic() < deadline:
            try:
                answer = self.server.get(f"/v1/videos/{job_id}")
            except OSError:
                time.sleep(0.2)
                continue
            if answer.status == 404:
                raise Wrong(f"job {job_id} was accepted and is lost")
            if answer.status == 200 and answer.json()["status"] in ("completed", "failed"):
                return answer.json()
            time.sleep(0.1)
        raise Wrong(f"job {job_id} did not end in {RECOVERY_SECONDS:.0f} s")

    def check(self) -> Counter[str]:
        """Wait for every job, then compare jobs, files and what was seen in earlier rounds."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        outcomes: Counter[str] = Counter()
        completed = set()
        for job_id in self.accepted:
            job = self.ended(job_id, deadline)
            if job["status"] == "completed":
                outcomes["completed"] += 1
                completed.add(job_id)
                self._check_file(job_id, job)
                continue
            error = job["error"]
            if not isinstance(error, dict) or not error.get("code") or not error.get("message"):
                raise Wrong(f"job {job_id} failed without a reason: {job}")
            outcomes[str(error["code"])] += 1
        found = {path.stem for path in self.volume.videos.glob("[!.]*.mp4")}
        if found != completed:
            raise Wrong(f"files {sorted(found - completed)} belong to no completed job")
        listed = self._listed()
        if listed != set(self.accepted):
            raise Wrong(f"{len(listed)} jobs in the list for {len(self.accepted)} submissions")
        return outcomes

    def _check_file(self, job_id: str, job: dict[str, object]) -> None:
        path = self.volume.videos / f"{job_id}.mp4"
        if not path.exists():
            raise Wrong(f"job {job_id} is completed and has no file")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if self.digests.setdefault(job_id, f"{digest} {path.stat().st_ino}") != (
            f"{digest} {path.stat().st_ino}"
        ):
            raise Wrong(f"the file of job {job_id} was written a second time")
        if probe(path).num_frames != 9:
            raise Wrong(f"the file of job {job_id} is not whole")
        metadata = json.loads(path.with_suffix(".json").read_text())
        if metadata["parameters"]["prompt"] != self.accepted[job_id]:
            raise Wrong(f"the metadata of job {job_id} are another job's")
        if path.stat().st_size != job["num_bytes"]:
            raise Wrong(f"job {job_id} tells {job['num_bytes']} bytes, {path.stat().st_size} are")

    def _listed(self) -> set[str]:
        ids: set[str] = set()
        after = ""
        while True:
            page = self.server.get(f"/v1/videos?limit=100{after}").json()
            data = page["data"]
            assert isinstance(data, list)
            ids |= {str(job["id"]) for job in data}
            if not page["has_more"]:
                return ids
            after = f"&after={page['last_id']}"

    def forget_files(self) -> None:
        """Make room: the rounds share a small volume."""
        for job_id in self.accepted:
            answer = self.server.request("DELETE", f"/v1/videos/{job_id}")
            if answer.status != 200:
                raise Wrong(f"deleting {job_id} was answered {answer.status}: {answer.text}")
        self.accepted.clear()
        self.digests.clear()


def kill_engine(site: Site) -> None:
    os.kill(site.rng.choice(site.server.engine_pids()), signal.SIGKILL)


def stop_engine(site: Site) -> None:
    """Longer than its lease: another engine takes over, then the stopped one wakes up."""
    pid = site.rng.choice(site.server.engine_pids())
    os.kill(pid, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS + site.rng.uniform(1, 2))
    os.kill(pid, signal.SIGCONT)


def kill_gunicorn(site: Site) -> None:
    os.kill(site.server.gunicorn_pid(), signal.SIGKILL)


def kill_http_worker(site: Site) -> None:
    os.kill(site.rng.choice(site.server.http_worker_pids()), signal.SIGKILL)


def kill_server(site: Site) -> None:
    site.server.process.kill()
    site.server.process.wait()
    site.restart()


def terminate_server(site: Site) -> None:
    site.server.process.send_signal(signal.SIGTERM)
    site.server.process.wait(60)
    site.restart()


def kill_redis(site: Site) -> None:
    assert site.redis is not None
    site.redis.kill()
    time.sleep(site.rng.uniform(0, 1.5))
    site.redis.start()


def fill_disk(site: Site) -> None:
    site.volume.fill()
    time.sleep(site.rng.uniform(0.5, 3))
    site.volume.empty()


def stall_disk(site: Site) -> None:
    site.volume.freeze()
    time.sleep(site.rng.uniform(0.5, LEASE_SECONDS + 2))
    site.volume.thaw()


FAULTS: dict[str, Callable[[Site], None]] = {
    "engine killed": kill_engine,
    "engine stopped past its lease": stop_engine,
    "gunicorn killed": kill_gunicorn,
    "HTTP worker killed": kill_http_worker,
    "everything killed": kill_server,
    "SIGTERM": terminate_server,
    "disk full": fill_disk,
    "disk stalled": stall_disk,
}
REDIS_FAULTS = {**FAULTS, "Redis killed": kill_redis}


@dataclass
class Tally:
    rounds: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, fault: str, outcomes: Counter[str]) -> None:
        self.rounds[fault] += 1
        self.outcomes.setdefault(fault, Counter()).update(outcomes)

    def table(self) -> str:
        lines = [f"{'fault':<32}{'rounds':>7}{'jobs':>7}{'completed':>11}  failed, by reason"]
        for fault, rounds in sorted(self.rounds.items()):
            outcomes = self.outcomes[fault]
            failed = ", ".join(f"{code} {n}" for code, n in outcomes.items() if code != "completed")
            lines.append(
                f"{fault:<32}{rounds:>7}{outcomes.total():>7}{outcomes['completed']:>11}  {failed}"
            )
        total = sum(outcomes.total() for outcomes in self.outcomes.values())
        lines.append(f"{self.rounds.total()} rounds, {total} jobs accepted, 0 lost, 0 made twice")
        return "\n".join(lines)


def run(store: str, rounds: int, seed: int, say: Callable[[str], None] = print) -> Tally:
    """Run ``rounds`` rounds; round ``k`` follows from ``seed + k`` alone.

    Raises:
        Wrong: with the seed, at the first promise that was broken.
    """
    faults = REDIS_FAULTS if store == "redis" else FAULTS
    tally = Tally()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t2v-faults-")))
        volume = stack.enter_context(Volume.make(directory))
        redis = stack.enter_context(RedisServer.running(directory)) if store == "redis" else None
        state = directory / "state"
        state.mkdir()
        site = Site(volume, state, free_port(), redis, random.Random(seed))
        stack.callback(lambda: site.stack.close())
        site.start()
        site.server.wait_until_ready()
        for number in range(rounds):
            site.rng = random.Random(seed + number)
            # Every kind in turn, so that a short run has them all.
            fault = list(faults)[(seed + number) % len(faults)]
            try:
                outcomes = _round(site, faults[fault])
            except (Wrong, AssertionError, OSError) as error:
                log = site.server.log.read_text()[-6000:]
                raise Wrong(
                    f"{store}, {fault}: {error}\nagain: --store {store} --rounds 1 "
                    f"--seed {seed + number}\n{log}"
                ) from error
            tally.add(fault, outcomes)
            say(f"seed {seed + number}: {fault}: {dict(outcomes)}")
    return tally


def _round(site: Site, fault: Callable[[Site], None]) -> Counter[str]:
    deadline = time.monotonic() + RECOVERY_SECONDS
    # Drawn before any thread runs, so that the seed alone decides; some come before the fault,
    # some while it lasts, and the engines are busy all the while.
    plans = [
        (site.rng.uniform(0, 3), site.rng.randint(20, 200)) for _ in range(site.rng.randint(5, 9))
    ]
    with ThreadPoolExecutor(len(plans)) as pool:
        clients = [pool.submit(site.submit, delay, steps, deadline) for delay, steps in plans]
        time.sleep(site.rng.uniform(0.2, 2.5))
        fault(site)
        for client in clients:
            client.result()
    outcomes = site.check()
    site.forget_files()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "redis"), required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        tally = run(options.store, options.rounds, options.seed)
    except Wrong as error:
        print(f"BROKEN: {error}", file=sys.stderr)
        return 1
    print(tally.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
