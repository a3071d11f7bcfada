"""``/v1/videos``: what programs do with jobs and their videos."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from harness import Server, probe, wait_for
from PIL import Image

LONG: dict[str, Any] = {"num_inference_steps": 1000}  # ten seconds or so


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for these tests alone, which look at all of its jobs."""
    with Server.start(tmp_path_factory.mktemp("api-videos")) as it:
        it.wait_until_ready()
        yield it


def test_a_video_is_made_looked_at_fetched_and_deleted(api: Server) -> None:
    created = api.post_json(
        "/v1/videos", {"prompt": " a dog ", "seed": 3, "num_frames": 5, "fps": 10}
    ).json()
    assert (created["object"], created["status"], created["progress"]) == ("video", "queued", 0)
    assert (created["prompt"], created["seed"], created["seconds"]) == ("a dog", 3, "0.5")

    done = api.wait_for_job(created["id"])
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["created_at"] <= done["started_at"] <= done["completed_at"]
    assert done["inference_time_s"] > 0
    path = api.output_dir / done["file_name"]
    assert path.stat().st_size == done["num_bytes"]
    assert probe(path).num_frames == 5

    content = api.get(f"/v1/videos/{done['id']}/content")
    assert content.headers["Content-Type"] == "video/mp4"
    assert content.body == path.read_bytes()
    picture = api.get(f"/v1/videos/{done['id']}/content?variant=thumbnail")
    assert picture.headers["Content-Type"] == "image/jpeg"
    assert picture.body.startswith(b"\xff\xd8")

    deleted = api.request("DELETE", f"/v1/videos/{done['id']}")
    assert deleted.json() == {"id": done["id"], "object": "video.deleted", "deleted": True}
    assert not list(api.output_dir.glob(f"*{done['id']}*"))
    for again in (
        api.get(f"/v1/videos/{done['id']}"),
        api.request("DELETE", f"/v1/videos/{done['id']}"),
    ):
        assert (again.status, again.code) == (404, "not_found")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_forms_carry_every_type(api: Server, kind: str) -> None:
    fields = {"prompt": "a", "seed": "9223372036854775807", "guidance_scale": "1.5", "fps": "8"}
    if kind.startswith("multipart"):
        parts = [
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        body, kind = "".join(parts) + "--x--\r\n", f"{kind}; boundary=x"
    else:
        body = urlencode(fields)

    job = api.request("POST", "/v1/videos", body, {"Content-Type": kind}).json()

    assert (job["seed"], job["guidance_scale"], job["fps"]) == (2**63 - 1, 1.5, 8)
    api.wait_for_job(job["id"])


def form_with(image: bytes) -> tuple[bytes, dict[str, str]]:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n'
        b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + image + b"\r\n--x--\r\n"
    )
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


def test_a_video_begins_with_the_image_that_was_sent(api: Server) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (320, 200), "white").save(encoded, "PNG")
    image = encoded.getvalue()

    job = api.request("POST", "/v1/videos", *form_with(image)).json()
    assert job["input_reference"] == hashlib.sha256(image).hexdigest()
    done = api.wait_for_job(job["id"])

    assert done["status"] == "completed"
    metadata = json.loads((api.output_dir / f"{job['id']}.json").read_text())
    assert metadata["parameters"]["input_reference"] == job["input_reference"]
    # Hidden from whoever lists the directory, and kept under the name of what it is.
    kept = api.output_dir / f".{job['input_reference']}.reference"
    assert kept.read_bytes() == image


@pytest.mark.parametrize(
    ("image", "says"),
    [(b"PNG", "must be a JPEG, PNG or WebP image"), (b"", "must be a JPEG, PNG or WebP image")],
)
def test_what_is_no_image_is_refused(api: Server, image: bytes, says: str) -> None:
    answer = api.request("POST", "/v1/videos", *form_with(image))

    error = answer.json()["error"]
    assert (answer.status, error["param"]) == (400, "input_reference")
    assert says in error["message"]


def test_an_image_that_is_no_file_is_refused_and_not_ignored(api: Server) -> None:
    body = json.dumps({"prompt": "a", "input_reference": "https://example.com/a.png"})
    answer = api.request("POST", "/v1/videos", body, {"Content-Type": "application/json"})

    assert (answer.status, answer.json()["error"]["param"]) == (400, "input_reference")


def test_what_may_be_asked_follows_from_the_profile(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(
        tmp_path / "videos", T2V_PROFILE="t4-turbo",
        T2V_WIDTH="64", T2V_HEIGHT="64", T2V_FRAMES="5",
    ) as server:  # fmt: skip
        server.wait_until_ready()
        model = server.get("/v1/models").json()["data"][0]
        assert (model["limits"]["min_steps"], model["limits"]["max_steps"]) == (3, 3)
        assert model["limits"]["max_guidance_scale"] == 1
        assert (model["profile"]["name"], model["input_reference"]) == ("t4-turbo", False)
        assert model["profile"]["quality"].startswith("reduced: ")

        refused = server.post_json("/v1/videos", {"prompt": "a", "num_inference_steps": 50})
        assert refused.json()["error"]["message"] == "num_inference_steps must be 3, not 50"
        encoded = io.BytesIO()
        Image.new("RGB", (64, 64)).save(encoded, "PNG")
        image = server.request("POST", "/v1/videos", *form_with(encoded.getvalue()))
        assert (image.status, image.json()["error"]["param"]) == (400, "input_reference")
        done = server.wait_for_job(server.create("a dog"))
        assert (done["status"], done["num_inference_steps"]) == ("completed", 3)
        assert server.metric("t2v_profile_expected_seconds", profile="t4-turbo") == 15


def test_ranges_and_etags_of_the_content(api: Server) -> None:
    job = api.wait_for_job(api.create("a dog"))
    url, whole = f"/v1/videos/{job['id']}/content", (api.output_dir / job["file_name"]).read_bytes()

    first = api.get(url)
    assert first.headers["Accept-Ranges"] == "bytes"
    middle = api.get(url, {"Range": "bytes=10-19"})
    assert (middle.status, middle.body) == (206, whole[10:20])
    assert middle.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
    tail = api.get(url, {"Range": "bytes=-5"})
    assert (tail.status, tail.body) == (206, whole[-5:])
    beyond = api.get(url, {"Range": f"bytes={len(whole)}-"})
    assert beyond.status == 416
    same = api.get(url, {"If-None-Match": first.headers["ETag"]})
    assert (same.status, same.body) == (304, b"")
    changed = api.get(url, {"Range": "bytes=0-1", "If-Range": '"another"'})
    assert (changed.status, changed.body) == (200, whole)


def test_there_is_no_content_before_the_end(api: Server) -> None:
    job = api.create("a dog", **LONG)
    answer = api.get(f"/v1/videos/{job}/content")
    assert (answer.status, answer.code) == (409, "not_completed")
    api.request("POST", f"/v1/videos/{job}/cancel")
    api.wait_for_job(job)
    assert api.get(f"/v1/videos/{job}/content").code == "not_completed"


def test_lists_page_in_either_order(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos") as server:
        server.wait_until_ready()
        empty = server.get("/v1/videos").json()
        assert empty == {
            "object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None,
        }  # fmt: skip
        ids = [server.create(f"number {number}") for number in range(5)]

        assert [job["id"] for job in server.get("/v1/videos").json()["data"]] == ids[::-1]
        first = server.get("/v1/videos?order=asc&limit=2").json()
        assert [job["id"] for job in first["data"]] == ids[:2]
        assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[0], ids[1])
        rest = server.get(f"/v1/videos?order=asc&after={first['last_id']}").json()
        assert [job["id"] for job in rest["data"]] == ids[2:]
        assert not rest["has_more"]
        for query, param in (("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order")):
            answer = server.get(f"/v1/videos?{query}")
            assert (answer.status, answer.json()["error"]["param"]) == (400, param)


def test_cancel_frees_the_engine_within_one_step(api: Server) -> None:
    job = api.create("a dog", **LONG)
    wait_for(
        lambda: (api.job(job)["stage"] or {}).get("name") == "denoising" or None, "a step", api
    )
    before = api.job(job)["stage"]["done"]
    asked_at = time.monotonic()

    answer = api.request("POST", f"/v1/videos/{job}/cancel")
    wait_for(lambda: api.engine_status()["job"] is None or None, "the engine to be free", api)
    took = time.monotonic() - asked_at

    assert answer.json()["cancel_requested"] or answer.json()["status"] == "failed"
    ended = api.wait_for_job(job)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "cancelled")
    # A step of the tiny model takes some 10 ms, and the store is looked at every 50 ms.
    assert took < 4.0, f"the engine went on for {took:.2f} s"
    assert before < 500
    assert not list(api.output_dir.glob(f"*{job}*"))
    again = api.request("POST", f"/v1/videos/{job}/cancel").json()
    assert (again["status"], again["error"]) == (ended["status"], ended["error"])


def test_a_waiting_job_is_cancelled_at_once(api: Server) -> None:
    running, waiting = api.create("a dog", **LONG), api.create("a cat")
    answer = api.request("POST", f"/v1/videos/{waiting}/cancel").json()
    assert (answer["status"], answer["error"]["code"]) == ("failed", "cancelled")
    api.request("DELETE", f"/v1/videos/{running}")
    wait_for(lambda: api.engine_status()["job"] is None or None, "the engine to be free", api)


def test_a_client_that_goes_away_takes_its_job_with_it(api: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api.port)
    connection.request("GET", "/generate?prompt=going&num_inference_steps=1000")
    job = wait_for(
        lambda: next(
            (
                one["id"]
                for one in api.get("/v1/videos?limit=1").json()["data"]
                if one["prompt"] == "going" and one["status"] == "in_progress"
            ),
            None,
        ),
        "the job",
        api,
    )

    connection.close()

    assert api.wait_for_job(job)["error"]["code"] == "cancelled"


def test_whoever_has_a_key_or_shares_a_job_may_lose_the_connection(api: Server) -> None:
    for number, (query, headers) in enumerate(
        [("", {"Idempotency-Key": "keep"}), ("&reuse=true", dict[str, str]())]
    ):
        path = f"/generate?prompt=shared{number}&num_inference_steps=150{query}"
        connection = http.client.HTTPConnection("127.0.0.1", api.port)
        connection.request("GET", path, headers=headers)
        time.sleep(0.3)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(api.request, "GET", path, None, headers)
            time.sleep(0.3)
            connection.close()
            assert other.result().status == 200


def test_a_retry_by_the_edge_finds_the_job_of_the_first_try(api: Server) -> None:
    path, headers = "/generate?prompt=tried%20twice", {"X-T2V-Retry-Key": "abc123"}
    first, second = (api.request("GET", path, headers=headers) for _ in range(2))

    assert first.video == second.video


def test_more_waiters_than_threads_leave_the_probes_answered(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_QUEUE_SIZE="2", T2V_MAX_STREAMS="1") as server:
        server.wait_until_ready()
        path, key = "/generate?prompt=a&num_inference_steps=400", {"Idempotency-Key": "one"}
        with ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(server.request, "GET", path, None, key) for _ in range(40)]
            time.sleep(1)
            asked_at = time.monotonic()
            assert server.get("/healthz").status == 200
            assert time.monotonic() - asked_at < 1.0
            answers = [one.result() for one in waiting]

    assert {answer.status for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status == 503)
    assert "too many requests wait here" in refused.text
    assert int(refused.headers["Retry-After"]) > 0


def test_a_video_whose_file_is_gone_is_made_again(api: Server) -> None:
    first = api.generate("fleeting", reuse="true").video
    first.unlink()

    second = api.generate("fleeting", reuse="true").video
    assert second != first
    assert second.exists()


def events_of(server: Server, job: str) -> list[tuple[str, dict[str, object]]]:
    text = server.get(f"/v1/videos/{job}/events").text
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line[:10])
        if "data" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_events_tell_every_change_to_the_end(api: Server) -> None:
    job = api.create("a dog", num_inference_steps=60)
    events = events_of(api, job)

    progress = [int(str(data["progress"])) for _, data in events]
    assert progress == sorted(progress)
    assert len(set(progress)) > 5  # not from 0 to 100 in one leap
    assert [name for name, _ in events] == ["video"] * (len(events) - 1) + ["end"]
    stages = [data["stage"]["name"] for _, data in events if isinstance(data["stage"], dict)]
    assert {"denoising", "decoding"} <= set(stages)
    assert events[-1][1]["status"] == "completed"
    assert [name for name, _ in events_of(api, job)] == ["end"]  # also afterwards


def test_only_so_many_may_listen(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_MAX_STREAMS="1") as server:
        server.wait_until_ready()
        job = server.create("a dog", **LONG)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", f"/v1/videos/{job}/events")
        connection.getresponse().read(10)

        refused = server.get(f"/v1/videos/{job}/events")
        assert (refused.status, refused.code) == (503, "too_many_streams")
        assert int(refused.headers["Retry-After"]) > 0
        connection.close()
        server.wait_for_metric("t2v_event_streams", 0)
        server.request("POST", f"/v1/videos/{job}/cancel")
        assert events_of(server, job)[-1][0] == "end"


def test_the_same_key_makes_one_video(api: Server) -> None:
    key = {"Idempotency-Key": "order 66"}
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: api.create("a dog", key, seed=1), range(8)))
    assert len(ids) == 1

    other = api.post_json("/v1/videos", {"prompt": "a cat"}, key)
    assert (other.status, other.code) == (409, "idempotency_conflict")
    waited = api.request("GET", "/generate?prompt=a%20dog&seed=1", headers=key)
    assert waited.video.stem in ids  # whichever door it comes through
    too_long = api.post_json("/v1/videos", {"prompt": "a"}, {"Idempotency-Key": "x" * 256})
    assert (too_long.status, too_long.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_every_request_is_a_new_file_unless_reuse_is_asked_for(api: Server) -> None:
    made = [api.generate("the same", seed="1").video for _ in range(2)]
    assert made[0] != made[1]

    with ThreadPoolExecutor(4) as pool:  # in flight ...
        shared = set(
            pool.map(
                lambda _: api.generate("hot", reuse="true", num_inference_steps="40").video,
                range(4),
            )
        )
    assert len(shared) == 1
    again = api.generate("hot", reuse="true", num_inference_steps="40").video  # ... and finished
    assert {again} == shared
    assert api.generate("hot", reuse="true", num_inference_steps="41").video != again
    assert api.generate("hot", num_inference_steps="40", seed="0").video != again
    api.request("DELETE", f"/v1/videos/{again.stem}")
    assert api.generate("hot", reuse="true", num_inference_steps="40").video != again


def test_jobs_survive_the_death_of_everything(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos") as server:
        server.wait_until_ready()
        done = server.generate("done before").video.stem
        running = server.create("running", num_inference_steps=300)
        waiting = [server.create(f"waiting {number}") for number in range(3)]
        server.wait_for_job(running, "in_progress")
        server.process.kill()
        server.process.wait()

    with Server.start(tmp_path / "videos") as server:
        for job in (running, *waiting):
            assert server.wait_for_job(job)["status"] == "completed"
        assert server.job(running)["attempts"] == 2
        assert server.job(done)["status"] == "completed"
        assert len(list(server.output_dir.glob("*.mp4"))) == 5


def test_sigterm_hands_unfinished_work_back(tmp_path: Path) -> None:
    import signal

    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_GRACEFUL_TIMEOUT="1") as server:
        server.wait_until_ready()
        job = server.create("a long one", **LONG)
        server.wait_for_job(job, "in_progress")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0

    with Server.start(tmp_path / "videos") as server:
        assert server.wait_for_job(job, "in_progress")["attempts"] == 1  # the first did not count
        server.request("POST", f"/v1/videos/{job}/cancel")


def test_out_of_memory_costs_one_job_and_the_engine_proves_itself_anew(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "videos").mkdir()
    with Server.start(
        tmp_path / "videos", T2V_MAX_PIXELS=str(512 * 512), T2V_MAX_FRAMES="121"
    ) as server:
        server.wait_until_ready()
        (engine,) = server.wait_for_engines()
        size = int(
            next(
                line.split()[1]
                for line in Path(f"/proc/{engine}/status").read_text().splitlines()
                if line.startswith("VmSize")
            )
        )
        # Enough for what it does already, not for a large video; the real allocator refuses.
        limit = (size + 200_000) * 1024
        subprocess.run(["prlimit", f"--pid={engine}", f"--as={limit}"], check=True)
        big = server.create("too big", size="512x512", num_frames=121)
        after = server.create("small enough")

        failed = server.wait_for_job(big)
        assert failed["error"] == {
            "code": "out_of_memory",
            "message": "out of memory at 512x512, 121 frames",
        }
        assert server.wait_for_job(after)["status"] == "completed"
        assert server.wait_for_engines() != [engine]
        server.wait_for_metric("t2v_engine_starts_total", 2)
        assert server.metric("t2v_jobs_total", reason="out_of_memory") == 1


def test_ready_tells_the_truth_while_an_engine_is_replaced(tmp_path: Path) -> None:
    import os
    import signal

    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos") as server:
        server.wait_until_ready()
        os.kill(server.wait_for_engines()[0], signal.SIGKILL)

        wait_for(lambda: server.get("/ready").status == 503 or None, "that it is not ready", server)
        assert server.metric("t2v_model_loaded") == 0
        refused = server.generate("too early")
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        server.wait_until_ready()
        assert server.generate("a dog").status == 200
