"""Say what is being done, and how long each step took."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_finished: list[tuple[str, float]] = []


def say(text: str) -> None:
    """Print one line at once, so that a log shows where a long run stands."""
    print(text, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, time it, and remember it for ``summary``."""
    say(f"==> {title}")
    started = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"    {title}: failed after {time.monotonic() - started:.1f} s")
        raise
    record(title, time.monotonic() - started)
    say(f"    {title}: {time.monotonic() - started:.1f} s")


def record(title: str, seconds: float) -> None:
    """Add a step that was timed elsewhere (a play of ``site.yml``)."""
    _finished.append((title, seconds))


def summary(total: float) -> None:
    """Print the table of steps; ``total`` in seconds, wall clock."""
    width = max((len(title) for title, _ in _finished), default=0)
    say("")
    say("Time per stage:")
    for title, seconds in _finished:
        say(f"  {title:<{width}}  {seconds:7.1f} s")
    say(f"  {'total':<{width}}  {total:7.1f} s")
    sys.stdout.flush()
