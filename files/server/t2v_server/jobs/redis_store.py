"""Jobs in Redis, for the servers of a cluster: any of them accepts, any engine takes.

The queue is a stream with one consumer group. An engine's lease is the idle time of its pending
entry: heartbeats reset it, and an entry that was idle for longer is claimed by another engine
(``XCLAIM``). Redis measures that time, so the servers' clocks do not matter. A job that is handed
back keeps its entry, and with it its place. Everything else about a job is a hash, and every
transition is one Lua script: all of it happens, or nothing.

What was answered survives a Redis that is killed if it keeps an append-only file. Redis 6.0 is the
oldest that lets a script read a group.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

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
from t2v_server.jobs.redis_password import PasswordFile
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

_SOCKET_SECONDS = 5.0
_CONNECT_SECONDS = 2.0
# Leases run out without a notice, and a notice can get lost.
_LOOK_AGAIN_SECONDS = 0.5
_WORK = ""  # stands for the queue where notices name a job

# Every script begins with these. KEYS[1] is the prefix, whose hash tag puts all keys on one node.
# What a client chose, its name or key, is always the last part of a key or within a hash.
#
# A Redis without memory refuses a script at its first write, if that one stores something; later
# writes pass. So the first write of a submission stores, that of every other script frees or
# claims: a full Redis takes no new jobs and ends those that it has.
_PRELUDE = """
local p = KEYS[1]
local function key(...) return p .. ':' .. table.concat({...}, ':') end
local function now() local t = redis.call('TIME'); return t[1] + t[2] / 1000000 end
local function job(id) return redis.call('HGETALL', key('job', id)) end
local function get(id, field) return redis.call('HGET', key('job', id), field) end
local function notice(what) redis.call('PUBLISH', key('changes'), what) end
local function changed(id)
  redis.call('HINCRBY', key('job', id), 'version', 1)
  notice(id)
end
local function drop_entry(entry)
  redis.call('XACK', key('queue'), 'engines', entry)
  redis.call('XDEL', key('queue'), entry)
end
local function reusable(id) return key('reusable', get(id, 'fingerprint'), get(id, 'owner')) end
local function hand_back(id)
  -- Its lease has run out, long ago.
  redis.call('XCLAIM', key('queue'), 'engines', 'engine', 0, get(id, 'entry'),
    'IDLE', 1000000000000, 'JUSTID')
  redis.call('ZREM', key('running'), id)
  redis.call('ZADD', key('queued'), get(id, 'created_at'), id)
  redis.call('HDEL', key('job', id), 'engine', 'started_at', 'stage', 'done', 'total', 'percent')
  redis.call('HSET', key('job', id), 'state', 'queued')
  changed(id)
  notice('')
end
local function free(id)
  redis.call('ZREM', key('queued'), id)
  redis.call('ZREM', key('running'), id)
  redis.call('SREM', key('active', get(id, 'owner')), id)
  redis.call('DECRBY', key('reserved'), get(id, 'reserve_bytes'))
  drop_entry(get(id, 'entry'))
end
local function finish(id, state, outcome)
  free(id)
  if state == 'failed' then
    redis.call('ZREM', reusable(id), id)
  elseif get(id, 'cancel_requested') ~= '1' then
    redis.call('ZADD', reusable(id), 0, id)
  end
  local ended = string.format('%.6f', now())
  redis.call('HSET', key('job', id), 'state', state, 'outcome', outcome, 'ended_at', ended)
  redis.call('ZADD', key('ended'), ended, id)
  changed(id)
end
"""
_SUBMIT = """
local id, owner, fingerprint, idempotency, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local reserve, capacity, free_bytes = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local active, daily, reuse = ARGV[9], ARGV[10], ARGV[11]
if redis.call('EXISTS', key('job', id)) == 1 then return {'created', job(id)} end
if idempotency ~= '' then
  local earlier = redis.call('HGET', key('keys', owner), idempotency)
  if earlier then
    if get(earlier, 'request_digest') ~= digest then return {'conflict'} end
    return {'found', job(earlier)}
  end
end
if reuse == '1' then
  local earlier = redis.call('ZREVRANGE', key('reusable', fingerprint, owner), 0, 0)[1]
  if earlier then return {'found', job(earlier)} end
end
if redis.call('ZCARD', key('queued')) >= capacity then return {'full'} end
local reserved = tonumber(redis.call('GET', key('reserved')) or '0')
if free_bytes ~= '' and reserved + tonumber(reserve) > tonumber(free_bytes) then
  return {'space', string.format('%.0f', tonumber(free_bytes) - reserved)}
end
if active ~= '' then
  local count = redis.call('SCARD', key('active', owner))
  if count >= tonumber(active) then return {'active', count} end
end
local at = now()
local since, submissions = string.format('%.6f', at - 86400), key('daily', owner)
if daily ~= '' then
  local count = redis.call('ZCOUNT', submissions, since, '+inf')
  if count >= tonumber(daily) then
    local first = redis.call('ZRANGEBYSCORE', submissions, since, '+inf', 'WITHSCORES',
      'LIMIT', 0, 1)
    return {'daily', count, math.ceil(first[2] - since)}
  end
end
local created = string.format('%.6f', at)
redis.call('HSET', key('job', id), 'id', id, 'owner', owner, 'fingerprint', fingerprint,
  'idempotency_key', idempotency, 'request_digest', digest, 'reserve_bytes', reserve,
  'model', ARGV[12], 'parameters', ARGV[13], 'request_id', ARGV[14], 'version', 0, 'attempts', 0,
  'token', 0, 'cancel_requested', 0, 'created_at', created, 'state', 'queued')
if redis.call('EXISTS', key('queue')) == 0 then
  redis.call('XGROUP', 'CREATE', key('queue'), 'engines', '0', 'MKSTREAM')
end
redis.call('HSET', key('job', id), 'entry', redis.call('XADD', key('queue'), '*', 'id', id))
redis.call('ZADD', key('queued'), created, id)
if idempotency ~= '' then redis.call('HSET', key('keys', owner), idempotency, id) end
if reuse == '1' then redis.call('ZADD', key('reusable', fingerprint, owner), 0, id) end
redis.call('ZADD', key('all'), 0, id)
redis.call('ZADD', key('owner', owner), 0, id)
redis.call('SADD', key('active', owner), id)
redis.call('INCRBY', key('reserved'), reserve)
redis.call('ZREMRANGEBYSCORE', submissions, '-inf', '(' .. since)
redis.call('ZADD', submissions, created, id)
redis.call('EXPIRE', submissions, 86400)
changed(id)
notice('')
return {'created', job(id)}
"""
# All engines are one consumer: which of them has a job is in its hash, and the group does not
# remember every engine that there ever was. What was claimed before and let go is older than
# what nobody claimed yet, and pending entries come in order: the oldest job is always first.
_CLAIM = """
local engine, lease = ARGV[1], tonumber(ARGV[2])
local function begin(entry, fields)
  local id = fields and fields[2]
  local state = id and get(id, 'state')
  if state ~= 'queued' and state ~= 'in_progress' then  -- no job of ours any more
    drop_entry(entry)
    return false
  end
  redis.call('HDEL', key('job', id), 'stage', 'done', 'total', 'percent')
  redis.call('HSET', key('job', id), 'state', 'in_progress', 'engine', engine,
    'started_at', string.format('%.6f', now()))
  redis.call('HINCRBY', key('job', id), 'attempts', 1)
  redis.call('HINCRBY', key('job', id), 'token', 1)
  redis.call('ZREM', key('queued'), id)
  redis.call('ZADD', key('running'), get(id, 'created_at'), id)
  changed(id)
  return job(id)
end
if redis.call('EXISTS', key('queue')) == 0 then return false end
local pending = redis.call('XPENDING', key('queue'), 'engines')[1]
if pending > 0 then
  for _, one in ipairs(redis.call('XPENDING', key('queue'), 'engines', '-', '+', pending)) do
    if one[3] >= lease then
      local found = redis.call('XCLAIM', key('queue'), 'engines', 'engine', 0, one[1])[1]
      local begun = begin(one[1], found and found[2])
      if begun then return begun end
    end
  end
end
while true do
  local read = redis.call('XREADGROUP', 'GROUP', 'engines', 'engine', 'COUNT', 1,
    'STREAMS', key('queue'), '>')
  if not read then return false end
  local entry = read[1][2][1]
  local begun = begin(entry[1], entry[2])
  if begun then return begun end
end
"""
_HEARTBEAT = """
local id, token = ARGV[1], ARGV[2]
if get(id, 'token') ~= token or get(id, 'state') ~= 'in_progress' then return 'lost' end
redis.call('XCLAIM', key('queue'), 'engines', 'engine', 0, get(id, 'entry'), 'JUSTID')
if ARGV[3] ~= '' then
  redis.call('HSET', key('job', id), 'stage', ARGV[3], 'done', ARGV[4], 'total', ARGV[5],
    'percent', ARGV[6])
  changed(id)
end
if get(id, 'cancel_requested') == '1' then return 'cancel' end
return 'go_on'
"""
# Said twice by the same claim, as after a lost answer, it is true both times.
_FINISH = """
local id, token, state = ARGV[1], ARGV[2], get(ARGV[1], 'state')
if get(id, 'token') ~= token then return false end
if state == 'completed' or state == 'failed' then return job(id) end
if state ~= 'in_progress' then return false end
finish(id, ARGV[3], ARGV[4])
if ARGV[3] == 'completed' then
  local seconds = get(id, 'ended_at') - get(id, 'started_at')
  local before = tonumber(redis.call('GET', key('job_seconds')) or seconds)
  redis.call('SET', key('job_seconds'), string.format('%.6f', before + (seconds - before) / 10))
end
return job(id)
"""
_RELEASE = """
local id, token, state = ARGV[1], ARGV[2], get(ARGV[1], 'state')
if get(id, 'token') ~= token then return 0 end
if state == 'queued' then return 1 end
if state ~= 'in_progress' then return 0 end
hand_back(id)
redis.call('HINCRBY', key('job', id), 'attempts', -1)
return 1
"""
_RECOVER = """
local count = 0
for _, id in ipairs(redis.call('ZRANGE', key('running'), 0, -1)) do
  if get(id, 'engine') == ARGV[1] then
    hand_back(id)
    -- The token grows, so that no word of the earlier process counts any more.
    redis.call('HINCRBY', key('job', id), 'token', 1)
    count = count + 1
  end
end
return count
"""
_CANCEL = """
local id, state = ARGV[1], get(ARGV[1], 'state')
if not state then return false end
if state == 'queued' or state == 'in_progress' then
  redis.call('ZREM', reusable(id), id)
  if get(id, 'cancel_requested') ~= '1' then
    redis.call('HSET', key('job', id), 'cancel_requested', 1)
    changed(id)
  end
  if state == 'queued' then finish(id, 'failed', ARGV[2]) end
end
return job(id)
"""
_DELETE = """
local id, state = ARGV[1], get(ARGV[1], 'state')
if not state then return false end
local was = job(id)
if state == 'queued' or state == 'in_progress' then free(id) end
local owner, idempotency = get(id, 'owner'), get(id, 'idempotency_key')
if idempotency ~= '' then redis.call('HDEL', key('keys', owner), idempotency) end
redis.call('ZREM', reusable(id), id)
redis.call('ZREM', key('all'), id)
redis.call('ZREM', key('owner', owner), id)
redis.call('ZREM', key('ended'), id)
redis.call('DEL', key('job', id))
notice(id)
return was
"""
_COUNTS = """
local function first(name) return redis.call('ZRANGE', key(name), 0, 0, 'WITHSCORES')[2] or '' end
return {redis.call('ZCARD', key('queued')), redis.call('ZCARD', key('running')),
  first('queued'), first('running'), redis.call('GET', key('job_seconds')) or ''}
"""


class RedisStore:
    """A ``JobStore`` in the Redis at ``url``; ``lease`` is seconds.

    The password is read from its file at every connection, so that it can be rotated. All keys
    begin with ``prefix``, whose braces keep them on one node of a Redis cluster.
    """

    def __init__(
        self,
        url: str,
        lease: float,
        *,
        password_file: Path | None = None,
        prefix: str = "{t2v}",
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """Connect nowhere yet: a Redis that is away is for the first call to say."""
        self._lease_ms = int(lease * 1000)
        self._prefix = prefix
        self._new_id = new_id or IdFactory()
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,  # a script answers so in either
            socket_timeout=_SOCKET_SECONDS,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_keepalive=True,
            # Connections that broke while idle are replaced; a Redis that is away is said soon.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
            credential_provider=PasswordFile(password_file) if password_file else None,
        )
        self._scripts = {
            name: self._redis.register_script(_PRELUDE + body)
            for name, body in (
                ("submit", _SUBMIT),
                ("claim", _CLAIM),
                ("heartbeat", _HEARTBEAT),
                ("finish", _FINISH),
                ("release", _RELEASE),
                ("recover", _RECOVER),
                ("cancel", _CANCEL),
                ("delete", _DELETE),
                ("counts", _COUNTS),
            )
        }
        self._changes = _Changes(self._redis, f"{prefix}:changes")

    def submit(self, new: NewJob, admission: Admission) -> Submission:
        # Made once: a call that is repeated after a lost answer finds its own job.
        job_id = self._new_id()
        answer = self._run(
            "submit",
            job_id,
            new.owner,
            new.parameters.fingerprint(new.model),
            new.idempotency_key or "",
            new.request_digest,
            new.reserve_bytes,
            admission.capacity,
            _or_empty(admission.free_bytes),
            _or_empty(admission.client_active),
            _or_empty(admission.client_daily),
            int(new.reuse),
            new.model,
            json.dumps(new.parameters.to_dict()),
            new.request_id,
        )
        match answer:
            case ["created", fields]:
                return Submission(_job(fields), created=True)
            case ["found", fields]:
                return Submission(_job(fields), created=False)
            case ["conflict"]:
                raise KeyConflict("this key was used for a different request")
            case ["full"]:
                raise QueueFull(admission.capacity, retry_after(self.counts()))
            case ["space", available]:
                raise NoSpace(new.reserve_bytes, int(str(available)))
            case ["active", count]:
                raise ClientLimit(
                    f"{count} of your jobs are unfinished, {admission.client_active} may be",
                    retry_after(self.counts()),
                )
            case ["daily", count, seconds]:
                raise ClientLimit(
                    f"you submitted {count} jobs in 24 hours, {admission.client_daily} are allowed",
                    max(1, int(str(seconds))),
                )
        raise _no_answer(answer)

    def claim(self, engine: str, wait: float) -> Claim | None:
        deadline = time.monotonic() + wait
        with self._changes.of(_WORK) as changes:
            while True:
                seen = changes()
                answer = self._run("claim", engine, self._lease_ms)
                if answer:
                    fields = _fields(answer)
                    return Claim(_job(fields), int(fields["token"]))
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._changes.closed:
                    return None
                self._changes.wait(_WORK, seen, min(remaining, _LOOK_AGAIN_SECONDS))

    def heartbeat(self, claim: Claim, progress: Progress | None = None) -> Order:
        said: tuple[str | int, ...] = ("",)
        if progress is not None:
            said = (progress.stage.value, progress.done, progress.total, progress.percent)
        return Order(str(self._run("heartbeat", claim.job.id, claim.token, *said)))

    def finish(self, claim: Claim, outcome: Outcome) -> Job | None:
        state = JobState.COMPLETED if isinstance(outcome, Completed) else JobState.FAILED
        text = outcome_to_json(outcome)
        return _job_or_none(self._run("finish", claim.job.id, claim.token, state.value, text))

    def release(self, claim: Claim) -> bool:
        return self._run("release", claim.job.id, claim.token) == 1

    def recover(self, engine: str) -> int:
        return int(str(self._run("recover", engine)))

    def cancel(self, job_id: str) -> Job | None:
        return _job_or_none(self._run("cancel", job_id, outcome_to_json(CANCELLED)))

    def delete(self, job_id: str) -> Job | None:
        return _job_or_none(self._run("delete", job_id))

    def get(self, job_id: str) -> Job | None:
        with self._translated():
            fields = self._redis.hgetall(f"{self._prefix}:job:{job_id}")
        return _job_or_none(fields)

    def list(self, owner: str | None, after: str | None, limit: int, *, newest_first: bool) -> Page:
        key = f"{self._prefix}:all" if owner is None else f"{self._prefix}:owner:{owner}"
        edge = "" if after is None else f"({after}"
        with self._translated():
            if newest_first:
                ids = self._redis.zrevrangebylex(key, edge or "+", "-", 0, limit + 1)
            else:
                ids = self._redis.zrangebylex(key, edge or "-", "+", 0, limit + 1)
            jobs = self._jobs(ids[:limit])
        return Page(jobs, has_more=len(ids) > limit)

    def wait(self, job_id: str, version: int, timeout: float) -> Job | None:
        deadline = time.monotonic() + timeout
        with self._changes.of(job_id) as changes:
            while True:
                seen = changes()
                job = self.get(job_id)
                remaining = deadline - time.monotonic()
                if job is None or job.version > version or remaining <= 0 or self._changes.closed:
                    return job
                self._changes.wait(job_id, seen, min(remaining, _LOOK_AGAIN_SECONDS))

    def counts(self) -> Counts:
        answer = self._run("counts")
        if not isinstance(answer, list):
            raise _no_answer(answer)
        queued, running, oldest_queued, oldest_running, seconds = map(str, answer)
        oldest = [float(created_at) for created_at in (oldest_queued, oldest_running) if created_at]
        return Counts(
            int(queued),
            int(running),
            min(oldest, default=None),
            float(seconds) if seconds else None,
        )

    def ended_before(self, when: float, limit: int) -> Sequence[Job]:
        with self._translated():
            ids = self._redis.zrangebyscore(
                f"{self._prefix}:ended", "-inf", f"({when:.6f}", start=0, num=limit
            )
            return self._jobs(ids)

    def close(self) -> None:
        self._changes.close()
        self._redis.close()

    def appends(self) -> bool:
        """Whether this Redis keeps an append-only file, without which a restart loses jobs."""
        with self._translated():
            return str(self._redis.info("persistence")["aof_enabled"]) == "1"

    def _jobs(self, ids: Sequence[object]) -> Sequence[Job]:
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(f"{self._prefix}:job:{job_id!s}")
        found = (_job_or_none(fields) for fields in pipeline.execute())
        return [job for job in found if job is not None]  # deleted in between

    def _run(self, script: str, *values: str | int) -> object:
        with self._translated():
            answer: object = self._scripts[script](keys=[self._prefix], args=values)
            return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            does = "refuses" if isinstance(error, redis.ResponseError) else "does not answer"
            raise StoreUnavailable(f"the job store {does}: {_brief(error)}") from error


class _Changes:
    """Tells waiting threads what changed, a job or the queue, by one subscription for all."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._condition = threading.Condition()
        self._numbers: dict[str, int] = {}  # of what somebody waits for
        self._waiters: dict[str, int] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    @contextmanager
    def of(self, what: str) -> Iterator[Callable[[], int]]:
        """While open, changes of ``what`` are counted; gives what reads the count."""
        with self._condition:
            self._waiters[what] = self._waiters.get(what, 0) + 1
            self._numbers.setdefault(what, 0)
        try:
            yield lambda: self._numbers[what]
        finally:
            with self._condition:
                self._waiters[what] -= 1
                if not self._waiters[what]:
                    del self._waiters[what], self._numbers[what]

    def wait(self, what: str, seen: int, timeout: float) -> None:
        """Return when ``what`` may have changed since ``seen``, or after ``timeout`` seconds."""
        with self._condition:
            if self._thread is None and not self._closed:
                # Once it has subscribed, everybody looks again: nothing is missed until then.
                self._thread = threading.Thread(
                    target=self._listen, name="t2v-store-changes", daemon=True
                )
                self._thread.start()
            self._condition.wait_for(lambda: self._closed or self._numbers[what] != seen, timeout)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _listen(self) -> None:
        while not self._closed:
            try:
                with self._client.pubsub() as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(self._channel)
                    while not self._closed:
                        message = subscription.get_message(timeout=0.2)
                        if message is None:
                            continue
                        if message["type"] == "message":
                            self._count([message["data"]])
                        else:  # subscribed: what was said before was not heard
                            self._count(None)
            except (redis.RedisError, OSError):
                time.sleep(0.2)

    def _count(self, changed: Sequence[str] | None) -> None:
        with self._condition:
            for what in list(self._numbers) if changed is None else changed:
                if what in self._numbers:
                    self._numbers[what] += 1
            self._condition.notify_all()


def _or_empty(number: int | None) -> str:
    return "" if number is None else str(number)


def _brief(error: redis.RedisError) -> str:
    lines = str(error).splitlines()
    # Redis adds where in a script it was.
    return lines[0].partition(" script: ")[0] if lines else type(error).__name__


def _no_answer(answer: object) -> StoreUnavailable:
    return StoreUnavailable(f"Redis gave an answer that is none: {answer!r}")


def _fields(answer: object) -> dict[str, str]:
    """A hash as a script returns it, names and values in turn, or as ``HGETALL`` does."""
    match answer:
        case dict():
            return answer
        case list():
            return dict(zip(answer[::2], answer[1::2], strict=True))
    raise _no_answer(answer)


def _job_or_none(answer: object) -> Job | None:
    return _job(answer) if answer else None


def _job(answer: object) -> Job:
    fields = _fields(answer)
    progress = None
    if "stage" in fields:
        progress = Progress(
            Stage(fields["stage"]),
            int(fields["done"]),
            int(fields["total"]),
            int(fields["percent"]),
        )
    return Job(
        id=fields["id"],
        owner=fields["owner"],
        model=fields["model"],
        parameters=Parameters.from_dict(json.loads(fields["parameters"])),
        state=JobState(fields["state"]),
        created_at=float(fields["created_at"]),
        version=int(fields["version"]),
        attempts=int(fields["attempts"]),
        started_at=_time(fields.get("started_at")),
        ended_at=_time(fields.get("ended_at")),
        engine=fields.get("engine"),
        progress=progress,
        cancel_requested=fields["cancel_requested"] == "1",
        outcome=outcome_from_json(fields["outcome"]) if "outcome" in fields else None,
        request_id=fields["request_id"],
    )


def _time(text: str | None) -> float | None:
    return None if text is None else float(text)
