"""A server with more to do than it can: what it says when full, and when told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import Server, probe


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose generations take seconds and whose queue holds two."""
    with Server.start(
        tmp_path_factory.mktemp("slow-videos"), T2V_STEPS="250", T2V_QUEUE_SIZE="2"
    ) as it:
        it.wait_until_ready()
        yield it


def test_a_full_queue_is_said_with_when_to_retry(slow_server: Server) -> None:
    rejected_before = slow_server.metric("t2v_jobs_total", reason="queue_full")
    with ThreadPoolExecutor(3) as pool:
        accepted = slow_server.generate_later(pool, ["running"])
        slow_server.wait_for_metric("t2v_jobs_in_flight", 1)
        accepted += slow_server.generate_later(pool, ["waiting", "waiting"])
        slow_server.wait_for_metric("t2v_queue_depth", 2)
        assert slow_server.metric("t2v_jobs_active") == 3
        assert slow_server.metric("t2v_oldest_job_age_seconds") > 0

        refused = slow_server.generate("one too many")

        assert [future.result().status for future in accepted] == [200, 200, 200]
    assert refused.status == 429
    assert refused.text == "all 2 places in the queue are taken\n"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert slow_server.metric("t2v_jobs_total", reason="queue_full") == rejected_before + 1
    assert slow_server.metric("t2v_queue_depth") == 0
    assert slow_server.metric("t2v_oldest_job_age_seconds") == 0


# The last test here: it stops the server.
def test_sigterm_finishes_the_running_job_and_answers_the_waiting(slow_server: Server) -> None:
    with ThreadPoolExecutor(3) as pool:
        running = slow_server.generate_later(pool, ["running"])[0]
        slow_server.wait_for_metric("t2v_jobs_in_flight", 1)
        waiting = slow_server.generate_later(pool, ["waiting", "waiting"])
        slow_server.wait_for_metric("t2v_queue_depth", 2)

        slow_server.process.send_signal(signal.SIGTERM)

        for future in waiting:
            answer = future.result()
            assert answer.status == 503
            assert answer.text == "the server is shutting down: send the request again\n"
            assert int(answer.headers["Retry-After"]) > 0
        assert not running.done()  # the waiting were told at once
        assert running.result().status == 200
        assert probe(running.result().video).num_frames == 9
    assert slow_server.process.wait(15) == 0
