"""Structured logs: what is in them, and what never is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import Server
from t2v_server.api.auth import new_key

PROMPT = "a secret project, filmed from above"


def records(server: Server) -> list[dict[str, Any]]:
    """Every line is one JSON object."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


@pytest.mark.parametrize("prompts", ["off", "on"])
def test_a_request_can_be_followed_and_prompts_are_there_when_asked_for(
    tmp_path: Path, prompts: str
) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(
        tmp_path / "videos", T2V_LOG_FORMAT="json", T2V_LOG_PROMPTS=prompts
    ) as server:
        server.wait_until_ready()
        job = server.create(PROMPT, {"X-Request-Id": "follow-me"})
        server.wait_for_job(job)
        server.get(f"/generate?prompt={PROMPT.replace(' ', '%20')}")
        server.get("/nope%0aERROR%20forged")
        found = records(server)

    mine = [one for one in found if one.get("request_id") == "follow-me"]
    assert {one["logger"] for one in mine} >= {
        "t2v_server.access", "t2v_server.api.service", "t2v_server.engine.engine",
    }  # fmt: skip
    (access,) = [one for one in mine if one["logger"] == "t2v_server.access"]
    assert (access["method"], access["path"], access["status"]) == ("POST", "/v1/videos", 200)
    assert access["job_id"] == job
    assert any("\\x0aERROR" in one["message"] for one in found)
    told = [one for one in found if PROMPT in json.dumps(one)]
    assert bool(told) == (prompts == "on")
    assert all(one.get("prompt") == PROMPT for one in told)


def test_tokens_are_in_no_log_and_in_no_process_list(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    key, line = new_key("ann")
    keys = tmp_path / "keys"
    keys.write_text(f"{line}\n")
    with Server.start(
        tmp_path / "videos", T2V_API_KEYS_FILE=str(keys), T2V_LOG_LEVEL="debug"
    ) as server:
        server.wait_until_ready()
        for token in (key, "sk-t2v-guessed", "eyJhbGciOiJub25lIn0.e30."):
            server.get("/v1/videos", {"Authorization": f"Bearer {token}"})
        said = server.log.read_text()
        commands = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in server.all_pids())

    assert "key:ann" in said  # who it was
    for secret in (key, "sk-t2v-guessed", "eyJhbGciOiJub25lIn0", line.split("sha256:")[1][:16]):
        assert secret not in said
        assert secret not in commands
