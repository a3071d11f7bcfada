"""What a site.yml has written to the machines of a lab, file by file, and what differs in two labs.

A machine's root is an overlay: everything that is not of the base image lies in its upper layer,
on this machine. What differs by its nature is named in ``EXCEPTIONS``, with the reason.
"""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from lab import machine
from lab.settings import Paths

# Path in the machine → what is compared of it: type, mode, owner, and what it holds.
Files = dict[str, str]

_ONCE = "made once for a site, with random bytes: its mode and owner are compared"
# Pattern of a path, why it may differ, and whether its mode and owner must agree nevertheless.
EXCEPTIONS: tuple[tuple[str, str, bool], ...] = (
    (r"/etc/ssh/ssh_host_\w+_key(\.pub)?", "a host's own key", True),
    (r"/etc/machine-id|/var/lib/dbus/machine-id", "a lab's own", True),
    (r"/root/\.ssh/authorized_keys", "the lab's own key", True),
    (r"/etc/(redis/redis\.conf|sanchuang-t2v/server/job-store-password)", _ONCE, True),
    (r"/etc/docker/registry/(config\.yml|ca\.crt|tls\.(crt|key)|htpasswd)", _ONCE, True),
    (r"/etc/docker/key\.json", "Docker's own key", True),
    (r"/etc/docker/certs\.d/.*|/usr/local/share/ca-certificates/.*", _ONCE, True),
    (r"/etc/ssl/certs/.*", "the site's own CA is among them", True),
    (r".*\.applied", "a hash over one of those", True),
    (r"/etc/default/prometheus-redis-exporter|/etc/sanchuang-t2v/redis-exporter\.env", _ONCE, True),
    (r"/root/\.ansible/tmp(/.*)?", "what a killed run was about to send", False),
    (r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-", "the version before the last", False),
    (r"/var/log(/.*)?", "logs", False),
    (r"/var/(cache|tmp|backups)(/.*)?|/tmp(/.*)?", "caches", False),
    (r"/var/lib/apt(/.*)?", "lists of packages, and when they were fetched", False),
    (r"/var/lib/dpkg/(status-old|available|lock.*|diversions-old|statoverride-old|triggers/.*)",
     "dpkg's own book-keeping", False),
    (r"/var/lib/systemd/(random-seed|timers/.*|timesync/.*|rfkill/.*)", "of the boot", False),
    (r"/var/lib/(prometheus|redis|alertmanager|chrony|private|logrotate|docker-registry)(/.*)?",
     "data of a running service", False),
    (r"/var/lib/sanchuang-t2v/server(/.*)?", "the running service's state", False),
    (r"/root/\.docker(/.*)?", "an engine's client", False),
    (r"/run(/.*)?|/dev(/.*)?|/proc(/.*)?|/sys(/.*)?", "of the running system", False),
    (r"/shared(/.*)?|/nfs(/.*)?", "the share", False),
)  # fmt: skip
_PATTERNS = [(re.compile(pattern), reason, owned) for pattern, reason, owned in EXCEPTIONS]


def exception(path: str) -> tuple[str, bool] | None:
    """Why the path may differ, and whether its mode and owner must not; None where it may not."""
    for pattern, reason, owned in _PATTERNS:
        if pattern.fullmatch(path):
            return reason, owned
    return None


def read(paths: Paths, host: str) -> Files:
    """Every path of the host that is not as in the base image, exceptions left out."""
    described = machine.load(paths, host)
    assert described is not None, f"lab {paths.name} has no machine {host}"
    upper, lower = paths.machine(host) / "upper", Path(described.image) / "rootfs"
    found: Files = {}
    for directory, names, files in os.walk(upper):
        for name in (*names, *files):
            whole = Path(directory, name)
            path = "/" + str(whole.relative_to(upper))
            why = exception(path)
            if why and not why[1]:
                continue
            shown = _describe(whole, content=not why)
            under = lower / path[1:]
            # Copied up, and still what it was.
            if not os.path.lexists(under) or _describe(under, content=not why) != shown:
                found[path] = shown
    return found


def _describe(path: Path, *, content: bool) -> str:
    found = path.lstat()
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
        return "removed"
    owner = f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"
    if stat.S_ISLNK(found.st_mode):
        return f"{owner} -> {path.readlink()}"
    if not stat.S_ISREG(found.st_mode) or not content:
        return owner
    raw = path.read_bytes()
    if str(path).endswith("/var/lib/dpkg/status"):
        # The same packages in the order in which they came.
        raw = b"\n\n".join(sorted(raw.strip().split(b"\n\n")))
    return f"{owner} {hashlib.sha256(raw).hexdigest()}"


def differences(
    wanted: Mapping[str, Files], found: Mapping[str, Files]
) -> list[tuple[str, str, str, str]]:
    """(host, path, as it should be, as it is) of all that differs; "" where there is nothing."""
    return [
        (host, path, wanted.get(host, {}).get(path, ""), found.get(host, {}).get(path, ""))
        for host in sorted(wanted.keys() | found.keys())
        for path in sorted(wanted.get(host, {}).keys() | found.get(host, {}).keys())
        if wanted.get(host, {}).get(path, "") != found.get(host, {}).get(path, "")
    ]
