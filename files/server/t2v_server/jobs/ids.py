"""Unique ids that sort by time of creation (ULID, https://github.com/ulid/spec)."""

from __future__ import annotations

import os
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32
_RANDOM_BITS = 80
_LENGTH = 26


class IdFactory:
    """Makes ULIDs: 48 bits of Unix milliseconds, then 80 random bits.

    Two servers never agree on 80 random bits; within one factory ids strictly increase,
    also within a millisecond and when the clock steps back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> str:
        """A new id of 26 characters, digits and upper-case letters."""
        fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS
        fresh |= int.from_bytes(os.urandom(_RANDOM_BITS // 8))
        with self._lock:
            self._last = max(fresh, self._last + 1)
            return _base32(self._last)


def _base32(value: int) -> str:
    return "".join(_ALPHABET[value >> 5 * place & 31] for place in reversed(range(_LENGTH)))
