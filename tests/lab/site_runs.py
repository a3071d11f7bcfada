"""Runs of the whole site: to their end, or killed on the way, and what the recap says."""

import re
import subprocess
import time

from lab import cgroups, lab
from lab.settings import Paths

HOSTS = {"ansible", "harbor", "master", "nfs-server", "prometheus", "worker1", "worker2"}
# site.yml has this many headings of tasks where nothing changes; more where something does.
LAST_TASK = 370
_TASK = re.compile(r"^TASK \[(.*)\]")


def unchanged(output: str) -> set[str]:
    """The hosts of the recap. Fails where one was changed, failed or was out of reach."""
    found = set()
    for host, counts in re.findall(r"^(\S+)\s+: (ok=.*)$", output, re.MULTILINE):
        numbers = dict(re.findall(r"(\w+)=(\d+)", counts))
        assert (numbers["changed"], numbers["failed"], numbers["unreachable"]) == ("0",) * 3, host
        found.add(host)
    return found


def finish(paths: Paths, command: list[str], seconds: float) -> str:
    """Run it to its end; what it says. Raises AssertionError where it fails."""
    with lab.locked(paths):
        process = lab.start_tracked(paths, command, output=subprocess.PIPE)
        try:
            said, _ = process.communicate(timeout=seconds)
        finally:
            cgroups.kill(paths.name, "run")
    assert process.returncode == 0, f"site.yml ends with {process.returncode}: {said[-4000:]}"
    return said


def kill_at(paths: Paths, command: list[str], number: int, after: float) -> str:
    """Run it until the task of this number has begun ``after`` seconds ago; then kill it all.

    Returns where that was; "" where it had come to its end before.
    """
    where, count = "", 0
    with lab.locked(paths):
        process = lab.start_tracked(paths, command, output=subprocess.PIPE)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := _TASK.match(line):
                    count += 1
                    if count == number:
                        time.sleep(after)
                        if process.poll() is None:
                            where = f"task {count}, {found.group(1)}"
                        break
        finally:
            cgroups.kill(paths.name, "run")
            process.wait()
    return where
