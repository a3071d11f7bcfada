"""Run commands: one line of error for the user, and none of them outlives a killed run."""

import subprocess
import time
from collections.abc import Callable, Sequence

from lab.errors import LabError
from lab.steps import say

_enter_group: Callable[[], None] | None = None


def track_with(enter_group: Callable[[], None] | None) -> None:
    """Let every later ``run`` begin by calling this in its process (to enter a control group)."""
    global _enter_group
    _enter_group = enter_group


def run(command: Sequence[str], *, stdin: str | None = None) -> str:
    """Run to the end and return standard output. Raises LabError with the last lines of both."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=_enter_group,
        )
    except FileNotFoundError as error:
        raise LabError(f"this machine lacks the program '{command[0]}'; install it") from error
    if done.returncode != 0:
        tail = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise LabError(f"`{' '.join(command)}` failed with status {done.returncode}: {tail}")
    return done.stdout


def succeeds(command: Sequence[str]) -> bool:
    """Whether the command is there and ends with status 0; its output is thrown away."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def run_with_retries(command: Sequence[str], what: str, attempts: int = 4) -> str:
    """Like ``run``, for commands that talk to a mirror which may be away for a moment."""
    for attempt in range(1, attempts + 1):
        try:
            return run(command)
        except LabError as error:
            if attempt == attempts:
                raise LabError(
                    f"{what} failed {attempts} times; is the package mirror reachable? {error}"
                ) from error
            pause = 5 * attempt
            say(f"    {what} failed, trying again in {pause} s ({error})")
            time.sleep(pause)
    raise AssertionError("unreachable")
