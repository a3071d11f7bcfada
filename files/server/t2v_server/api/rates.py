"""How often a client may ask, counted in this process or, for a cluster, in Redis."""

from __future__ import annotations

import logging
import math
import time
from http import HTTPStatus

import limits
import redis as redis_client
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from t2v_server.api.errors import ApiError
from t2v_server.config import RateLimit, RedisSettings
from t2v_server.jobs.redis_password import PasswordFile

log = logging.getLogger(__name__)

_REDIS_SECONDS = 1.0  # a request does not wait long to be counted
_PREFIX = "t2v-rates"


class RateLimiter:
    """Lets through ``limit`` requests of each client in any period of its length."""

    def __init__(self, limit: RateLimit | None, redis: RedisSettings | None) -> None:
        self._item = None
        self._away = False
        if limit is not None:
            self._item = limits.parse(f"{limit.amount}/{limit.period}")
            self._windows = MovingWindowRateLimiter(_redis(redis) if redis else MemoryStorage())

    def check(self, client_key: str) -> None:
        """Count a request of the client; one that is refused does not count.

        While Redis is away requests pass: a server that queues jobs there says so itself.

        Raises:
            ApiError: 429 ``rate_limited``, with the time until the next one may come.
        """
        if self._item is None:
            return
        try:
            if self._windows.hit(self._item, client_key):
                wait = None
            else:
                wait = self._windows.get_window_stats(self._item, client_key).reset_time
        except redis_client.RedisError as error:
            if not self._away:
                log.warning("T2V_RATE_LIMIT is not counted while Redis is away: %s", error)
            self._away = True
            return
        if self._away:
            log.info("T2V_RATE_LIMIT is counted again")
        self._away = False
        if wait is not None:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate_limited",
                f"more than {self._item.amount} requests per {self._item.GRANULARITY.name}: "
                "try again later",
                retry_after=max(1, math.ceil(wait - time.time())),
            )


def _redis(settings: RedisSettings) -> RedisStorage:
    path = settings.password_file
    pool = redis_client.ConnectionPool.from_url(
        settings.url,
        socket_timeout=_REDIS_SECONDS,
        socket_connect_timeout=_REDIS_SECONDS,
        retry=Retry(NoBackoff(), 1),  # a connection that broke while idle is replaced
        credential_provider=PasswordFile(path) if path else None,
    )
    return RedisStorage(settings.url, connection_pool=pool, key_prefix=_PREFIX)
