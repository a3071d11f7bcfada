"""The queue: bounded, first in first out, and every waiter gets an outcome."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from t2v_server.jobs.queue import JobQueue, QueueClosed, QueueFull
from t2v_server.jobs.readiness import Readiness, ReadyState
from t2v_server.jobs.record import Completed, Failed, FailureReason, Job, JobState
from t2v_server.storage.ids import IdFactory

STOPPING = Failed(FailureReason.SHUTTING_DOWN, "stopping")
DONE = Completed(Path("/videos/a.mp4"), num_bytes=1, seconds=0.1)


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue(2, IdFactory())


def claim(queue: JobQueue) -> Job:
    job = queue.claim()
    assert job is not None
    return job


def test_jobs_are_claimed_in_the_order_of_submission(queue: JobQueue) -> None:
    submitted = [queue.submit("a", 1), queue.submit("b", 2)]

    assert [claim(queue), claim(queue)] == submitted
    assert submitted[0].id < submitted[1].id


def test_a_job_goes_from_queued_over_in_progress_to_completed(queue: JobQueue) -> None:
    job = queue.submit("a", 1)
    states = [job.state]
    claim(queue)
    states.append(job.state)
    assert queue.end(job, DONE)
    states.append(job.state)

    assert states == [JobState.QUEUED, JobState.IN_PROGRESS, JobState.COMPLETED]
    assert job.wait() == DONE
    assert queue.oldest_age() == 0


def test_the_claimed_job_takes_no_place(queue: JobQueue) -> None:
    queue.submit("a", 1)
    claim(queue)
    queue.submit("b", 1)
    queue.submit("c", 1)

    assert (queue.depth(), queue.in_flight()) == (2, 1)
    with pytest.raises(QueueFull) as caught:
        queue.submit("d", 1)
    assert caught.value.retry_after >= 1


def test_claim_waits_for_a_job(queue: JobQueue) -> None:
    claimed: list[Job | None] = []
    thread = threading.Thread(target=lambda: claimed.append(queue.claim()))
    thread.start()

    job = queue.submit("a", 1)
    thread.join(5)

    assert claimed == [job]


def test_closing_fails_the_waiting_and_lets_the_running_finish(queue: JobQueue) -> None:
    running, waiting = queue.submit("a", 1), queue.submit("b", 1)
    claim(queue)

    assert queue.close(STOPPING) == 1

    assert waiting.wait() == STOPPING
    assert running.state is JobState.IN_PROGRESS
    assert queue.end(running, DONE)
    assert queue.claim() is None
    with pytest.raises(QueueClosed, match="stopping"):
        queue.submit("c", 1)


def test_a_job_that_was_given_up_keeps_its_first_outcome(queue: JobQueue) -> None:
    job = queue.submit("a", 1)
    claim(queue)

    assert queue.close(STOPPING, give_up_claimed=True) == 1

    assert not queue.end(job, DONE)
    assert job.wait() == STOPPING


def test_a_stopping_server_never_becomes_ready_again() -> None:
    readiness = Readiness()
    readiness.set(ReadyState.STOPPING, "stopping")
    readiness.set(ReadyState.READY, "ready")

    assert not readiness.status.ready
