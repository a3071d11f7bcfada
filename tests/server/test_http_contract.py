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
    assert answer.json() == {
        "error": {
            "code": "missing_prompt",
            "message": "missing prompt",
            "type": "invalid_request_error",
            "param": "prompt",
        }
    }


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
        (
            '{"prompt": "a", "width": 100}',
            "width must be a multiple of 32 from 32 to 512, not 100\n",
        ),
        ('{"prompt": "a", "num_frames": 10}', "num_frames must be 4k+1 from 1 to 121, not 10\n"),
        ('{"prompt": "a", "fps": "24"}', "fps must be a whole number\n"),
        ('{"prompt": "a", "fps": 1e400}', "fps must be a whole number\n"),
        (f'{{"prompt": "a", "fps": {10**30}}}', "fps is too large\n"),
        (
            '{"prompt": "a", "guidance_scale": NaN}',
            "guidance_scale must be from 0 to 50, not nan\n",
        ),
        ('{"prompt": "a", "seconds": 1e9}', "seconds must be a number above 0, at most 3600\n"),
        ('{"prompt": "a", "size": "64"}', "size must be WIDTHxHEIGHT, such as 1280x704\n"),
        (
            '{"prompt": "a", "size": "512x512"}',
            "512x512 is 262144 pixels, at most 65536 are possible\n",
        ),
        ('{"prompt": "a", "promtp": 1}', "promtp is not a parameter\n"),
        ('{"prompt": "a", "model": "sora-2"}', "model must be tiny\n"),
        ('{"prompt": "\\ud800"}', "prompt must be valid Unicode\n"),
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


def test_unknown_paths_and_methods_are_answered_in_one_line(server: Server) -> None:
    assert (server.get("/nope").status, server.get("/nope").text) == (404, "not found\n")
    answer = server.request("DELETE", "/generate")
    assert (answer.status, answer.text) == (405, "method not allowed\n")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/ready", "/metrics", "/generate", "/nope"])
def test_every_answer_names_its_instance_and_its_request(server: Server, path: str) -> None:
    headers = server.get(path, {"X-Request-Id": "asked-by-me"}).headers

    assert headers["X-T2V-Instance"] == "worker-under-test"
    assert headers["X-Request-Id"] == "asked-by-me"
    assert len(server.get(path, {"X-Request-Id": "a b\tc"}).headers["X-Request-Id"]) == 32


def test_generate_takes_every_parameter(server: Server) -> None:
    answer = server.generate(
        "a dog", size="96x64", num_frames="5", fps="8", num_inference_steps="1",
        guidance_scale="1", flow_shift="3", negative_prompt="green", seed="7",
    )  # fmt: skip

    video = probe(answer.video)
    assert (video.size, video.num_frames, video.fps) == ((96, 64), 5, 8)


def test_width_and_frames_stand_above_size_and_seconds(server: Server) -> None:
    job = server.post_json(
        "/v1/videos",
        {"prompt": "a", "size": "96x64", "height": 32, "seconds": "1", "num_frames": 5},
    ).json()

    assert (job["size"], job["num_frames"], job["seconds"]) == ("96x32", 5, "0.208")
    by_length = server.post_json("/v1/videos", {"prompt": "a", "seconds": 0.5, "fps": 10}).json()
    assert by_length["num_frames"] == 5  # the nearest 4k+1
    server.wait_for_job(by_length["id"])


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_other_sites_may_not_use_it(server: Server, headers: dict[str, str]) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    answer = server.request("POST", "/v1/videos", "prompt=a", form)
    assert (answer.status, answer.code) == (403, "cross_site")
    assert server.get("/generate?prompt=a", headers).status == 403
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.get("/v1/videos", own).status == 200
    assert server.get("/", headers).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/videos", "[" * 100_000, 400),
        ("POST", "/v1/videos", '{"prompt": "x", "size": "\U00010d42\U00010d42x64"}', 400),
        ("GET", "/v1/videos?limit=000000001000", None, 400),
        ("GET", "/v1/videos?limit=1" + "0" * 4400, None, 400),
        ("GET", "/v1//videos", None, 404),
    ],
)
def test_odd_requests_are_refused_and_break_nothing(
    server: Server, method: str, path: str, body: str | None, status: int
) -> None:
    encoded = None if body is None else body.encode()
    answer = server.request(method, path, encoded, {"Content-Type": "application/json"})

    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("application/json")


def test_a_broken_body_is_the_clients_mistake(server: Server) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        said = connection.recv(65536).decode()

    assert said.startswith("HTTP/1.1 400 ")


def test_other_bodies_are_refused(server: Server) -> None:
    answer = server.request("POST", "/v1/videos", "<a/>", {"Content-Type": "text/xml"})
    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    answer = server.request("POST", "/v1/videos", b"x" * (1 << 20) + b"x")
    assert answer.status == 413
    assert answer.json()["error"]["message"] == "request entity too large"
