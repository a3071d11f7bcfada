"""Control groups: a home for each machine, and the way to find and end what belongs to it.

Every process that a lab starts is in a group below ``t2v-lab/<lab>``. There are no pid
files: membership is kept by the kernel, survives a killed ``make up``, and cannot name a
stranger's process. A machine's own systemd and container engine need a group in *every*
hierarchy of cgroup v1 (its cgroup namespace is rooted there), one in cgroup v2.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from lab.errors import LabError

_ROOT = "t2v-lab"
# In cgroup v1 every process outside of a group weighs as much as a whole group: beside a busy
# build a lab of seven machines would get the processor time of one process.
_SHARES = 8 * 1024


def hierarchies() -> list[tuple[Path, bool]]:
    """Mounted hierarchies as (mount point, whether it is cgroup v2)."""
    found = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            found.append((Path(where), kind == "cgroup2"))
    if not found:
        raise LabError(
            "no cgroup file system is mounted on this machine; mount one at /sys/fs/cgroup"
        )
    return found


def _tracking() -> Path:
    """The hierarchy in which processes are looked up: v2 where there is one, else systemd's."""
    mounted = hierarchies()
    for where, version2 in mounted:
        if version2:
            return where
    for where, _ in mounted:
        if where.name == "systemd":
            return where
    return mounted[0][0]


def _make(mount: Path, version2: bool, group: Path) -> Path:
    path = mount
    for part in group.parts:
        if version2:
            _delegate(path)
        path = path / part
        path.mkdir(parents=True, exist_ok=True)
        if (path / "cpuset.cpus").exists() and not version2:
            # A new v1 cpuset is empty and refuses every process until it is filled.
            for name in ("cpuset.cpus", "cpuset.mems"):
                (path / name).write_text((path.parent / name).read_text())
        # The lab's own group, and the one of all labs; its machines share alike.
        if (path / "cpu.shares").exists() and path.parent in (mount, mount / _ROOT):
            (path / "cpu.shares").write_text(str(_SHARES))
    return path


def _delegate(path: Path) -> None:
    try:
        available = (path / "cgroup.controllers").read_text().split()
        (path / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in available))
    except OSError:
        # Hybrid hosts have no controller in v2; a busy root refuses: both run without limits.
        return


def enter(lab: str, group: str, *, every_hierarchy: bool) -> None:
    """Move the calling process into ``group`` of the lab, making the group if needed."""
    wanted = Path(_ROOT) / lab / group
    tracking = _tracking()
    for mount, version2 in hierarchies():
        if every_hierarchy or mount == tracking:
            path = _make(mount, version2, wanted)
            (path / "cgroup.procs").write_text(str(os.getpid()))


def members(lab: str, group: str) -> list[int]:
    """Ids of the processes in ``group`` and below; empty where there is no such group."""
    found: list[int] = []
    for path, _, _ in os.walk(_tracking() / _ROOT / lab / group):
        try:
            found += [int(pid) for pid in Path(path, "cgroup.procs").read_text().split()]
        except OSError:
            continue  # removed while we looked
    return found


def cpu_seconds(lab: str, group: str) -> float:
    """Processor time of what is and was in ``group`` and below; 0 where it is not counted."""
    for mount, version2 in hierarchies():
        path = mount / _ROOT / lab / group
        with suppress(OSError):
            if version2:
                counted = dict(
                    line.split() for line in (path / "cpu.stat").read_text().splitlines()
                )
                return int(counted["usage_usec"]) / 1e6
            return int((path / "cpuacct.usage").read_text()) / 1e9
    return 0.0


def freeze(lab: str, group: str, *, frozen: bool) -> None:
    """Stop every process of ``group`` at once, as a hypervisor's pause does, or let them go on."""
    for mount, version2 in hierarchies():
        path = mount / _ROOT / lab / group / ("cgroup.freeze" if version2 else "freezer.state")
        if path.exists():
            path.write_text(str(int(frozen)) if version2 else "FROZEN" if frozen else "THAWED")


def kill(lab: str, group: str, *, number: int = signal.SIGKILL, seconds: float = 20.0) -> None:
    """Send ``number`` to every process of ``group`` until none is left.

    Half way through ``seconds`` it becomes SIGKILL. Raises LabError when some are still
    there after that.
    """
    deadline = time.monotonic() + seconds
    while pids := members(lab, group):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline - seconds / 2:
            number = signal.SIGKILL
        if time.monotonic() > deadline:
            raise LabError(
                f"processes {pids} of lab '{lab}' do not end; look at them with ps and repeat"
            )
        time.sleep(0.05)


def remove(lab: str, group: str | None = None) -> None:
    """Remove the (empty) groups of one part of the lab, or all of them, in every hierarchy."""
    for mount, _ in hierarchies():
        top = mount / _ROOT / lab
        if group is not None:
            top = top / group
        if top.is_dir():
            for path, _, _ in os.walk(top, topdown=False):
                _rmdir(Path(path))
        if group is None:
            with suppress(OSError):  # another lab stands, or is about to
                (mount / _ROOT).rmdir()


def _rmdir(path: Path) -> None:
    # The kernel lets go of a group a moment after its last process.
    for _ in range(100):
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
    raise LabError(f"control group {path} is still in use; end its processes and repeat")
