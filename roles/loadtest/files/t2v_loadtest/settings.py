"""What the role passes on, as JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Goals:
    """The objectives: what counts as missed."""

    ab_failed: int
    error_share: float
    submit_p95: float
    poll_p95: float
    completed_share: float
    wait_turns: float


@dataclass(frozen=True)
class Settings:
    """Where and how much. Times are seconds; an empty text: not used."""

    url: str
    host: str
    token: str
    prompt: str
    ab_program: str
    ab_requests: int
    ab_clients: int
    ab_timeout: int
    users: int
    jobs: int
    cancel_share: float
    think: float
    parameters: dict[str, Any]
    job_timeout: int
    seed: int
    keep_videos: bool
    engines: int
    prometheus: str
    prometheus_user: str
    prometheus_password: str
    prometheus_ca: str
    goals: Goals
    # For the reader of the report: name -> what.
    environment: dict[str, str]

    @classmethod
    def read(cls, told: dict[str, Any]) -> Settings:
        """Of what Ansible writes, where a number may come as text."""
        goals = Goals(
            **{one.name: _cast(one.type, told["goals"][one.name]) for one in fields(Goals)}
        )
        others = {
            one.name: _cast(one.type, told[one.name]) for one in fields(cls) if one.name != "goals"
        }
        return cls(goals=goals, **others)


def _cast(kind: object, value: Any) -> Any:
    if kind == "int":
        return int(value)
    if kind == "float":
        return float(value)
    if kind == "bool":
        return value if isinstance(value, bool) else str(value).lower() == "true"
    if kind == "str":
        return str(value)
    return value
