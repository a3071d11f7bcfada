"""``make up`` and ``make down`` as a user runs them, bad luck included; in this order."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from commands import Commands
from host_state import snapshot
from lab import cgroups
from lab.settings import REPOSITORY
from site_runs import HOSTS, unchanged

NAME = "test-up"
LAB = Commands(NAME)
make, lab = LAB.make, LAB.lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")


@contextmanager
def running_until(line_start: str) -> Iterator[subprocess.Popen[str]]:
    """A ``make up`` in a session of its own that has just printed a line of this start."""
    process = subprocess.Popen(
        ["make", "--no-print-directory", "up"],
        cwd=REPOSITORY,
        env=LAB.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(line_start):
                break
        else:
            pytest.fail(f"make up ended without a line that starts with {line_start}")
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def kill_the_lab_alone() -> None:
    """As the kernel does when memory is short: the lab's own process, and none that it started."""
    os.kill(int(Path(f"/run/t2v-lab/{NAME}.lock").read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tmpdir")
    LAB.environment["TMPDIR"] = str(place)
    return place


@pytest.fixture(scope="module")
def before(temporary: Path) -> Iterator[dict[str, list[str]]]:
    make("down")
    yield snapshot()
    make("down")


def test_killed_while_the_machines_are_made_it_can_be_cleaned_up(
    before: dict[str, list[str]],
) -> None:
    with running_until("==> 7 machines"):
        time.sleep(0.7)
        kill_the_lab_alone()
    assert make("down").returncode == 0
    assert snapshot() == before


@pytest.fixture(scope="module")
def first(before: dict[str, list[str]]) -> subprocess.CompletedProcess[str]:
    return make("up")


def test_it_ends_with_a_video_its_probe_and_the_times(
    first: subprocess.CompletedProcess[str],
) -> None:
    assert first.returncode == 0
    end = first.stdout[first.stdout.index("Time per stage:") :]
    assert re.search(r"^Video generated at /shared/videos/[\w.-]+\.mp4$", end, re.MULTILINE)
    assert re.search(r"^ffprobe: codec=h264 size=64x64 frames=9", end, re.MULTILINE)
    assert re.search(r"^  total +\d+\.\d s$", end, re.MULTILINE)


def test_status_and_ssh_reach_every_host(first: subprocess.CompletedProcess[str]) -> None:
    shown = make("status").stdout
    assert {line.split()[0] for line in shown.splitlines() if "ssh answers" in line} == HOSTS
    assert "there is no host 'nosuch'" in make("ssh", "HOST=nosuch").stderr


def test_a_run_stopped_by_control_c_says_so_and_leaves_nothing_running(
    first: subprocess.CompletedProcess[str],
) -> None:
    with running_until("TASK [base") as process:
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "`make up` goes on from here" in rest + errors
    assert not cgroups.members(NAME, "run")


def silent() -> set[str]:
    return {line.split()[0] for line in make("status").stdout.splitlines() if "power off" in line}


def test_a_second_run_is_refused_and_what_was_killed_comes_back(
    first: subprocess.CompletedProcess[str],
) -> None:
    with running_until("TASK [registry"):
        refused = make("up")
        assert refused.returncode != 0
        assert f"lab '{NAME}' is being changed by process" in refused.stderr
        kill_the_lab_alone()
    # Its ansible-playbook goes on; the next run ends it before it begins.
    orphans = set(cgroups.members(NAME, "run"))
    assert orphans
    # And a machine of its hosts is killed.
    for pid in cgroups.members(NAME, "supervisor-harbor"):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while "harbor" not in silent() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "harbor" in silent()
    after = make("up")
    assert after.returncode == 0
    assert not silent()
    assert "Video generated at" in after.stdout
    assert not orphans & set(cgroups.members(NAME, "run"))


def test_the_same_again_changes_nothing_on_any_host(
    first: subprocess.CompletedProcess[str],
) -> None:
    again = make("up")
    assert again.returncode == 0
    assert unchanged(again.stdout) >= HOSTS


def test_a_host_that_is_off_stops_the_run_before_any_host_is_changed(
    first: subprocess.CompletedProcess[str],
) -> None:
    lab("power", "off", "nfs-server")
    try:
        refused = make("playbook", "ARGS=--tags preflight")
    finally:
        lab("power", "on", "nfs-server")
    assert refused.returncode != 0
    assert "nfs-server does not answer over SSH at 192.168.0.36" in " ".join(refused.stdout.split())


def test_a_host_without_space_is_named(first: subprocess.CompletedProcess[str]) -> None:
    wanted = {"preflight_space_mib": {"harbor": 10**8}, "preflight_space_floor_mib": 10**8}
    refused = make("playbook", f"ARGS=--tags preflight -e '{json.dumps(wanted)}'")
    assert refused.returncode != 0
    assert re.search(r"harbor has \d+ MiB free", " ".join(refused.stdout.split()))


def test_one_layer_alone_can_be_run_by_its_tag(first: subprocess.CompletedProcess[str]) -> None:
    done = make("playbook", "ARGS=--tags edge")
    assert done.returncode == 0
    assert "TASK [edge : Configure nginx]" in done.stdout
    # Ansible checks the arguments of every role, whatever the tags; nothing more may run.
    roles = set(re.findall(r"^TASK \[(\w+) : (?!Validating)", done.stdout, re.MULTILINE))
    assert roles == {"edge", "packages"}


def test_down_leaves_the_machine_as_it_was(
    before: dict[str, list[str]], temporary: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert make("down").returncode == 0
    after = snapshot()
    for what, entries in before.items():
        assert after[what] == entries, what
    assert not list(temporary.iterdir())
    assert not Path("/var/lib/t2v-lab", NAME).exists()
