"""What a round of chaos does, what must hold after it, and the table: no lab is needed here."""

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# In this order, one a round; every tenth round is a long one, which waits for its alerts.
QUICK = (
    "engine killed",
    "worker powered off",
    "worker cut off from the master",
    "job store killed",
    "share full",
    "registry down, container killed",
    "worker paused past its lease",
    "edge killed",
    "share stalled",
    "NFS server rebooted",
    "Docker killed",
    "network to the master slow",
    "gunicorn killed",
    "master powered off",
    "Prometheus killed",
    "controller killed in site.yml",
    "worker's /var full",
    "engine stopped past its lease",
    "every host powered off",
)
LONG = (
    "worker off until its alerts",
    "edge stopped until its alert",
    "job store stopped until its alerts",
    "container stopped until its alert",
    "NFS server off until its alert",
)
FRAMES = 9  # of a video of the tiny model
CANCELLED = "cancelled"


def fault_of(seed: int) -> str:
    """The fault of the round with this seed: ten that follow each other have a long one."""
    if seed % 10 == 9:
        return LONG[seed // 10 % len(LONG)]
    return QUICK[(seed - seed // 10) % len(QUICK)]


@dataclass(frozen=True)
class Ask:
    """One job of a round: asked for after ``delay`` seconds, cancelled after so many, or not."""

    delay: float
    steps: int
    cancel_after: float | None
    polled: bool


def asks_of(rng: random.Random) -> list[Ask]:
    """The jobs of a round; some come before the fault, some while it lasts."""
    return [
        Ask(
            delay=rng.uniform(0, 6),
            steps=rng.randint(20, 600),
            cancel_after=rng.uniform(0, 3) if rng.random() < 0.2 else None,
            polled=rng.random() < 0.5,
        )
        for _ in range(rng.randint(6, 10))
    ]


@dataclass
class Accepted:
    """What a client was told: the job's prompt, and whether it was cancelled for certain."""

    prompt: str
    asked_to_cancel: bool = False
    cancelled: bool = False


@dataclass(frozen=True)
class Ended:
    """A job as the service shows it at the end; ``code`` is why it failed."""

    status: str
    code: str = ""
    num_bytes: int = 0


@dataclass(frozen=True)
class Video:
    """A file of the share under its final name.

    first_digest: what it was when it was first seen, within moments of its appearance; fetched:
    what the edge sent for it. ``frames`` is 0 where it cannot be decoded. ``inode`` changes when
    it is written a second time.
    """

    prompt: str
    num_bytes: int
    digest: str
    inode: int
    frames: int
    first_digest: str = ""
    fetched: str = ""


@dataclass
class Evidence:
    """All that is known after a round. ``jobs`` has None for a job that the service denies.

    listed: prompts in the service's list; videos: files of this round; earlier: those of the
    rounds before, as they were and as they are; allowed: codes that jobs may have failed with.
    """

    accepted: Mapping[str, Accepted]
    jobs: Mapping[str, Ended | None]
    listed: Counter[str]
    videos: Mapping[str, Video]
    earlier: Mapping[str, tuple[Video, Video | None]] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Broken:
    """A promise that was broken: ``kind`` is lost, duplicated, partial or other."""

    kind: str
    sentence: str


def judge(evidence: Evidence) -> list[Broken]:
    """Every promise that the evidence shows to be broken."""
    found: list[Broken] = []
    for job_id, accepted in evidence.accepted.items():
        found += _judge_job(evidence, job_id, accepted)
    completed = {
        job_id for job_id, job in evidence.jobs.items() if job and job.status == "completed"
    }
    for job_id in sorted(set(evidence.videos) - completed):
        found.append(Broken("duplicated", f"the file {job_id} belongs to no completed job"))
    for prompt, count in sorted(evidence.listed.items()):
        if count > 1:
            found.append(Broken("duplicated", f"{count} jobs are listed for one: {prompt}"))
    unknown = set(evidence.listed) - {one.prompt for one in evidence.accepted.values()}
    for prompt in sorted(unknown):
        found.append(Broken("duplicated", f"a job is listed that no client was told of: {prompt}"))
    made = Counter(video.prompt for video in evidence.videos.values())
    for prompt, count in sorted(made.items()):
        if count > 1:
            found.append(Broken("duplicated", f"{count} files were made for one job: {prompt}"))
    for job_id, (before, now) in evidence.earlier.items():
        found += _judge_earlier(job_id, before, now)
    return found


def _judge_job(evidence: Evidence, job_id: str, accepted: Accepted) -> list[Broken]:
    job = evidence.jobs.get(job_id)
    if job is None:
        return [Broken("lost", f"job {job_id} was accepted and is not known any more")]
    if accepted.prompt not in evidence.listed:
        return [Broken("lost", f"job {job_id} was accepted and is not in the list")]
    if job.status == "completed":
        if accepted.cancelled:
            return [Broken("other", f"job {job_id} was cancelled and is completed")]
        return _judge_video(job_id, job, accepted, evidence.videos.get(job_id))
    if job.status != "failed":
        return [Broken("lost", f"job {job_id} did not end, it is {job.status}")]
    if not job.code:
        return [Broken("other", f"job {job_id} failed without a reason")]
    if job.code == CANCELLED and not accepted.asked_to_cancel:
        return [Broken("lost", f"job {job_id} was cancelled, and nobody asked for that")]
    if job.code != CANCELLED and job.code not in evidence.allowed:
        return [Broken("lost", f"job {job_id} failed with {job.code}, for which there is no cause")]
    return []


def _judge_video(job_id: str, job: Ended, accepted: Accepted, video: Video | None) -> list[Broken]:
    if video is None:
        return [Broken("lost", f"job {job_id} is completed and has no file")]
    found = []
    if video.num_bytes != job.num_bytes:
        sizes = f"{video.num_bytes} bytes and the job tells {job.num_bytes}"
        found.append(Broken("partial", f"the file of job {job_id} has {sizes}"))
    if video.frames != FRAMES:
        found.append(Broken("partial", f"the file of job {job_id} has {video.frames} frames"))
    if video.first_digest not in ("", video.digest):
        said = "was seen under its final name with other bytes than it has now"
        found.append(Broken("partial", f"the file of job {job_id} {said}"))
    if video.fetched not in ("", video.digest):
        found.append(Broken("partial", f"the edge sends other bytes than job {job_id} has"))
    if video.prompt != accepted.prompt:
        found.append(Broken("other", f"the metadata of job {job_id} are another job's"))
    return found


def _judge_earlier(job_id: str, before: Video, now: Video | None) -> list[Broken]:
    if now is None:
        return [Broken("lost", f"the file of job {job_id}, of an earlier round, is gone")]
    if (now.digest, now.inode) != (before.digest, before.inode):
        return [Broken("duplicated", f"the file of job {job_id} was written a second time")]
    return []


@dataclass
class Round:
    """How a round went. Times are seconds; ``alerts`` have fired and ended."""

    seed: int
    fault: str
    jobs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    recovery: float = 0.0
    seconds: float = 0.0
    broken: list[Broken] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def survived(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken

    def line(self) -> str:
        """The round in a line."""
        said = ", ".join(f"{what} {count}" for what, count in sorted(self.outcomes.items()))
        parts = [
            f"seed {self.seed}: {self.fault}",
            f"{self.jobs} jobs ({said})",
            f"recovered in {self.recovery:.1f} s" if self.survived else "BROKEN",
            *([f"fired and ended: {', '.join(self.alerts)}"] if self.alerts else []),
            *([self.note] if self.note else []),
        ]
        return "; ".join(parts)

    def as_dict(self) -> dict[str, object]:
        """The round for a program."""
        return {
            "seed": self.seed,
            "fault": self.fault,
            "jobs": self.jobs,
            "outcomes": dict(self.outcomes),
            "recovery_seconds": round(self.recovery, 1),
            "seconds": round(self.seconds, 1),
            "broken": [{"kind": one.kind, "sentence": one.sentence} for one in self.broken],
            "alerts": self.alerts,
            "note": self.note,
        }


_COLUMNS = ("fault", "rounds", "survived", "recovery, median", "max", "accepted", "completed")


def table(rounds: Sequence[Round]) -> str:
    """Fault by fault: rounds, survived, seconds of recovery, jobs; and the sums. Markdown."""
    lines = [
        "| " + " | ".join((*_COLUMNS, "cancelled", "failed, by reason", "alerts")) + " |",
        "|---" * (len(_COLUMNS) + 3) + "|",
    ]
    for fault in [name for name in (*QUICK, *LONG) if any(one.fault == name for one in rounds)]:
        lines.append(_row(fault, [one for one in rounds if one.fault == fault]))
    lines.append(_row("**all**", rounds))
    return "\n".join(lines)


def _row(name: str, rounds: Sequence[Round]) -> str:
    outcomes = _sum(one.outcomes for one in rounds)
    failed = {
        code: n for code, n in sorted(outcomes.items()) if code not in ("completed", CANCELLED)
    }
    times = [one.recovery for one in rounds if one.survived]
    alerts = sorted({alert for one in rounds for alert in one.alerts})
    cells = (
        name,
        len(rounds),
        sum(one.survived for one in rounds),
        f"{statistics.median(times):.0f} s" if times else "",
        f"{max(times):.0f} s" if times else "",
        sum(one.jobs for one in rounds),
        outcomes["completed"],
        outcomes[CANCELLED],
        ", ".join(f"{code} {n}" for code, n in failed.items()),
        ", ".join(alerts),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def verdict(rounds: Sequence[Round]) -> str:
    """One sentence for all rounds."""
    kinds = Counter(one.kind for result in rounds for one in result.broken)
    return (
        f"{len(rounds)} rounds, {sum(one.survived for one in rounds)} survived; "
        f"{sum(one.jobs for one in rounds)} jobs accepted, {kinds['lost']} lost, "
        f"{kinds['duplicated']} made twice, {kinds['partial']} partial, {kinds['other']} other"
    )
