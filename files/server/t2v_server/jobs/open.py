"""Which store the settings name."""

from __future__ import annotations

from t2v_server.config import Settings
from t2v_server.jobs.sqlite_store import SqliteStore
from t2v_server.jobs.store import JobStore

SQLITE_FILE = "jobs.db"


def open_store(settings: Settings) -> JobStore:
    """Open the store that all processes of this server share.

    Raises:
        StoreUnavailable: when it cannot be used now; the message says why.
    """
    if settings.jobs.redis is None:
        return SqliteStore(settings.state_dir / SQLITE_FILE, settings.jobs.lease)
    from t2v_server.jobs.redis_store import RedisStore

    redis = settings.jobs.redis
    return RedisStore(redis.url, settings.jobs.lease, password_file=redis.password_file)
