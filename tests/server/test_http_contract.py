"""What a client may rely on, endpoint by endpoint."""

from __future__ import annotations

import json

import pytest
from harness import Server, probe

JSON = {"Accept": "application/json"}


def test_generate_answers_with_the_path_of_a_playable_video(server: Server) -> None:
    answer = server.generate("a dog running")

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.text == f"Video generated at {answer.video}\n"
    assert answer.video.parent == server.output_dir
    video = probe(answer.video)
    assert (video.codec, video.pixel_format) == ("h264", "yuv420p")
    assert (video.size, video.num_frames, video.fps) == ((64, 64), 9, 24)
    assert video.index_first


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("prompt=a+cat&seed=3", "application/x-www-form-urlencoded"),
        (json.dumps({"prompt": "a cat", "seed": 3}), "application/json"),
    ],
)
def test_post_takes_a_form_or_json(server: Server, body: str, content_type: str) -> None:
    answer = server.request("POST", "/generate", body, {"Content-Type": content_type, **JSON})

    assert answer.status == 200
    data = answer.json()
    assert (data["prompt"], data["seed"]) == ("a cat", 3)
    assert data["path"] == str(server.output_dir / f"{data['id']}.mp4")


def test_a_seed_repeats_a_video_and_prompts_differ(server: Server) -> None:
    first = server.generate("a cat", seed="5").video.read_bytes()

    assert server.generate("a cat", seed="5").video.read_bytes() == first
    assert server.generate("a cat", seed="6").video.read_bytes() != first
    assert server.generate("a dog, running in the rain", seed="5").video.read_bytes() != first


@pytest.mark.parametrize("query", ["", "?prompt=", "?prompt=%20%20", "?promt=a"])
def test_a_missing_prompt_is_named(server: Server, query: str) -> None:
    answer = server.get(f"/generate{query}")

    assert (answer.status, answer.text) == (400, "missing prompt\n")


def test_a_mistake_in_json_for_who_asks_for_json(server: Server) -> None:
    answer = server.get("/generate", JSON)

    assert answer.status == 400
    assert answer.json() == {"error": {"code": "missing_prompt", "message": "missing prompt"}}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "the body is not valid JSON\n"),
        ("[1]", "the body is not a JSON object\n"),
        ('{"prompt": 1}', "prompt must be a string\n"),
        ('{"prompt": "a", "seed": true}', f"seed must be a whole number from 0 to {2**63 - 1}\n"),
        ('{"prompt": "a", "seed": -1}', f"seed must be a whole number from 0 to {2**63 - 1}\n"),
        (
            f'{{"prompt": "a", "seed": {2**63}}}',
            f"seed must be a whole number from 0 to {2**63 - 1}\n",
        ),
    ],
)
def test_unusable_json_is_refused_with_a_reason(server: Server, body: str, says: str) -> None:
    answer = server.request("POST", "/generate", body, {"Content-Type": "application/json"})

    assert (answer.status, answer.text) == (400, says)


def test_a_prompt_may_be_long_but_not_too_long(server: Server) -> None:
    assert server.generate("x" * 2000).status == 200
    answer = server.generate("x" * 2001)
    assert (answer.status, answer.text) == (
        400,
        "prompt too long: 2001 characters, at most 2000\n",
    )


def test_head_does_not_generate(server: Server) -> None:
    before = server.metric("t2v_jobs_total", outcome="completed")

    assert server.request("HEAD", "/generate?prompt=a").status == 405
    assert server.metric("t2v_jobs_total", outcome="completed") == before


def test_healthz_says_ok(server: Server) -> None:
    answer = server.get("/healthz")

    assert (answer.status, answer.text) == (200, "ok")


def test_ready_says_so_and_tells_programs_more(server: Server) -> None:
    assert (server.get("/ready").status, server.get("/ready").text) == (200, "ready\n")
    assert server.get("/ready", JSON).json() == {
        "ready": True,
        "state": "ready",
        "message": "ready",
        "model": "tiny",
        "instance": "worker-under-test",
    }


def test_the_front_page_says_what_this_is(server: Server) -> None:
    answer = server.get("/")

    assert answer.status == 200
    assert "/generate?prompt=" in answer.text
    assert "model tiny, 64x64, 9 frames" in answer.text


def test_unknown_paths_and_methods_are_answered_in_one_line(server: Server) -> None:
    assert (server.get("/nope").status, server.get("/nope").text) == (404, "not found\n")
    answer = server.request("DELETE", "/generate")
    assert (answer.status, answer.text) == (405, "method not allowed\n")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/ready", "/metrics", "/generate", "/nope"])
def test_every_answer_names_its_instance(server: Server, path: str) -> None:
    assert server.get(path).headers["X-T2V-Instance"] == "worker-under-test"
