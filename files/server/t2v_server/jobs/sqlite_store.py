"""Jobs in one SQLite file, for the processes of one host. Never on a network file system.

Leases are measured on the monotonic clock, which all processes of a boot share and nobody can
set; the boot's id is kept in the file, so that a lease does not outlive the boot it was given in.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from t2v_server.jobs.ids import IdFactory
from t2v_server.jobs.record import (
    CANCELLED,
    Completed,
    Job,
    JobState,
    Outcome,
    Parameters,
    Progress,
    Stage,
)
from t2v_server.jobs.serial import outcome_from_json, outcome_to_json
from t2v_server.jobs.store import (
    Admission,
    Claim,
    ClientLimit,
    Counts,
    KeyConflict,
    NewJob,
    NoSpace,
    Order,
    Page,
    QueueFull,
    StoreUnavailable,
    Submission,
    retry_after,
)

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    parameters TEXT NOT NULL,
    request_id TEXT NOT NULL,
    reserve_bytes INTEGER NOT NULL,
    shared INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    idempotency_key TEXT,
    request_digest TEXT NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    token INTEGER NOT NULL DEFAULT 0,
    engine TEXT,
    lease_until REAL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    stage TEXT,
    done INTEGER,
    total INTEGER,
    percent INTEGER,
    outcome TEXT
) WITHOUT ROWID;
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_by_fingerprint ON jobs (fingerprint, owner);
CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE submissions (owner TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX submissions_by_owner ON submissions (owner, at);
CREATE TABLE boot (id TEXT NOT NULL);
"""
_UNFINISHED = "('queued', 'in_progress')"
_BUSY_SECONDS = 10.0
_POLL_SECONDS = 0.01
_LOOK_AGAIN_SECONDS = 0.5  # leases run out without anybody writing
_DAY_SECONDS = 86_400
_RECENT_JOBS = 20


class SqliteStore:
    """A ``JobStore`` in the file ``path``; ``lease`` is seconds."""

    def __init__(self, path: Path, lease: float, new_id: Callable[[], str] | None = None) -> None:
        """Open the file, or make it.

        Raises:
            StoreUnavailable: when it cannot be used; the message says why.
        """
        self._path = path
        self._lease = lease
        self._new_id = new_id or IdFactory()
        # What a client was told must survive a power cut; a lease need not.
        self._durable = _Pool(path, "FULL")
        self._quick = _Pool(path, "NORMAL")
        self._changes = _Changes(path)
        # SQLite lets writers try again after ever longer pauses, in no order; the threads of one
        # process can queue instead.
        self._writing = threading.Lock()
        with self._transaction(self._durable) as db:
            _prepare(db, path)

    def submit(self, new: NewJob, admission: Admission) -> Submission:
        fingerprint = new.parameters.fingerprint(new.model)
        with self._transaction(self._durable) as db:
            if new.idempotency_key is not None:
                row = db.execute(
                    "SELECT * FROM jobs WHERE owner = ? AND idempotency_key = ?",
                    (new.owner, new.idempotency_key),
                ).fetchone()
                if row is not None:
                    if row["request_digest"] != new.request_digest:
                        raise KeyConflict("this key was used for a different request")
                    return Submission(_job(row), created=False)
            if new.reuse:
                row = db.execute(
                    "SELECT * FROM jobs WHERE fingerprint = ? AND owner = ?"
                    " AND state != 'failed' AND NOT cancel_requested"
                    " AND (shared OR state = 'completed') ORDER BY id DESC LIMIT 1",
                    (fingerprint, new.owner),
                ).fetchone()
                if row is not None:
                    return Submission(_job(row), created=False)
            self._admit(db, new, admission)
            now = time.time()
            # The id is made inside the transaction, so that ids sort as jobs were accepted.
            job_id = self._new_id()
            db.execute(
                "INSERT INTO jobs (id, owner, model, parameters, request_id, reserve_bytes,"
                " shared, fingerprint, idempotency_key, request_digest, state, version, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued', 1, ?)",
                (
                    job_id,
                    new.owner,
                    new.model,
                    json.dumps(new.parameters.to_dict()),
                    new.request_id,
                    new.reserve_bytes,
                    new.reuse,
                    fingerprint,
                    new.idempotency_key,
                    new.request_digest,
                    now,
                ),
            )
            db.execute("INSERT INTO submissions VALUES (?, ?)", (new.owner, now))
            db.execute("DELETE FROM submissions WHERE at < ?", (now - _DAY_SECONDS,))
            job = _one(db, job_id)
            assert job is not None
            return Submission(job, created=True)

    def _admit(self, db: sqlite3.Connection, new: NewJob, admission: Admission) -> None:
        counts = _counts(db)
        if counts.queued >= admission.capacity:
            raise QueueFull(admission.capacity, retry_after(counts))
        if admission.free_bytes is not None:
            reserved = db.execute(
                f"SELECT coalesce(sum(reserve_bytes), 0) FROM jobs WHERE state IN {_UNFINISHED}"
            ).fetchone()[0]
            if reserved + new.reserve_bytes > admission.free_bytes:
                raise NoSpace(new.reserve_bytes, admission.free_bytes - reserved)
        if admission.client_active is not None:
            active = db.execute(
                f"SELECT count(*) FROM jobs WHERE owner = ? AND state IN {_UNFINISHED}",
                (new.owner,),
            ).fetchone()[0]
            if active >= admission.client_active:
                raise ClientLimit(
                    f"{active} of your jobs are unfinished, {admission.client_active} may be",
                    retry_after(counts),
                )
        if admission.client_daily is not None:
            since = time.time() - _DAY_SECONDS
            row = db.execute(
                "SELECT count(*), min(at) FROM submissions WHERE owner = ? AND at >= ?",
                (new.owner, since),
            ).fetchone()
            if row[0] >= admission.client_daily:
                raise ClientLimit(
                    f"you submitted {row[0]} jobs in 24 hours, {admission.client_daily} are "
                    "allowed",
                    max(1, math.ceil(row[1] - since)),
                )

    def claim(self, engine: str, wait: float) -> Claim | None:
        deadline = time.monotonic() + wait
        while True:
            seen = self._changes.seen()
            claim = self._claim_now(engine)
            remaining = deadline - time.monotonic()
            if claim is not None or remaining <= 0 or self._changes.closed:
                return claim
            self._changes.wait(seen, min(remaining, _LOOK_AGAIN_SECONDS))

    def _claim_now(self, engine: str) -> Claim | None:
        now = time.monotonic()
        oldest = (
            "SELECT id FROM jobs WHERE state = 'queued'"
            " OR (state = 'in_progress' AND lease_until < ?) ORDER BY id LIMIT 1"
        )
        # Most looks find nothing: they take no lock.
        with self._connection(self._quick) as db:
            if db.execute(oldest, (now,)).fetchone() is None:
                return None
        with self._transaction(self._durable) as db:
            row = db.execute(
                "UPDATE jobs SET state = 'in_progress', engine = ?, lease_until = ?,"
                " started_at = ?, attempts = attempts + 1, token = token + 1,"
                " version = version + 1, stage = NULL, done = NULL, total = NULL, percent = NULL"
                f" WHERE id = ({oldest}) RETURNING *",
                (engine, now + self._lease, time.time(), now),
            ).fetchone()
            return None if row is None else Claim(_job(row), row["token"])

    def heartbeat(self, claim: Claim, progress: Progress | None = None) -> Order:
        held = "id = ? AND token = ? AND state = 'in_progress'"
        key = (claim.job.id, claim.token)
        until = time.monotonic() + self._lease
        with self._transaction(self._quick) as db:
            if progress is None:
                statement = f"UPDATE jobs SET lease_until = ? WHERE {held}"
                values: tuple[object, ...] = (until, *key)
            else:
                statement = (
                    "UPDATE jobs SET lease_until = ?, stage = ?, done = ?, total = ?, percent = ?,"
                    f" version = version + 1 WHERE {held}"
                )
                values = (until, progress.stage.value, progress.done, progress.total)
                values += (progress.percent, *key)
            row = db.execute(f"{statement} RETURNING cancel_requested", values).fetchone()
        if row is None:
            return Order.LOST
        return Order.CANCEL if row[0] else Order.GO_ON

    def finish(self, claim: Claim, outcome: Outcome) -> Job | None:
        state = JobState.COMPLETED if isinstance(outcome, Completed) else JobState.FAILED
        with self._transaction(self._durable) as db:
            row = db.execute(
                "UPDATE jobs SET state = ?, outcome = ?, ended_at = ?, lease_until = NULL,"
                " version = version + 1 WHERE id = ? AND token = ? AND state = 'in_progress'"
                " RETURNING *",
                (state, outcome_to_json(outcome), time.time(), claim.job.id, claim.token),
            ).fetchone()
            if row is None:  # said twice by the same claim, it is true both times
                row = db.execute(
                    "SELECT * FROM jobs WHERE id = ? AND token = ? AND outcome IS NOT NULL",
                    (claim.job.id, claim.token),
                ).fetchone()
            return None if row is None else _job(row)

    def release(self, claim: Claim) -> bool:
        with self._transaction(self._durable) as db:
            done = db.execute(
                "UPDATE jobs SET state = 'queued', engine = NULL, lease_until = NULL,"
                " started_at = NULL, attempts = attempts - 1, version = version + 1,"
                " stage = NULL, done = NULL, total = NULL, percent = NULL"
                " WHERE id = ? AND token = ? AND state = 'in_progress'",
                (claim.job.id, claim.token),
            )
            return done.rowcount == 1

    def recover(self, engine: str) -> int:
        with self._transaction(self._durable) as db:
            # The token grows, so that no word of the earlier process counts any more.
            return db.execute(
                "UPDATE jobs SET state = 'queued', engine = NULL, lease_until = NULL,"
                " started_at = NULL, token = token + 1, version = version + 1,"
                " stage = NULL, done = NULL, total = NULL, percent = NULL"
                " WHERE engine = ? AND state = 'in_progress'",
                (engine,),
            ).rowcount

    def cancel(self, job_id: str) -> Job | None:
        cancelled = outcome_to_json(CANCELLED)
        with self._transaction(self._durable) as db:
            db.execute(
                "UPDATE jobs SET state = 'failed', outcome = ?, ended_at = ?, cancel_requested = 1,"
                " version = version + 1 WHERE id = ? AND state = 'queued'",
                (cancelled, time.time(), job_id),
            )
            db.execute(
                "UPDATE jobs SET cancel_requested = 1, version = version + 1"
                " WHERE id = ? AND state = 'in_progress' AND NOT cancel_requested",
                (job_id,),
            )
            return _one(db, job_id)

    def delete(self, job_id: str) -> Job | None:
        with self._transaction(self._durable) as db:
            row = db.execute("DELETE FROM jobs WHERE id = ? RETURNING *", (job_id,)).fetchone()
            return None if row is None else _job(row)

    def get(self, job_id: str) -> Job | None:
        with self._connection(self._quick) as db:
            return _one(db, job_id)

    def list(self, owner: str | None, after: str | None, limit: int, *, newest_first: bool) -> Page:
        conditions, values = ["1"], list[object]()
        if owner is not None:
            conditions.append("owner = ?")
            values.append(owner)
        if after is not None:
            conditions.append("id < ?" if newest_first else "id > ?")
            values.append(after)
        order = "DESC" if newest_first else "ASC"
        with self._connection(self._quick) as db:
            rows = db.execute(
                f"SELECT * FROM jobs WHERE {' AND '.join(conditions)} ORDER BY id {order} LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
        return Page([_job(row) for row in rows[:limit]], has_more=len(rows) > limit)

    def wait(self, job_id: str, version: int, timeout: float) -> Job | None:
        deadline = time.monotonic() + timeout
        while True:
            seen = self._changes.seen()
            job = self.get(job_id)
            remaining = deadline - time.monotonic()
            if job is None or job.version > version or remaining <= 0 or self._changes.closed:
                return job
            self._changes.wait(seen, remaining)

    def counts(self) -> Counts:
        with self._connection(self._quick) as db:
            return _counts(db)

    def ended_before(self, when: float, limit: int) -> Sequence[Job]:
        with self._connection(self._quick) as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (when, limit)
            ).fetchall()
        return [_job(row) for row in rows]

    def close(self) -> None:
        self._changes.close()
        self._durable.close()
        self._quick.close()

    @contextmanager
    def _connection(self, pool: _Pool) -> Iterator[sqlite3.Connection]:
        try:
            with pool.connection() as db:
                yield db
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the jobs in {self._path} cannot be used: {error}") from error

    @contextmanager
    def _transaction(self, pool: _Pool) -> Iterator[sqlite3.Connection]:
        """One writing transaction, undone whole if the block raises."""
        with self._writing, self._connection(pool) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back by itself
                    db.execute("ROLLBACK")
                raise


class _Pool:
    """Open connections to one file; a connection is one thread's at a time."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            db = self._idle.pop() if self._idle else None
        if db is None:
            db = _connect(self._path, self._synchronous)
        try:
            yield db
        except sqlite3.Error:
            db.close()  # whatever state it is in
            raise
        except BaseException:
            self._give_back(db)
            raise
        else:
            self._give_back(db)

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._lock:
            self._idle.append(db)

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()


class _Changes:
    """Tells waiting threads that some connection, of any process, wrote to the file.

    One thread asks SQLite every ten milliseconds, and only while somebody waits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._condition = threading.Condition()
        self._number = 0
        self._waiting = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    def seen(self) -> int:
        """A number to give to ``wait``; take it before looking at the file."""
        with self._condition:
            return self._number

    def wait(self, seen: int, timeout: float) -> None:
        """Return when something may have changed since ``seen``, or after ``timeout`` seconds."""
        with self._condition:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._watch, name="t2v-store-changes", daemon=True
                )
                self._thread.start()
            self._waiting += 1
            try:
                if self._waiting == 1:
                    self._condition.notify_all()  # the watcher sleeps
                self._condition.wait_for(lambda: self._closed or self._number != seen, timeout)
            finally:
                self._waiting -= 1

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        db: sqlite3.Connection | None = None
        version = None
        while True:
            with self._condition:
                if not self._waiting:
                    self._condition.wait_for(lambda: self._closed or self._waiting)
                    version = None  # whatever was written meanwhile is a change
                if self._closed:
                    break
            try:
                db = db or _connect(self._path, "NORMAL")
                now = db.execute("PRAGMA data_version").fetchone()[0]
            except sqlite3.Error:
                if db is not None:
                    db.close()
                db, now = None, None
            if now is None or now != version:
                version = now
                with self._condition:
                    self._number += 1
                    self._condition.notify_all()
            time.sleep(_POLL_SECONDS)
        if db is not None:
            db.close()


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        _use_wal(db)
        db.execute(f"PRAGMA synchronous = {synchronous}")
    except BaseException:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """Two that open a new file at once both change its mode, and SQLite lets neither wait."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{path} was written by a newer server (schema {version}, this one knows "
            f"{_SCHEMA_VERSION}): run that server, or set T2V_STATE_DIR to another directory."
        )
    if version == 0:
        for statement in _SCHEMA.split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    row = db.execute("SELECT id FROM boot").fetchone()
    if row is None or row[0] != boot:
        db.execute("DELETE FROM boot")
        db.execute("INSERT INTO boot VALUES (?)", (boot,))
        # Every engine of an earlier boot is gone.
        db.execute("UPDATE jobs SET lease_until = 0 WHERE state = 'in_progress'")


def _one(db: sqlite3.Connection, job_id: str) -> Job | None:
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return None if row is None else _job(row)


def _counts(db: sqlite3.Connection) -> Counts:
    row = db.execute(
        "SELECT coalesce(sum(state = 'queued'), 0), coalesce(sum(state = 'in_progress'), 0),"
        f" min(created_at) FROM jobs WHERE state IN {_UNFINISHED}"
    ).fetchone()
    seconds = db.execute(
        "SELECT avg(ended_at - started_at) FROM (SELECT * FROM jobs WHERE ended_at IS NOT NULL"
        " AND state = 'completed' ORDER BY ended_at DESC LIMIT ?)",
        (_RECENT_JOBS,),
    ).fetchone()[0]
    return Counts(row[0], row[1], row[2], seconds)


def _job(row: sqlite3.Row) -> Job:
    progress = None
    if row["stage"] is not None:
        progress = Progress(Stage(row["stage"]), row["done"], row["total"], row["percent"])
    return Job(
        id=row["id"],
        owner=row["owner"],
        model=row["model"],
        parameters=Parameters.from_dict(json.loads(row["parameters"])),
        state=JobState(row["state"]),
        created_at=row["created_at"],
        version=row["version"],
        attempts=row["attempts"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        engine=row["engine"],
        progress=progress,
        cancel_requested=bool(row["cancel_requested"]),
        outcome=None if row["outcome"] is None else outcome_from_json(row["outcome"]),
        request_id=row["request_id"],
    )
