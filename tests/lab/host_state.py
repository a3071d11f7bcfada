"""What a lab may leave traces in, read from this machine; for comparing before and after."""

import json
import subprocess
from pathlib import Path

# Directories in which every entry is compared. Not /tmp, where others work too: a test that
# wants to know gives its commands a TMPDIR of their own.
_WATCHED = ("/run", "/run/systemd", "/run/netns", "/var/lib", "/var/tmp", "/etc")
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "fs/inotify/max_user_instances",
    "net/netfilter/nf_conntrack_max",
)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def snapshot() -> dict[str, list[str]]:
    """Namespaces, mounts, interfaces, tables, processes, control groups, files and sysctls."""
    state = {
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "interfaces": sorted(link["ifname"] for link in json.loads(_output("ip", "-j", "link"))),
        "routes": sorted(_output("ip", "route").splitlines()),
        "nft tables": sorted(_output("nft", "list", "tables").splitlines()),
        "network namespaces": sorted({_namespace(pid) for pid in _pids()} - {""}),
        "processes of a lab": sorted(_lab_processes()),
        "control groups": sorted(
            str(path) for path in Path("/sys/fs/cgroup").glob("**/t2v-lab*/**") if path.is_dir()
        ),
        "sysctls": [
            f"{key}={(Path('/proc/sys') / key).read_text().strip()}"
            for key in _SYSCTLS
            if (Path("/proc/sys") / key).exists()
        ],
    }
    for directory in _WATCHED:
        path = Path(directory)
        state[f"files in {directory}"] = (
            sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        )
    return state


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _lab_processes() -> list[str]:
    """Whatever is in a lab's control group, and ssh connections that a playbook kept open."""
    found = []
    for pid in _pids():
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        # A zombie has ended; it waits for this machine's init.
        if state != "Z" and ("/t2v-lab" in groups or "t2v-lab" in command):
            found.append(command.strip())
    return found
