"""The programs of stack.py, started once for all tests that ask them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

import stack
from stack import Stack


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The programs, watched for long enough that every rate has its samples."""
    if missing := stack.missing():
        sentence = f"not installed, `make test` installs them where it may: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with stack.running(tmp_path_factory.mktemp("monitoring")) as started:
        started.work()
        time.sleep(3)
        started.work()
        until = time.monotonic() + 30
        while time.monotonic() < until and not started.query(
            "site:t2v_jobs_completed:increase1h > 0"
        ):
            time.sleep(1)
        time.sleep(3)
        yield started
