"""What both stores promise: the same tests run on SQLite and on a real Redis."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import redis
from redis_server import RedisServer
from t2v_server.jobs import redis_store, sqlite_store
from t2v_server.jobs.record import (
    CANCELLED,
    Completed,
    Failed,
    FailureReason,
    Job,
    JobState,
    Parameters,
    Progress,
    Stage,
)
from t2v_server.jobs.redis_store import RedisStore
from t2v_server.jobs.sqlite_store import SqliteStore
from t2v_server.jobs.store import (
    Admission,
    Claim,
    ClientLimit,
    JobStore,
    KeyConflict,
    NewJob,
    NoSpace,
    Order,
    QueueFull,
    StoreUnavailable,
)
from t2v_server.profiles import TINY

LEASE = 60.0
SHORT_LEASE = 0.5
PATIENCE = 10.0
SOON = 3.0  # a change is seen by every other process within this
ROOM = Admission(capacity=100_000)
VIDEO = Completed("a.mp4", 1234, 2.5, 0.5, 99)
BROKEN = Failed(FailureReason.GENERATION, "it broke")

Open = Callable[..., JobStore]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens one more store on the jobs of this test, as another process would."""
    prefix = f"{{{uuid.uuid4().hex}}}"
    with ExitStack() as stack:

        def open_one(lease: float = LEASE) -> JobStore:
            store: JobStore
            if request.param == "sqlite":
                store = SqliteStore(tmp_path / "jobs.db", lease)
            else:
                server: RedisServer = request.getfixturevalue("redis_server")
                store = RedisStore(server.url, lease, prefix=prefix)
            stack.callback(store.close)
            return store

        yield open_one


@pytest.fixture
def store(open_store: Open) -> JobStore:
    return open_store()


@pytest.fixture
def other(open_store: Open) -> JobStore:
    """The same jobs, through connections of its own."""
    return open_store()


def new_job(
    prompt: str = "a",
    *,
    owner: str = "",
    reserve: int = 100,
    reuse: bool = False,
    key: str | None = None,
    digest: str = "d",
) -> NewJob:
    parameters = Parameters(prompt, "blurry", 7, TINY.defaults)
    return NewJob(owner, "tiny", parameters, reserve, reuse, key, digest, request_id="r1")


def submit(store: JobStore, *prompts: str, owner: str = "") -> list[Job]:
    return [store.submit(new_job(prompt, owner=owner), ROOM).job for prompt in prompts]


def claim(store: JobStore, engine: str = "engine", wait: float = 0) -> Claim:
    claim = store.claim(engine, wait)
    assert claim is not None
    return claim


def current(store: JobStore, job: Job) -> Job:
    found = store.get(job.id)
    assert found is not None
    return found


def drain(store: JobStore) -> list[str]:
    """The ids of all jobs that can be claimed now, in that order."""
    return [it.job.id for it in iter(lambda: store.claim("drain", 0), None) if it]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


# Submission


def test_a_submitted_job_is_queued_as_it_was_asked_for(store: JobStore, other: JobStore) -> None:
    before = time.time()
    submission = store.submit(new_job("a cat", owner="anna"), ROOM)

    job = submission.job
    assert submission.created
    assert job == Job(
        id=job.id,
        owner="anna",
        model="tiny",
        parameters=Parameters("a cat", "blurry", 7, TINY.defaults),
        state=JobState.QUEUED,
        created_at=job.created_at,
        version=1,
        request_id="r1",
    )
    assert before - 1 <= job.created_at <= time.time() + 1
    assert store.get(job.id) == other.get(job.id) == job


def test_a_prompt_of_any_characters_is_kept(store: JobStore) -> None:
    prompt = 'Zürich ✨ "quoted"\n\\ {braces} \x00 日本'

    assert current(store, submit(store, prompt)[0]).parameters.prompt == prompt


def test_jobs_are_claimed_in_the_order_of_submission(store: JobStore, other: JobStore) -> None:
    ids = []
    for source in (store, store, other, store, other):
        ids += [job.id for job in submit(source, "a", "b")]
        time.sleep(0.002)  # within a millisecond, the ids of two processes are in any order

    assert ids == sorted(ids)
    assert drain(store) == ids


def test_ids_sort_by_acceptance(store: JobStore) -> None:
    ids = [job.id for job in submit(store, *"abcdefghij")]

    assert ids == sorted(set(ids))


def test_an_unknown_job_is_none_everywhere(store: JobStore) -> None:
    assert store.get("X") is None
    assert store.cancel("X") is None
    assert store.delete("X") is None
    assert store.wait("X", 0, 5) is None


# Admission


def test_a_full_queue_refuses_and_a_claimed_job_takes_no_place(store: JobStore) -> None:
    tight = Admission(capacity=2)
    submit(store, "a", "b")

    with pytest.raises(QueueFull) as refused:
        store.submit(new_job("c"), tight)
    assert str(refused.value) == "all 2 places in the queue are taken"
    assert refused.value.retry_after >= 1
    assert store.counts().queued == 2

    claim(store)
    assert store.submit(new_job("c"), tight).created


def test_space_is_reserved_until_a_job_ends(store: JobStore) -> None:
    admission = Admission(capacity=100, free_bytes=250)
    submit(store, "a", "b")

    with pytest.raises(NoSpace) as refused:
        store.submit(new_job("c"), admission)
    assert str(refused.value).endswith("it may take 100 bytes, 50 are free")
    assert store.submit(new_job("small", reserve=50), admission).created

    store.finish(claim(store), VIDEO)
    assert store.submit(new_job("c"), admission).created
    with pytest.raises(NoSpace, match="0 are free"):
        store.submit(new_job("d"), dataclasses.replace(admission, free_bytes=100))


@pytest.mark.parametrize("end", ["finished", "failed", "cancelled", "deleted", "deleted claimed"])
def test_however_a_job_ends_its_reservation_is_freed_once(store: JobStore, end: str) -> None:
    job = submit(store, "a")[0]
    if end == "cancelled":
        store.cancel(job.id)
    elif end == "deleted":
        store.delete(job.id)
    else:
        held = claim(store)
        if end == "deleted claimed":
            store.delete(job.id)
        store.finish(held, VIDEO if end == "finished" else BROKEN)
        store.finish(held, VIDEO)
    store.cancel(job.id)
    store.delete(job.id)

    exact = Admission(capacity=1, free_bytes=100, client_active=1)
    assert store.submit(new_job("b"), exact).created
    with pytest.raises(NoSpace):
        store.submit(new_job("c"), dataclasses.replace(exact, capacity=2))


def test_terabytes_are_counted_exactly(store: JobStore) -> None:
    huge = 10 * 2**40 + 1
    store.submit(new_job("a", reserve=huge), ROOM)

    with pytest.raises(NoSpace):
        store.submit(new_job("b", reserve=huge), Admission(10, free_bytes=2 * huge - 1))
    assert store.submit(new_job("b", reserve=huge), Admission(10, free_bytes=2 * huge)).created


def test_a_client_has_a_bounded_number_of_unfinished_jobs(store: JobStore) -> None:
    admission = Admission(capacity=100, client_active=2)
    for prompt in "ab":
        store.submit(new_job(prompt, owner="anna"), admission)
    held = claim(store)

    with pytest.raises(ClientLimit) as refused:
        store.submit(new_job("c", owner="anna"), admission)
    assert str(refused.value) == "2 of your jobs are unfinished, 2 may be"
    assert refused.value.retry_after >= 1
    assert store.submit(new_job("c", owner="ben"), admission).created

    store.finish(held, BROKEN)
    assert store.submit(new_job("c", owner="anna"), admission).created


def test_a_client_has_a_bounded_number_of_submissions_a_day(store: JobStore) -> None:
    admission = Admission(capacity=100, client_daily=2)
    first = store.submit(new_job("a", owner="anna"), admission).job
    store.submit(new_job("b", owner="anna"), admission)
    store.delete(first.id)  # that it is gone does not help

    with pytest.raises(ClientLimit) as refused:
        store.submit(new_job("c", owner="anna"), admission)
    assert str(refused.value) == "you submitted 2 jobs in 24 hours, 2 are allowed"
    assert 86_300 < refused.value.retry_after <= 86_400
    assert store.submit(new_job("c", owner="ben"), admission).created


def test_what_was_refused_does_not_count_for_the_day(store: JobStore) -> None:
    for _ in range(3):
        with pytest.raises(QueueFull):
            store.submit(new_job(owner="anna"), Admission(capacity=0, client_daily=1))

    assert store.submit(new_job(owner="anna"), Admission(capacity=1, client_daily=1)).created


def test_of_many_simultaneous_submissions_no_more_than_fit_are_accepted(
    store: JobStore, other: JobStore
) -> None:
    def attempt(number: int) -> bool:
        try:
            return [store, other][number % 2].submit(new_job(), Admission(capacity=5)).created
        except QueueFull:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(40))) == 5


# Repeated submissions


def test_a_repeated_key_answers_with_the_first_job(store: JobStore, other: JobStore) -> None:
    request = new_job("a", key="k")
    first = store.submit(request, ROOM)
    again = other.submit(request, Admission(capacity=0))  # nothing new needs a place

    assert first.created
    assert not again.created
    assert again.job == first.job
    assert store.counts().queued == 1


def test_a_key_of_a_different_request_is_a_conflict(store: JobStore) -> None:
    store.submit(new_job("a", key="k"), ROOM)

    with pytest.raises(KeyConflict):
        store.submit(new_job("b", key="k", digest="e"), ROOM)
    assert store.counts().queued == 1


def test_every_owner_has_keys_of_its_own(store: JobStore) -> None:
    # Names that would be the same if they were only put together.
    pairs = [("anna", "k"), ("ben", "k"), ("anna:x", "k"), ("anna", "x:k"), ("", "k")]
    submissions = [store.submit(new_job(owner=owner, key=key), ROOM) for owner, key in pairs]

    assert all(submission.created for submission in submissions)


def test_a_key_outlives_failure_and_is_free_after_deletion(store: JobStore) -> None:
    request = new_job(key="k")
    job = store.submit(request, ROOM).job
    store.finish(claim(store), BROKEN)
    assert store.submit(request, ROOM).job.id == job.id

    store.delete(job.id)
    assert store.submit(request, ROOM).created


def test_one_key_from_many_clients_at_once_makes_one_job(store: JobStore, other: JobStore) -> None:
    request = new_job(key="k")
    with ThreadPoolExecutor(8) as pool:
        submissions = list(
            pool.map(lambda n: [store, other][n % 2].submit(request, ROOM), range(16))
        )

    assert sum(submission.created for submission in submissions) == 1
    assert len({submission.job.id for submission in submissions}) == 1


def reused(store: JobStore, owner: str = "anna", prompt: str = "a") -> str | None:
    """The id of the job that answers a second equal request, if an earlier one does."""
    submission = store.submit(new_job(prompt, owner=owner, reuse=True), ROOM)
    if not submission.created:
        return submission.job.id
    store.delete(submission.job.id)
    return None


def test_a_job_in_flight_that_was_not_to_be_shared_is_not(store: JobStore) -> None:
    job = submit(store, "a", owner="anna")[0]
    assert reused(store) is None  # its client may cancel it by going away
    store.finish(claim(store), VIDEO)
    assert reused(store) == job.id


def test_an_equal_job_is_reused_in_flight_and_completed(store: JobStore) -> None:
    job = store.submit(new_job("a", owner="anna", reuse=True), ROOM).job
    assert reused(store) == job.id
    held = claim(store)
    assert reused(store) == job.id
    store.finish(held, VIDEO)
    assert reused(store) == job.id

    assert reused(store, prompt="b") is None
    assert reused(store, owner="ben") is None
    store.delete(job.id)
    assert reused(store) is None


def test_a_job_is_not_reused_unless_asked_for(store: JobStore) -> None:
    first, second = submit(store, "a", "a")

    assert first.id != second.id


def test_a_failed_or_cancelled_job_is_not_reused(store: JobStore) -> None:
    failed, queued, claimed = submit(store, "failed", "queued", "claimed", owner="anna")
    store.finish(claim(store), BROKEN)
    store.cancel(queued.id)
    held = claim(store)
    store.cancel(claimed.id)

    assert [reused(store, prompt=it.parameters.prompt) for it in (failed, queued)] == [None, None]
    assert reused(store, prompt="claimed") is None
    store.finish(held, VIDEO)  # it was done before it heard
    assert reused(store, prompt="claimed") is None


def test_reuse_finds_the_earlier_job_behind_a_failed_or_deleted_one(store: JobStore) -> None:
    completed = submit(store, "a", owner="anna")[0]
    store.finish(claim(store), VIDEO)
    submit(store, "a", owner="anna")
    store.finish(claim(store), BROKEN)
    assert reused(store) == completed.id

    deleted = submit(store, "a", owner="anna")[0]
    store.delete(deleted.id)
    assert reused(store) == completed.id


# Claims


def test_a_claimed_job_is_in_progress(store: JobStore, other: JobStore) -> None:
    job = submit(store, "a")[0]
    held = claim(store, "engine-1")

    assert held.job.id == job.id
    assert held.job.state is JobState.IN_PROGRESS
    assert held.job.engine == "engine-1"
    assert held.job.attempts == 1
    assert held.job.started_at is not None
    assert held.job.started_at >= job.created_at
    assert held.job.version > job.version
    assert other.get(job.id) == held.job


@pytest.fixture
def never_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is woken, or waits in vain: nobody looks again by himself."""
    for module in (redis_store, sqlite_store):
        monkeypatch.setattr(module, "_LOOK_AGAIN_SECONDS", 60.0)


def test_claiming_an_empty_queue_waits_no_longer_than_asked(store: JobStore) -> None:
    with within(SOON):  # in Redis, to block for 0 is to block for ever
        assert store.claim("engine", 0) is None
    started = time.monotonic()
    assert store.claim("engine", 0.4) is None
    assert 0.4 <= time.monotonic() - started < 0.4 + SOON


@pytest.mark.usefixtures("never_looking")
@pytest.mark.parametrize("event", ["submitted", "released", "recovered"])
def test_a_waiting_engine_gets_a_job_at_once(store: JobStore, other: JobStore, event: str) -> None:
    if event != "submitted":
        submit(store, "a")
        held = claim(store, "busy")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.claim, "waiting", PATIENCE)
        time.sleep(0.2)
        assert not waiting.done()
        happened = time.monotonic()
        if event == "submitted":
            submit(store, "a")
        elif event == "released":
            assert store.release(held)
        else:
            assert store.recover("busy") == 1
        assert waiting.result(PATIENCE) is not None
        assert time.monotonic() - happened < SOON


def test_every_job_is_claimed_exactly_once(store: JobStore, other: JobStore) -> None:
    ids = {job.id for job in submit(store, *map(str, range(200)))}
    claimed: list[list[str]] = [[], [], [], []]

    def engine(number: int) -> None:
        source = [store, other][number % 2]
        while (found := source.claim(f"engine-{number}", 0.1)) is not None:
            claimed[number].append(found.job.id)
            source.heartbeat(found, Progress(Stage.DENOISING, 1, 2, 50))
            assert source.finish(found, VIDEO) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(engine, range(4)))

    assert sorted(itertools.chain(*claimed)) == sorted(ids)
    counts = store.counts()
    assert (counts.queued, counts.in_progress) == (0, 0)


def test_jobs_submitted_while_engines_wait_are_each_claimed_once(
    store: JobStore, other: JobStore
) -> None:
    stop = threading.Event()

    def engine(source: JobStore) -> list[str]:
        claimed = []
        while not stop.is_set():
            if (found := source.claim("engine", 0.2)) is not None:
                claimed.append(found.job.id)
        return claimed

    with ThreadPoolExecutor(4) as pool:
        engines = [pool.submit(engine, source) for source in (store, other, store, other)]
        ids = [job.id for _ in range(10) for job in submit(other, "a", "b", "c")]
        deadline = time.monotonic() + PATIENCE
        while store.counts().queued and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        claimed = [it for future in engines for it in future.result()]

    assert sorted(claimed) == sorted(ids)


# Heartbeats


def test_progress_is_seen_by_others_and_raises_the_version(
    store: JobStore, other: JobStore
) -> None:
    submit(store, "a")
    held = claim(store)
    progress = Progress(Stage.DENOISING, 3, 50, 6)

    assert store.heartbeat(held) is Order.GO_ON
    assert current(other, held.job) == held.job  # a mere sign of life is no change
    assert store.heartbeat(held, progress) is Order.GO_ON
    seen = current(other, held.job)
    assert seen.progress == progress
    assert seen.version > held.job.version


@pytest.mark.usefixtures("never_looking")
def test_progress_wakes_who_waits_in_another_process(store: JobStore, other: JobStore) -> None:
    submit(store, "a")
    held = claim(store)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.wait, held.job.id, held.job.version, PATIENCE)
        time.sleep(0.7)
        assert not waiting.done()
        with within(SOON):
            store.heartbeat(held, Progress(Stage.WRITING, 1, 1, 99))
            job = waiting.result(PATIENCE)
    assert job is not None
    assert job.progress is not None
    assert job.progress.percent == 99


def test_a_new_attempt_begins_without_progress(open_store: Open) -> None:
    store = open_store(SHORT_LEASE)
    submit(store, "a")
    store.heartbeat(claim(store), Progress(Stage.DENOISING, 3, 50, 6))
    time.sleep(SHORT_LEASE)

    taken = claim(store, "second", PATIENCE)
    assert taken.job.progress is None
    store.heartbeat(taken, Progress(Stage.DENOISING, 1, 50, 2))
    store.release(taken)
    assert current(store, taken.job).progress is None


# Leases


def test_a_job_whose_lease_ran_out_is_taken_over(open_store: Open) -> None:
    store, other = open_store(SHORT_LEASE), open_store(SHORT_LEASE)
    submit(store, "a")
    lost = claim(store, "lost")
    assert other.claim("heir", 0) is None
    taken = claim(other, "heir", SHORT_LEASE + 2)

    assert taken.job.id == lost.job.id
    assert (taken.job.engine, taken.job.attempts) == ("heir", 2)
    assert taken.token != lost.token


def test_what_the_earlier_engine_still_says_has_no_effect(open_store: Open) -> None:
    store, other = open_store(SHORT_LEASE), open_store(SHORT_LEASE)
    submit(store, "a")
    lost = claim(store, "lost")
    time.sleep(SHORT_LEASE)
    taken = claim(other, "heir", PATIENCE)

    assert store.heartbeat(lost, Progress(Stage.DENOISING, 3, 50, 6)) is Order.LOST
    assert store.finish(lost, BROKEN) is None
    assert store.release(lost) is False
    assert current(store, lost.job) == taken.job

    finished = other.finish(taken, VIDEO)
    assert finished is not None
    assert store.finish(lost, BROKEN) is None
    assert store.heartbeat(lost) is Order.LOST
    assert current(store, lost.job) == finished


def test_heartbeats_keep_a_job_for_as_long_as_they_come(open_store: Open) -> None:
    store, other = open_store(SHORT_LEASE), open_store(SHORT_LEASE)
    submit(store, "a")
    held = claim(store)
    for _ in range(8):
        time.sleep(SHORT_LEASE / 3)
        assert store.heartbeat(held) is Order.GO_ON
        assert other.claim("thief", 0) is None


def test_a_late_heartbeat_keeps_a_job_that_nobody_took(open_store: Open) -> None:
    store = open_store(SHORT_LEASE)
    submit(store, "a")
    held = claim(store)
    time.sleep(SHORT_LEASE * 1.5)

    assert store.heartbeat(held) is Order.GO_ON
    assert store.claim("thief", 0) is None
    assert store.finish(held, VIDEO) is not None


def test_an_engine_may_take_over_from_itself(open_store: Open) -> None:
    store = open_store(SHORT_LEASE)
    submit(store, "a")
    first = claim(store)
    time.sleep(SHORT_LEASE)
    second = claim(store, wait=PATIENCE)

    assert store.heartbeat(first) is Order.LOST
    assert store.heartbeat(second) is Order.GO_ON


def test_one_lost_lease_is_found_among_many_that_are_kept(open_store: Open) -> None:
    store, other = open_store(1.0), open_store(1.0)
    submit(store, *map(str, range(40)))
    held = [claim(store, f"engine-{number}") for number in range(40)]
    time.sleep(1.0)
    for it in held[:-1]:
        assert store.heartbeat(it) is Order.GO_ON

    assert claim(other, "heir").job.id == held[-1].job.id
    assert other.claim("heir", 0) is None


def test_a_job_that_was_lost_goes_before_those_that_wait(open_store: Open) -> None:
    store = open_store(SHORT_LEASE)
    lost, *waiting = submit(store, "a", "b", "c")
    claim(store)
    time.sleep(SHORT_LEASE * 1.2)

    assert drain(store) == [lost.id, *(job.id for job in waiting)]


def test_a_lost_lease_has_exactly_one_heir(open_store: Open) -> None:
    store, other = open_store(1.0), open_store(1.0)
    for _ in range(10):
        submit(store, "a")
        claim(store)
    time.sleep(1.1)
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda n: [store, other][n % 2].claim(f"heir-{n}", 0), range(10)))

    assert len({it.job.id for it in claims if it}) == 10


# The end


@pytest.mark.parametrize(
    ("outcome", "state"), [(VIDEO, JobState.COMPLETED), (BROKEN, JobState.FAILED)]
)
def test_a_finished_job_tells_how_it_ended(
    store: JobStore, other: JobStore, outcome: Completed | Failed, state: JobState
) -> None:
    submit(store, "a")
    held = claim(store, "engine-1")
    job = store.finish(held, outcome)

    assert job is not None
    assert (job.state, job.outcome, job.engine) == (state, outcome, "engine-1")
    assert job.ended_at is not None
    assert job.started_at is not None
    assert job.ended_at >= job.started_at
    assert job.version > held.job.version
    assert other.get(job.id) == job
    assert store.claim("engine", 0) is None


def test_to_finish_twice_is_to_finish_once(store: JobStore, other: JobStore) -> None:
    submit(store, "a")
    held = claim(store)
    job = store.finish(held, VIDEO)

    assert other.finish(held, VIDEO) == job  # as after an answer that got lost
    assert other.finish(held, BROKEN) == job
    assert store.heartbeat(held) is Order.LOST
    assert store.release(held) is False
    assert current(store, held.job) == job


def test_of_two_ends_at_once_one_is_true(store: JobStore, other: JobStore) -> None:
    for _ in range(20):
        submit(store, "a")
        held = claim(store)
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(store.finish, held, VIDEO), pool.submit(other.finish, held, BROKEN)]
        jobs = [end.result() for end in ends]
        assert jobs[0] == jobs[1] == store.get(held.job.id)


# Handing back


def test_a_released_job_is_first_again_as_if_never_claimed(
    store: JobStore, other: JobStore
) -> None:
    first, *others = submit(store, "a", "b", "c")
    held = claim(store)

    assert store.release(held) is True
    job = current(other, first)
    assert job == dataclasses.replace(first, version=job.version)
    assert job.version > held.job.version
    assert drain(other) == [first.id, *(it.id for it in others)]
    assert current(store, first).attempts == 1


def test_released_jobs_are_taken_oldest_first(store: JobStore) -> None:
    ids = [job.id for job in submit(store, "a", "b", "c", "d")]
    held = [claim(store) for _ in range(3)]
    for it in reversed(held):
        store.release(it)

    assert drain(store) == ids


def test_what_was_released_is_not_the_engines_any_more(store: JobStore) -> None:
    submit(store, "a")
    held = claim(store)
    store.release(held)

    assert store.heartbeat(held) is Order.LOST
    assert store.finish(held, VIDEO) is None
    again = claim(store, "second")
    assert again.job.attempts == 1
    assert store.release(held) is False
    assert store.finish(held, VIDEO) is None
    assert store.heartbeat(again) is Order.GO_ON


def test_a_released_job_can_be_cancelled_and_deleted(store: JobStore) -> None:
    cancelled, deleted = submit(store, "a", "b")
    for _ in range(2):
        claim(store)
    assert store.recover("engine") == 2
    store.cancel(cancelled.id)
    store.delete(deleted.id)

    assert store.claim("engine", 0) is None
    assert store.counts().queued == 0


def test_recovery_hands_back_what_this_engine_held(store: JobStore, other: JobStore) -> None:
    first, second, third, waiting = submit(store, "a", "b", "c", "d")
    held = [claim(store, engine) for engine in ("one", "two", "one")]

    assert other.recover("one") == 2
    assert current(store, first).state is JobState.QUEUED
    assert current(store, first).engine is None
    assert current(store, first).started_at is None
    assert current(store, second).engine == "two"
    for it in (held[0], held[2]):  # words of a process that should be gone
        assert store.heartbeat(it) is Order.LOST
        assert store.finish(it, VIDEO) is None
        assert store.release(it) is False
    assert other.recover("one") == 0
    assert drain(other) == [first.id, third.id, waiting.id]
    assert current(store, first).attempts == 2
    assert current(store, second).attempts == 1


def test_a_handed_back_job_keeps_its_reservation_and_place(store: JobStore) -> None:
    submit(store, "a", owner="anna")
    store.release(claim(store))

    for admission in (
        Admission(capacity=1),
        Admission(capacity=9, free_bytes=199),
        Admission(capacity=9, client_active=1),
    ):
        with pytest.raises((QueueFull, NoSpace, ClientLimit)):
            store.submit(new_job("b", owner="anna"), admission)


# Cancelling and deleting


def test_a_queued_job_is_cancelled_at_once(store: JobStore, other: JobStore) -> None:
    cancelled, kept = submit(store, "a", "b")
    job = other.cancel(cancelled.id)

    assert job is not None
    assert (job.state, job.outcome) == (JobState.FAILED, CANCELLED)
    assert job.cancel_requested
    assert job.ended_at is not None
    assert job.version > cancelled.version
    assert drain(store) == [kept.id]


def test_the_engine_is_asked_to_cancel_a_claimed_job(store: JobStore, other: JobStore) -> None:
    submit(store, "a")
    held = claim(store)
    job = other.cancel(held.job.id)

    assert job is not None
    assert job.state is JobState.IN_PROGRESS
    assert job.cancel_requested
    assert job.version > held.job.version
    assert other.cancel(held.job.id) == job  # asked once is enough
    assert store.heartbeat(held) is Order.CANCEL
    assert store.heartbeat(held, Progress(Stage.DENOISING, 1, 2, 50)) is Order.CANCEL
    ended = store.finish(held, CANCELLED)
    assert ended is not None
    assert (ended.state, ended.outcome) == (JobState.FAILED, CANCELLED)


def test_an_ended_job_stays_as_it_ended(store: JobStore) -> None:
    submit(store, "a")
    job = store.finish(claim(store), VIDEO)

    assert job is not None
    assert store.cancel(job.id) == job


def test_a_cancel_outlives_the_engine_that_was_asked(open_store: Open) -> None:
    store = open_store(SHORT_LEASE)
    submit(store, "a")
    store.cancel(claim(store).job.id)
    time.sleep(SHORT_LEASE)

    taken = claim(store, "heir", PATIENCE)
    assert taken.job.cancel_requested
    assert store.heartbeat(taken) is Order.CANCEL


def test_a_job_is_either_cancelled_or_claimed(store: JobStore, other: JobStore) -> None:
    for _ in range(40):
        job = submit(store, "a")[0]
        with ThreadPoolExecutor(2) as pool:
            claiming = pool.submit(store.claim, "engine", 0)
            cancelling = pool.submit(other.cancel, job.id)
        held, cancelled = claiming.result(), cancelling.result()
        assert cancelled is not None
        if held is None:
            assert cancelled.outcome == CANCELLED
        else:
            assert store.heartbeat(held) is Order.CANCEL
            store.finish(held, CANCELLED)
        assert current(store, job).outcome == CANCELLED
    assert store.counts().in_progress == 0


def test_a_job_is_either_cancelled_or_finished(store: JobStore, other: JobStore) -> None:
    for _ in range(20):
        submit(store, "a")
        held = claim(store)
        with ThreadPoolExecutor(2) as pool:
            finishing = pool.submit(store.finish, held, VIDEO)
            pool.submit(other.cancel, held.job.id).result()
        job = finishing.result()
        assert job is not None
        assert job == store.get(held.job.id)
        assert job.outcome == VIDEO


def test_a_queued_claimed_and_ended_job_can_be_deleted(store: JobStore, other: JobStore) -> None:
    ended, claimed, queued = submit(store, "a", "b", "c")
    store.finish(claim(store), VIDEO)
    held = claim(store)

    for job in (ended, claimed, queued):
        was = current(store, job)
        assert other.delete(job.id) == was
        assert store.get(job.id) is None
        assert other.delete(job.id) is None
    assert store.heartbeat(held) is Order.LOST
    assert store.finish(held, VIDEO) is None
    assert store.release(held) is False
    assert store.claim("engine", 0) is None
    assert store.get(claimed.id) is None
    counts = store.counts()
    assert (counts.queued, counts.in_progress, counts.oldest_created_at) == (0, 0, None)
    assert list(store.list(None, None, 9, newest_first=True).jobs) == []
    assert list(store.ended_before(time.time() + 9, 9)) == []


def test_a_deleted_job_is_no_heirs(open_store: Open) -> None:
    store = open_store(SHORT_LEASE)
    deleted, kept = submit(store, "a", "b")
    claim(store)
    store.delete(deleted.id)
    time.sleep(SHORT_LEASE * 1.2)

    assert drain(store) == [kept.id]


@pytest.mark.usefixtures("never_looking")
def test_deleting_wakes_who_waits(store: JobStore, other: JobStore) -> None:
    job = submit(store, "a")[0]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.wait, job.id, job.version, PATIENCE)
        time.sleep(0.7)
        with within(SOON):
            store.delete(job.id)
            assert waiting.result(PATIENCE) is None


def test_a_job_is_claimed_or_deleted_and_never_comes_back(store: JobStore, other: JobStore) -> None:
    for _ in range(40):
        job = submit(store, "a")[0]
        with ThreadPoolExecutor(2) as pool:
            claiming = pool.submit(store.claim, "engine", 0)
            pool.submit(other.delete, job.id).result()
        held = claiming.result()
        if held is not None:
            assert store.heartbeat(held, Progress(Stage.PROMPT, 0, 1, 0)) is Order.LOST
        assert store.get(job.id) is None
    assert store.claim("engine", 0) is None
    assert store.submit(new_job(), Admission(capacity=1, free_bytes=100)).created


# Reading


def test_lists_are_paged_in_both_orders(store: JobStore) -> None:
    ids = [job.id for job in submit(store, *"abcde")]

    for newest_first in (False, True):
        expected = ids[::-1] if newest_first else ids
        pages, after = [], None
        while True:
            page = store.list(None, after, 2, newest_first=newest_first)
            pages.append([job.id for job in page.jobs])
            if not page.has_more:
                break
            after = pages[-1][-1]
        assert pages == [expected[:2], expected[2:4], expected[4:]]
    exact = store.list(None, None, 5, newest_first=True)
    assert (len(exact.jobs), exact.has_more) == (5, False)


def test_a_list_shows_one_owners_jobs(store: JobStore) -> None:
    mine = [submit(store, "a", owner=owner)[0].id for owner in ("anna", "ben", "anna", "")][::2]

    page = store.list("anna", None, 9, newest_first=False)
    assert [job.id for job in page.jobs] == mine
    assert len(store.list(None, None, 9, newest_first=False).jobs) == 4
    assert len(store.list("", None, 9, newest_first=False).jobs) == 1
    assert store.list("carl", None, 9, newest_first=True).jobs == []
    after = store.list("anna", mine[0], 9, newest_first=False)
    assert [job.id for job in after.jobs] == mine[1:]


def test_a_page_may_begin_after_a_job_that_is_gone(store: JobStore) -> None:
    ids = [job.id for job in submit(store, "a", "b", "c")]
    store.delete(ids[1])

    page = store.list(None, ids[1], 9, newest_first=True)
    assert [job.id for job in page.jobs] == ids[:1]


def test_waiting_ends_after_the_timeout_with_the_job_as_it_is(store: JobStore) -> None:
    job = submit(store, "a")[0]
    started = time.monotonic()
    assert store.wait(job.id, job.version, 0.3) == job
    assert 0.3 <= time.monotonic() - started < 0.3 + SOON

    with within(SOON):
        assert store.wait(job.id, job.version, 0) == job
        assert store.wait(job.id, job.version - 1, PATIENCE) == job


@pytest.mark.usefixtures("never_looking")
def test_every_change_wakes_who_waits(store: JobStore, other: JobStore) -> None:
    job = submit(store, "a")[0]
    job_id = job.id
    held: list[Claim] = []
    for change in (
        lambda: held.append(claim(store)),
        lambda: store.heartbeat(held[-1], Progress(Stage.PROMPT, 0, 1, 0)),
        lambda: store.release(held[-1]),
        lambda: held.append(claim(store)),
        lambda: store.recover("engine"),
        lambda: held.append(claim(store)),
        lambda: store.cancel(job_id),
        lambda: store.finish(held[-1], CANCELLED),
    ):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.wait, job.id, job.version, PATIENCE)
            time.sleep(0.1)
            with within(SOON):
                change()
                seen = waiting.result(PATIENCE)
        assert seen is not None
        assert seen.version > job.version
        job = seen


def test_closing_ends_all_waiting(open_store: Open) -> None:
    store = open_store()
    submit(store, "a")
    held = claim(store)
    with ThreadPoolExecutor(2) as pool:
        watching = pool.submit(store.wait, held.job.id, held.job.version, PATIENCE)
        waiting = pool.submit(store.claim, "engine", PATIENCE)
        time.sleep(0.3)
        with within(2):
            store.close()
            watching.exception(PATIENCE)
            waiting.exception(PATIENCE)


def test_counts_describe_the_queue(store: JobStore) -> None:
    empty = store.counts()
    assert (empty.queued, empty.in_progress) == (0, 0)
    assert (empty.oldest_created_at, empty.job_seconds) == (None, None)

    first, second, third = submit(store, "a", "b", "c")
    held = claim(store)
    counts = store.counts()
    assert (counts.queued, counts.in_progress, counts.job_seconds) == (2, 1, None)
    assert counts.oldest_created_at == pytest.approx(first.created_at, abs=1e-4)

    time.sleep(0.2)
    store.finish(held, VIDEO)
    counts = store.counts()
    assert counts.oldest_created_at == pytest.approx(second.created_at, abs=1e-4)
    assert counts.job_seconds == pytest.approx(0.2, abs=0.15)
    store.cancel(second.id)
    store.delete(third.id)
    counts = store.counts()
    assert (counts.queued, counts.in_progress, counts.oldest_created_at) == (0, 0, None)
    assert counts.job_seconds is not None  # what was cancelled tells nothing of how long one takes


def test_retry_after_follows_how_long_jobs_take(store: JobStore) -> None:
    submit(store, "a")
    held = claim(store)
    time.sleep(1.2)
    store.finish(held, VIDEO)
    with pytest.raises(QueueFull) as refused:
        store.submit(new_job(), Admission(capacity=0))

    assert refused.value.retry_after == 2


def test_ended_jobs_are_found_by_age_oldest_first(store: JobStore) -> None:
    first, second, cancelled, _waiting = submit(store, "a", "b", "c", "d")
    held = [claim(store), claim(store)]
    middle = store.finish(held[1], BROKEN)
    time.sleep(0.01)
    store.finish(held[0], VIDEO)
    time.sleep(0.01)
    store.cancel(cancelled.id)

    later = time.time() + 9
    assert [job.id for job in store.ended_before(later, 9)] == [second.id, first.id, cancelled.id]
    assert [job.id for job in store.ended_before(later, 1)] == [second.id]
    assert middle is not None
    assert middle.ended_at is not None
    assert store.ended_before(middle.ended_at, 9) == []


def test_everything_at_once_leaves_the_books_in_order(open_store: Open) -> None:
    """Clients that cancel and delete while engines come, go and lose their leases."""
    stores = [open_store(0.05), open_store(0.05)]
    submitted: list[str] = []
    deleted: set[str] = set()
    done = threading.Event()

    def client(number: int) -> None:
        for turn in range(30):
            job = stores[number % 2].submit(new_job(f"{number} {turn}", owner="anna"), ROOM).job
            submitted.append(job.id)
            if turn % 3 == 1:
                stores[turn % 2].cancel(job.id)
            if turn % 5 == 2:
                deleted.add(job.id)
                stores[turn % 2].delete(job.id)

    def engine(number: int) -> None:
        store, turn = stores[number % 2], 0
        while not done.is_set():
            turn += 1
            held = store.claim(f"engine-{number}", 0.05)
            if held is None:
                continue
            order = store.heartbeat(held, Progress(Stage.DENOISING, 1, 2, 50))
            if turn % 7 == 3:
                store.release(held)
            elif turn % 11 == 4:
                store.recover(f"engine-{number}")
            elif turn % 13 != 5:  # else it is lost
                store.finish(held, CANCELLED if order is Order.CANCEL else VIDEO)

    with ThreadPoolExecutor(7) as pool:
        engines = [pool.submit(engine, number) for number in range(4)]
        for future in [pool.submit(client, number) for number in range(3)]:
            future.result()
        deadline = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < deadline:
            counts = stores[0].counts()
            if counts.queued == counts.in_progress == 0:
                break
            time.sleep(0.05)
        done.set()
        for future in engines:
            future.result()

    jobs = stores[0].list("anna", None, 1000, newest_first=False).jobs
    assert {job.id for job in jobs} == set(submitted) - deleted
    assert all(job.state.ended and job.outcome for job in jobs)
    exact = Admission(capacity=1, free_bytes=100, client_active=1)
    assert stores[0].submit(new_job("last", owner="anna"), exact).created


# SQLite alone


def _claim_all(path: Path, engine: str, found: multiprocessing.Queue[list[str]]) -> None:
    with closing(SqliteStore(path, LEASE)) as store:
        found.put([it.job.id for it in iter(lambda: store.claim(engine, 0.2), None) if it])


def test_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    spawn = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[list[str]] = spawn.Queue()
    with closing(SqliteStore(path, LEASE)) as store:
        ids = [job.id for job in submit(store, *map(str, range(60)))]
        processes = [
            spawn.Process(target=_claim_all, args=(path, f"engine-{n}", found)) for n in range(2)
        ]
        for process in processes:
            process.start()
        claimed = [found.get(timeout=30) for _ in processes]
        for process in processes:
            process.join(30)

    assert sorted(itertools.chain(*claimed)) == ids


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    for turn in range(10):
        path, ready = tmp_path / f"{turn}.db", threading.Barrier(8)

        def open_and_submit(
            number: int, path: Path = path, ready: threading.Barrier = ready
        ) -> str:
            ready.wait(PATIENCE)
            with closing(SqliteStore(path, LEASE)) as store:
                return submit(store, str(number))[0].id

        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(open_and_submit, range(8)))
        with closing(SqliteStore(path, LEASE)) as store:
            assert {job.id for job in store.list(None, None, 99, newest_first=True).jobs} == ids


def test_jobs_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "jobs.db", LEASE)) as store:
        first, second = submit(store, "a", "b")
        held = claim(store)
    with closing(SqliteStore(tmp_path / "jobs.db", LEASE)) as store:
        assert store.heartbeat(held) is Order.GO_ON
        assert store.get(first.id) == held.job
        assert drain(store) == [second.id]


def test_a_new_boot_ends_all_leases(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with closing(SqliteStore(path, LEASE)) as store:
        submit(store, "a")
        held = claim(store)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE boot SET id = 'an earlier one'")
    with closing(SqliteStore(path, LEASE)) as store:
        taken = claim(store, "heir")
        assert taken.job.attempts == 2
        assert store.heartbeat(held) is Order.LOST
    with closing(SqliteStore(path, LEASE)) as store:  # the same boot
        assert store.claim("thief", 0) is None


def test_the_file_of_a_newer_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    SqliteStore(path, LEASE).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(StoreUnavailable) as refused:
        SqliteStore(path, LEASE)
    assert str(refused.value) == (
        f"{path} was written by a newer server (schema 99, this one knows 1): run that server, "
        "or set T2V_STATE_DIR to another directory."
    )


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"something else" * 100)

    with pytest.raises(StoreUnavailable, match=r"jobs\.db cannot be used: .*not a database"):
        SqliteStore(tmp_path / "jobs.db", LEASE)
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        SqliteStore(tmp_path / "missing" / "jobs.db", LEASE)


def test_a_locked_file_is_unavailable_and_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2v_server.jobs.sqlite_store._BUSY_SECONDS", 0.1)
    path = tmp_path / "jobs.db"
    with closing(SqliteStore(path, LEASE)) as store, closing(sqlite3.connect(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            submit(store, "a")
        assert store.counts().queued == 0
        db.rollback()
        submit(store, "b")
        assert store.counts().queued == 1


# Redis alone


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill, with a password."""
    with RedisServer.running(tmp_path, password="a long secret") as server:
        yield server


def open_redis(server: RedisServer, tmp_path: Path, lease: float = LEASE) -> RedisStore:
    password = tmp_path / "password"
    password.write_text("a long secret\n")
    return RedisStore(server.url, lease, password_file=password)


def test_a_killed_redis_is_unavailable_and_forgets_nothing(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with closing(open_redis(own_redis, tmp_path)) as store:
        ids = [job.id for job in submit(store, *map(str, range(50)))]
        done = store.finish(claim(store), VIDEO)
        held = claim(store)
        back = claim(store)
        store.release(back)
        own_redis.kill()

        calls: list[Callable[[], object]] = [
            lambda: submit(store, "lost"),
            lambda: store.claim("engine", 5),
            lambda: store.heartbeat(held),
            lambda: store.finish(held, VIDEO),
            lambda: store.release(held),
            lambda: store.recover("engine"),
            lambda: store.cancel(ids[0]),
            lambda: store.delete(ids[0]),
            lambda: store.get(ids[0]),
            lambda: store.list(None, None, 9, newest_first=True),
            lambda: store.wait(ids[0], 99, 5),
            store.counts,
            lambda: store.ended_before(0, 9),
            store.appends,
        ]
        for call in calls:
            with within(3), pytest.raises(StoreUnavailable, match="the job store does not answer"):
                call()

        own_redis.start()
        listed = store.list(None, None, 99, newest_first=False).jobs
        assert [job.id for job in listed] == ids
        assert listed[0] == done
        assert store.heartbeat(held) is Order.GO_ON
        assert drain(store) == ids[2:]


def test_no_accepted_job_is_lost_when_redis_is_killed_in_between(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    accepted: list[str] = []
    stop = threading.Event()

    def client(store: RedisStore) -> None:
        while not stop.is_set():
            try:
                accepted.append(submit(store, "a")[0].id)
            except StoreUnavailable:
                time.sleep(0.02)

    with closing(open_redis(own_redis, tmp_path)) as store:
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, store) for _ in range(4)]
            for _ in range(3):
                time.sleep(0.2)
                own_redis.kill()
                time.sleep(0.1)
                own_redis.start()
            time.sleep(0.2)
            stop.set()
            for it in clients:
                it.result(PATIENCE)
        listed = {job.id for job in store.list(None, None, 100_000, newest_first=True).jobs}
        assert set(accepted) <= listed
        assert store.counts().queued == len(listed)
        assert sorted(drain(store)) == sorted(listed)


@pytest.mark.usefixtures("never_looking")
def test_who_waited_through_a_restart_of_redis_still_hears(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with (
        closing(open_redis(own_redis, tmp_path)) as store,
        closing(open_redis(own_redis, tmp_path)) as other,
    ):
        job = submit(store, "a")[0]
        other.wait(job.id, job.version, 0.3)  # subscribed
        own_redis.kill()
        own_redis.start()
        time.sleep(1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.wait, job.id, job.version, PATIENCE)
            time.sleep(0.6)
            with within(SOON):
                store.cancel(job.id)
                assert waiting.result(PATIENCE) is not None


def test_a_rotated_password_is_read_at_the_next_connection(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with closing(open_redis(own_redis, tmp_path)) as store:
        submit(store, "a")
        with own_redis.client() as client:
            client.config_set("requirepass", "another")
            client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreUnavailable):
            store.counts()
        (tmp_path / "password").write_text("another")
        assert store.counts().queued == 1
        (tmp_path / "password").unlink()
        with redis.Redis.from_url(own_redis.url, password="another") as client:
            client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreUnavailable, match=r"password in .* cannot be read: No such file"):
            store.counts()


def test_whether_redis_appends_to_a_file_is_known(own_redis: RedisServer, tmp_path: Path) -> None:
    with closing(open_redis(own_redis, tmp_path)) as store, own_redis.client() as client:
        assert store.appends()
        client.config_set("appendonly", "no")
        assert not store.appends()


def test_a_redis_without_memory_takes_no_new_job_and_ends_the_old(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with closing(open_redis(own_redis, tmp_path)) as store, own_redis.client() as client:
        jobs = submit(store, *"abcdef")
        held = [claim(store) for _ in range(4)]
        client.config_set("maxmemory", 1)

        with pytest.raises(StoreUnavailable, match=r"store refuses: .*maxmemory"):
            submit(store, "too much")
        assert store.counts().queued == 2
        assert store.heartbeat(held[0], Progress(Stage.DENOISING, 1, 2, 50)) is Order.GO_ON
        assert store.finish(held[0], VIDEO) is not None
        assert store.finish(held[1], BROKEN) is not None
        assert store.release(held[2])
        assert store.recover("engine") == 1
        assert claim(store).job.id == jobs[2].id
        assert store.cancel(jobs[2].id) is not None
        assert store.cancel(jobs[5].id) is not None
        for job in jobs:
            assert store.delete(job.id) is not None


def test_nothing_of_a_deleted_job_stays_in_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    with closing(open_redis(own_redis, tmp_path)) as store, own_redis.client() as client:
        for number in range(20):
            request = new_job(str(number), owner=f"owner {number}", key=f"k {number}", reuse=True)
            job = store.submit(request, ROOM).job
            if number % 4:
                held = claim(store, f"engine {number}")
                if number % 4 == 1:
                    store.finish(held, VIDEO)
                elif number % 4 == 2:
                    store.release(held)
            else:
                store.cancel(job.id)
            store.delete(job.id)

        keys = {str(key) for key in client.scan_iter("*")}
        days = {key for key in keys if key.startswith("{t2v}:daily:")}
        assert keys - days == {"{t2v}:queue", "{t2v}:reserved", "{t2v}:job_seconds"}
        assert all(0 < client.ttl(key) <= 86_400 for key in days)
        assert client.xlen("{t2v}:queue") == 0
        assert client.get("{t2v}:reserved") == "0"
        assert client.xpending("{t2v}:queue", "engines")["pending"] == 0
        assert len(client.xinfo_consumers("{t2v}:queue", "engines")) == 1


@pytest.mark.parametrize("gone", ["job", "entry"])
def test_an_entry_without_a_job_is_dropped_and_the_next_is_taken(
    own_redis: RedisServer, tmp_path: Path, gone: str
) -> None:
    with (
        closing(open_redis(own_redis, tmp_path, SHORT_LEASE)) as store,
        own_redis.client() as client,
    ):
        claimed, queued, kept = submit(store, "a", "b", "c")
        claim(store)
        for job in (claimed, queued):
            if gone == "job":
                client.delete(f"{{t2v}}:job:{job.id}")
            else:
                client.xdel("{t2v}:queue", str(client.hget(f"{{t2v}}:job:{job.id}", "entry")))
        time.sleep(SHORT_LEASE * 1.2)

        held = claim(store)
        assert held.job.id == kept.id
        assert store.claim("engine", 0) is None
        store.finish(held, VIDEO)
        assert client.xpending("{t2v}:queue", "engines")["pending"] == 0
        assert client.xlen("{t2v}:queue") == 0


def test_a_submission_that_is_sent_twice_finds_its_own_job(redis_server: RedisServer) -> None:
    prefix = f"{{{uuid.uuid4().hex}}}"
    with closing(RedisStore(redis_server.url, LEASE, prefix=prefix, new_id=lambda: "ONE")) as store:
        first = store.submit(new_job(), Admission(capacity=1))
        again = store.submit(new_job(), Admission(capacity=1))  # as redis-py does by itself

        assert first == again
        assert store.counts().queued == 1


def test_a_redis_that_is_not_there_is_said_by_the_first_call() -> None:
    with (
        closing(RedisStore("redis://127.0.0.1:1/0", LEASE)) as store,
        within(3),
        pytest.raises(StoreUnavailable, match=r"does not answer: .*refused"),
    ):
        store.counts()
