"""Faults into the whole site, seeded: what must hold after each, looked at from outside.

``make chaos SEED=1 ROUNDS=50`` on a lab that stands. In every round clients ask for videos
through the edge, poll, cancel; meanwhile one fault happens, and is taken back. Then no accepted
job may be lost or made twice, no file be half, and both workers must be back. A round follows from
its seed alone; what was broken is printed with the command that makes the round again.
"""

import argparse
import hashlib
import http.client
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from chaos_faults import FAULTS, WORKERS, Hands
from chaos_plan import (
    Accepted,
    Ask,
    Broken,
    Ended,
    Evidence,
    Round,
    Video,
    asks_of,
    fault_of,
    judge,
    table,
    verdict,
)
from chaos_share import Share
from lab.errors import LabError
from lab.hosts import Site, read_site
from lab.settings import REPOSITORY, Paths, load_scenario

NAME = "t2v.sanchuang.ai"
RECOVERY_SECONDS = 240.0
ALERT_SECONDS = 300.0
_APART = "T2V_CHAOS_APART"
# Answers after which a careful client sends the same request again.
_AGAIN = {429, 500, 502, 503, 504, 507}


class BrokenError(AssertionError):
    """A promise was broken; the message says which."""


@dataclass(frozen=True)
class Answer:
    """One answer of the edge; ``worker`` is empty where none of them gave it."""

    status: int
    body: bytes
    worker: str

    def json(self) -> dict[str, object]:
        """The object in the body."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass
class Client:
    """A user of the site who does not give up before ``deadline``, by the monotonic clock."""

    address: str
    deadline: float = math.inf

    def once(
        self, method: str, path: str, body: str | None = None, key: str = "", seconds: float = 20
    ) -> Answer:
        """One request. Raises OSError or HTTPException where there is no whole answer."""
        connection = http.client.HTTPConnection(self.address, timeout=seconds)
        headers = {"Host": NAME, "Accept": "application/json", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            worker = answer.headers.get("X-T2V-Instance", "")
            return Answer(answer.status, answer.read(), worker)
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: str | None = None, key: str = "") -> Answer:
        """The same until there is an answer that is not a request to come again."""
        last = "nothing"
        while time.monotonic() < self.deadline:
            try:
                answer = self.once(method, path, body, key)
                if answer.status not in _AGAIN:
                    return answer
                last = f"{answer.status} {answer.body[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                last = str(error) or type(error).__name__
            time.sleep(0.3)
        raise BrokenError(
            f"{method} {path} found no answer in {RECOVERY_SECONDS:.0f} s, but {last}"
        )


@dataclass
class Watcher:
    """Looks at the share all the time: what a new file is when it first has its final name."""

    directory: Path
    seen: dict[str, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """From here on, and in a thread of its own."""
        for path in self.directory.glob("[!.]*.mp4"):
            self.seen[path.stem] = ""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(10)

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            for path in self.directory.glob("[!.]*.mp4"):
                if path.stem not in self.seen:
                    with suppress(OSError):
                        self.seen[path.stem] = _digest(path)


@dataclass
class Chaos:
    """All rounds of one run."""

    hands: Hands
    client: Client
    watcher: Watcher
    sabotage: str = ""
    tag: str = field(default_factory=lambda: f"chaos-{uuid.uuid4().hex[:12]}")
    accepted: dict[str, Accepted] = field(default_factory=dict)
    earlier: dict[str, Video] = field(default_factory=dict)

    def round(self, seed: int) -> Round:
        """One round; whatever is broken is in the result."""
        began = time.monotonic()
        result = Round(seed, fault_of(seed))
        fault = FAULTS[result.fault]
        # What is drawn for the jobs and for the fault do not depend on each other.
        asks = asks_of(random.Random(f"jobs {seed}"))
        self.hands.rng = random.Random(f"fault {seed}")
        self.hands.note = ""
        moment = self.hands.rng.uniform(0.5, 5)
        hold = self.hands.rng.uniform(*fault.hold)
        self.client.deadline = math.inf
        self.accepted = {}
        undone = began
        try:
            with fault.prepare(self.hands):
                if self.hands.note:
                    self._wait_until_ready()
                with ThreadPoolExecutor(len(asks)) as pool:
                    clients = [pool.submit(self._job, seed, ask) for ask in asks]
                    try:
                        time.sleep(moment)
                        with fault.act(self.hands):
                            if fault.alerts:
                                self._wait_for_alerts(fault.alerts, True, ALERT_SECONDS)
                            else:
                                time.sleep(hold)
                    except BaseException:
                        self.client.deadline = 0  # nobody waits for what nobody will see
                        raise
                    undone = time.monotonic()
                    self.client.deadline = undone + RECOVERY_SECONDS
                    for one in clients:
                        one.result()
                if fault.converge:
                    self.hands.converge()
                    self.client.deadline = time.monotonic() + RECOVERY_SECONDS
                evidence = self._evidence(seed, fault.codes)
                # First of all, whatever else goes wrong: the jobs.
                result.broken = judge(evidence)
                result.outcomes = Counter(
                    job.code or job.status for job in evidence.jobs.values() if job
                )
                self.earlier |= evidence.videos
                self._wait_until_ready()
            result.recovery = time.monotonic() - undone
            self._wait_for_targets()
            if fault.alerts:
                self._wait_for_alerts(fault.alerts, False, ALERT_SECONDS)
                result.alerts = sorted({name for name, _ in fault.alerts})
        except (
            *(AssertionError, OSError, LabError, http.client.HTTPException),
            *(subprocess.SubprocessError, json.JSONDecodeError),
        ) as error:
            detail = getattr(error, "stderr", "") or ""
            result.broken.append(Broken("other", f"{error} {detail}".strip()))
        result.jobs = len(self.accepted)
        result.note = self.hands.note
        result.seconds = time.monotonic() - began
        return result

    def _job(self, seed: int, ask: Ask) -> None:
        """One client's job, from asking to looking at it a few times, or cancelling it."""
        time.sleep(ask.delay)
        prompt = f"{self._prompts(seed)}{uuid.uuid4().hex}"
        body = {"prompt": prompt, "num_inference_steps": ask.steps, "seed": 1}
        answer = self.client.ask("POST", "/v1/videos", json.dumps(body), uuid.uuid4().hex)
        if answer.status not in (200, 201, 202):
            raise BrokenError(f"a submission was answered {answer.status}: {answer.body[:300]!r}")
        job_id = str(answer.json()["id"])
        accepted = self.accepted[job_id] = Accepted(prompt)
        if ask.cancel_after is not None:
            time.sleep(ask.cancel_after)
            accepted.asked_to_cancel = True
            answer = self.client.ask("POST", f"/v1/videos/{job_id}/cancel")
            if answer.status != 200:
                raise BrokenError(f"job {job_id}: cancelling was answered {answer.status}")
            accepted.cancelled = answer.json()["status"] == "failed"
        elif ask.polled:
            self._ended(job_id)

    def _ended(self, job_id: str) -> Ended | None:
        while True:
            answer = self.client.ask("GET", f"/v1/videos/{job_id}")
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise BrokenError(f"job {job_id}: a look at it was answered {answer.status}")
            job = answer.json()
            error = job["error"]
            ended = Ended(
                status=str(job["status"]),
                code=str(error["code"]) if isinstance(error, dict) else "",
                num_bytes=int(str(job["num_bytes"] or 0)),
            )
            over = time.monotonic() + 1 > self.client.deadline
            if over or ended.status in ("completed", "failed"):
                return ended
            time.sleep(0.3)

    def _evidence(self, seed: int, codes: frozenset[str]) -> Evidence:
        jobs = {job_id: self._ended(job_id) for job_id in self.accepted}
        if self.sabotage:
            self._break_a_promise(jobs)
        return Evidence(
            accepted=dict(self.accepted),
            jobs=jobs,
            listed=self._listed(seed),
            videos=self._videos(seed),
            earlier={job_id: (was, self._now(job_id)) for job_id, was in self.earlier.items()},
            allowed=codes,
        )

    def _prompts(self, seed: int) -> str:
        """What the prompts of this round begin with, and no others."""
        return f"{self.tag}-{seed}-"

    def _listed(self, seed: int) -> Counter[str]:
        """Prompts of this round's jobs, as the service lists them: the newest come first."""
        found: Counter[str] = Counter()
        after, more, oldest = "", True, min(self.accepted, default="")
        while more:
            page = self.client.ask("GET", f"/v1/videos?limit=100{after}").json()
            data = page["data"]
            assert isinstance(data, list)
            prompts = [str(job["prompt"]) for job in data]
            found.update(one for one in prompts if one.startswith(self._prompts(seed)))
            more = bool(page["has_more"]) and str(page["last_id"]) > oldest
            after = f"&after={page['last_id']}"
        return found

    def _videos(self, seed: int) -> dict[str, Video]:
        """This round's files: what was asked for in it, or what a client was told."""
        found = {}
        for path in self.watcher.directory.glob("[!.]*.mp4"):
            if path.stem not in self.earlier:
                prompt = _prompt(path)
                if prompt.startswith(self._prompts(seed)) or path.stem in self.accepted:
                    found[path.stem] = self._video(path, prompt)
        return found

    def _now(self, job_id: str) -> Video | None:
        """A file of an earlier round, as it is now."""
        path = self.watcher.directory / f"{job_id}.mp4"
        if not path.exists():
            return None
        was = self.earlier[job_id]
        return replace(was, digest=_digest(path), inode=path.stat().st_ino)

    def _video(self, path: Path, prompt: str) -> Video:
        fetched = ""
        if path.stem in self.accepted:
            answer = self.client.ask("GET", f"/v1/videos/{path.stem}/content")
            if answer.status == 200:
                fetched = hashlib.sha256(answer.body).hexdigest()
        stat = path.stat()
        return Video(
            prompt=prompt,
            num_bytes=stat.st_size,
            digest=_digest(path),
            inode=stat.st_ino,
            frames=_frames(path),
            first_digest=self.watcher.seen.get(path.stem, ""),
            fetched=fetched,
        )

    def _break_a_promise(self, jobs: dict[str, Ended | None]) -> None:
        """What a broken site would do: chaos must notice it."""
        job_id = next(key for key, job in jobs.items() if job and job.status == "completed")
        path = self.watcher.directory / f"{job_id}.mp4"
        if self.sabotage == "remove":
            path.unlink()
        elif self.sabotage == "truncate":
            os.truncate(path, path.stat().st_size // 2)
        else:
            twin = path.with_name("01" + job_id[2:][::-1] + ".mp4")
            twin.write_bytes(path.read_bytes())
            twin.with_suffix(".json").write_bytes(path.with_suffix(".json").read_bytes())

    def wait_until_whole(self) -> None:
        """Before the next round: both workers are ready, and Prometheus sees everybody."""
        self.client.deadline = time.monotonic() + RECOVERY_SECONDS
        self._wait_until_ready()
        self._wait_for_targets()

    def _wait_until_ready(self) -> None:
        """Both workers answer through the edge that they are ready."""
        seen: set[str] = set()
        deadline = min(self.client.deadline, time.monotonic() + RECOVERY_SECONDS)
        while seen != set(WORKERS):
            with suppress(OSError, http.client.HTTPException):
                answer = self.client.once("GET", "/ready", seconds=5)
                if answer.status == 200:
                    seen.add(answer.worker)
            if time.monotonic() > deadline:
                raise BrokenError(f"ready through the edge are only: {', '.join(seen) or 'none'}")
            time.sleep(0.1)

    def _wait_for_targets(self) -> None:
        """Prometheus sees everybody again."""
        url = (
            f"http://{self.hands.site.host('prometheus').address}:9090/api/v1/targets?state=active"
        )
        deadline = time.monotonic() + 120
        while True:
            down = {"Prometheus itself"}
            with suppress(OSError, http.client.HTTPException):
                with urllib.request.urlopen(url, timeout=10) as answer:
                    active = json.load(answer)["data"]["activeTargets"]
                down = {
                    f"{one['labels']['job']} of {one['labels']['instance']}"
                    for one in active
                    if one["health"] != "up"
                }
            if not down:
                return
            if time.monotonic() > deadline:
                raise BrokenError(f"Prometheus does not see: {', '.join(sorted(down))}")
            time.sleep(1)

    def _wait_for_alerts(
        self, wanted: frozenset[tuple[str, str]], firing: bool, seconds: float
    ) -> None:
        """Alertmanager has all of them, or none of them any more."""
        address = self.hands.site.host("prometheus").address
        url = f"http://{address}:9093/api/v2/alerts?active=true"
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError, http.client.HTTPException):
                with urllib.request.urlopen(url, timeout=10) as answer:
                    found = [one["labels"] for one in json.load(answer)]
                now = {(one["alertname"], one.get("instance", "")) for one in found}
                if wanted <= now if firing else not wanted & now:
                    return
            if time.monotonic() > deadline:
                names = ", ".join(f"{name} of {host}" for name, host in sorted(wanted))
                what = "have not fired" if firing else "have not ended"
                raise BrokenError(f"alerts {what} in {seconds:.0f} s: {names}")
            time.sleep(1)


def _prompt(path: Path) -> str:
    """What the file beside the video says of its prompt; empty where there is none."""
    described = path.with_suffix(".json")
    if not described.exists():
        return ""
    return str(json.loads(described.read_text())["parameters"]["prompt"])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _frames(path: Path) -> int:
    """How many frames ffprobe decodes; 0 where it decodes none."""
    options = ("-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames")
    command = ["ffprobe", *options, "-of", "csv=p=0", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return int(done.stdout) if re.fullmatch(r"[0-9]+\s*", done.stdout) else 0


def say(text: str) -> None:
    """A line that is seen at once."""
    print(text, flush=True)


@contextmanager
def standing(hands: Hands, needs_share: bool) -> Iterator[Watcher]:
    """The lab, made ready for the rounds; all is put back after them, whatever ends them."""
    share = Share(hands.paths)
    bound = ("nfs-server", *WORKERS)
    with ExitStack() as stack:
        stack.callback(hands.put_back)
        if share.left():
            say("    an earlier run was killed: what it left is put back first")
            hands.off(*bound)
            share.attach()
            share.detach()
        hands.put_back()
        if needs_share:
            say("    the share gets a volume of its own: its hosts are powered off and on")
            hands.off(*bound)
            share.attach()
            hands.share = share
            stack.callback(share.detach)
            stack.callback(hands.off, *bound)
            hands.on(*bound)
        watcher = Watcher(share.directory)
        with watcher.running():
            yield watcher


def run(
    paths: Paths, site: Site, seeds: Sequence[int], sabotage: str = "", converge: bool = True
) -> Iterator[Round]:
    """Run the rounds of these seeds, one for each item that is asked for; then put all back.

    Last, site.yml goes over what they left. Raises BrokenError where the site is not whole,
    before the first round or after one that broke something.
    """
    hands = Hands(paths, site)
    needs_share = any(FAULTS[fault_of(seed)].share for seed in seeds)
    with standing(hands, needs_share) as watcher:
        chaos = Chaos(hands, Client(site.host("master").address), watcher, sabotage)
        chaos.wait_until_whole()
        for seed in seeds:
            result = chaos.round(seed)
            say(f"{time.strftime('%H:%M:%S')} {result.line()}")
            for one in result.broken:
                say(f"    BROKEN, {one.kind}: {one.sentence}")
            yield result
            if result.broken:
                say(f"    again: make chaos SEED={result.seed} ROUNDS=1")
                chaos.wait_until_whole()
    if converge:
        say("    site.yml goes over what the rounds left")
        said = hands.converge()
        for line in re.findall(r"^\S+ +: ok=.*$", said, re.MULTILINE):
            say(f"    {line}")


def main() -> int:
    """The exit status is 0 when every promise was kept in every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every round there, too")
    parser.add_argument("--no-converge", action="store_true", help="no site.yml at the end")
    parser.add_argument(
        "--sabotage",
        choices=("remove", "truncate", "double"),
        default="",
        help="break a promise in every round: chaos must notice it",
    )
    options = parser.parse_args()
    # A polite kill puts back what was done, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not os.environ.get(_APART):
        # What is mounted for the share is nobody else's (chaos_share.py).
        os.environ[_APART] = "yes"
        command = [sys.executable, *sys.argv]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *command])
    os.chdir(REPOSITORY)
    paths = Paths(os.environ.get("T2V_LAB") or "site")
    site = read_site(REPOSITORY / "inventory", load_scenario("site"))
    began = time.monotonic()
    results: list[Round] = []
    status = 0
    try:
        seeds = range(options.seed, options.seed + options.rounds)
        for result in run(paths, site, seeds, options.sabotage, not options.no_converge):
            results.append(result)
    except (AssertionError, LabError) as error:
        print(f"BROKEN: {error}", file=sys.stderr)
        status = 1
    except (KeyboardInterrupt, SystemExit):
        say("stopped; what was done is put back")
        status = 130
    say("")
    say(table(results))
    say(f"{verdict(results)}; {(time.monotonic() - began) / 60:.0f} minutes")
    if options.json:
        found = {"rounds": [one.as_dict() for one in results], "verdict": verdict(results)}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return status or (0 if all(one.survived for one in results) else 1)


if __name__ == "__main__":
    sys.exit(main())
