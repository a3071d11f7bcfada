"""One generation, from the request to its outcome: plain, frozen data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from t2v_server.profiles import VideoParameters


class JobState(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (JobState.COMPLETED, JobState.FAILED)


class FailureReason(StrEnum):
    """Why a job has no video; also its error code, and the ``reason`` label of its metric."""

    GENERATION = "generation_failed"
    OUT_OF_MEMORY = "out_of_memory"
    ENCODING = "encoding_failed"
    STORAGE = "storage_failed"
    INSUFFICIENT_STORAGE = "insufficient_storage"
    ENGINE_LOST = "engine_lost"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """What an engine does with a job, in this order."""

    PROMPT = "encoding_prompt"
    DENOISING = "denoising"
    DECODING = "decoding"
    WRITING = "writing"


# What of a job's time comes before each stage, in percent: as measured by the publishers for
# 50 steps at 720p, denoising takes nearly all of it.
PERCENT_BEFORE = {Stage.PROMPT: 0, Stage.DENOISING: 2, Stage.DECODING: 85, Stage.WRITING: 97}


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of ``stage`` (steps, latent frames); ``percent`` of the job."""

    stage: Stage
    done: int
    total: int
    percent: int


@dataclass(frozen=True)
class Parameters:
    """Everything that decides what a video shows: the same parameters make it again.

    ``seed`` is 0…2**63-1 and drives the initial noise. ``image`` is the SHA-256, in hex, of the
    file of the picture that the video begins with.
    """

    prompt: str
    negative_prompt: str
    seed: int
    video: VideoParameters
    image: str | None = None

    def to_dict(self) -> dict[str, str | int | float]:
        """One flat object, with the names that clients use."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            **({} if self.image is None else {"input_reference": self.image}),
            **dataclasses.asdict(self.video),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Parameters:
        """The inverse of ``to_dict``."""
        video = {field.name: data[field.name] for field in dataclasses.fields(VideoParameters)}
        return cls(
            data["prompt"],
            data["negative_prompt"],
            data["seed"],
            VideoParameters(**video),
            data.get("input_reference"),
        )

    def fingerprint(self, model: str) -> str:
        """A SHA-256 in hex, equal for equal parameters on the same model."""
        text = json.dumps([model, self.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Completed:
    """A published video. Durations are seconds.

    ``generation_seconds`` is text, denoising and VAE, ``encoding_seconds`` mp4 and publishing;
    ``peak_memory_bytes`` is the engine's, on the GPU or else on the host.
    """

    file_name: str
    num_bytes: int
    generation_seconds: float
    encoding_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Failed:
    """Why there is no video; ``message`` is a sentence for the client."""

    reason: FailureReason
    message: str


Outcome = Completed | Failed

CANCELLED = Failed(FailureReason.CANCELLED, "the job was cancelled")


@dataclass(frozen=True)
class Job:
    """What the store knows of a job at one moment. Times are Unix seconds.

    ``id`` is unique, sorts by time of acceptance and names the file. ``owner`` is the client
    that may see it, empty while authentication is off. ``attempts`` counts the engines that
    took it and did not hand it back. ``version`` grows with every change.
    """

    id: str
    owner: str
    model: str
    parameters: Parameters
    state: JobState
    created_at: float
    version: int
    attempts: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    engine: str | None = None
    progress: Progress | None = None
    cancel_requested: bool = False
    outcome: Outcome | None = None
    request_id: str = ""
