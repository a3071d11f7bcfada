"""How a job ended, as JSON text; both stores keep it so."""

from __future__ import annotations

import dataclasses
import json

from t2v_server.jobs.record import Completed, Failed, FailureReason, Outcome


def outcome_to_json(outcome: Outcome) -> str:
    """The fields of the outcome; a failure is known by its ``reason``."""
    return json.dumps(dataclasses.asdict(outcome))


def outcome_from_json(text: str) -> Outcome:
    """The inverse of ``outcome_to_json``."""
    data = json.loads(text)
    if "reason" in data:
        return Failed(FailureReason(data["reason"]), data["message"])
    return Completed(**data)
