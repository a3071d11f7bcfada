"""The lab's private network: a namespace with a bridge, and a translated way out.

The documented addresses exist only inside the namespace, so a lab can stand on a machine
whose own network is 192.168.0.0/24. Outside of it a lab adds a veth pair and an nftables
table of its own, and raises three sysctls. What those were is written to
``/run/t2v-lab/sysctls.json`` by the first lab before it changes them, and put back by the
last one that goes.
"""

import fcntl
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError
from lab.hosts import Site
from lab.settings import Paths
from lab.shell import run, succeeds

BRIDGE = "br-t2v"
_UPLINK = "uplink"
# Addresses of Kubernetes' pods and services: a packet to one that nobody answers must not
# leave through the NAT.
_UNREACHABLE = ("10.244.0.0/16", "10.96.0.0/16")
# All machines share one kernel: what seven systemds, two container engines and a kube-proxy
# need of it. Only ever raised.
_SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    "fs/inotify/max_user_instances": 1024,
    "net/netfilter/nf_conntrack_max": 131072,
}


def inside(paths: Paths, command: Sequence[str]) -> list[str]:
    """The command, to be run in the lab's network (the file system stays this machine's).

    nsenter and not ``ip netns exec``: the latter remounts /sys and hides the control groups.
    """
    return ["nsenter", f"--net={paths.netns}", "--", *command]


def exists(paths: Paths) -> bool:
    """Whether the lab's network namespace stands."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == str(paths.netns) for line in mounts)


def bridge_port(paths: Paths, port: str) -> bool:
    """Plug ``port`` (an interface in the namespace) into the bridge; False if it is not there."""
    return succeeds(inside(paths, ["ip", "link", "set", port, "master", BRIDGE, "up"]))


def nameservers(site: Site) -> list[str]:
    """The resolvers that this machine asks, as machines behind a NAT can use them.

    T2V_LAB_NAMESERVER names others, separated by spaces. Raises LabError where every known
    one is out of the machines' reach: a loopback address, or one of the site's own network.
    """
    named = (os.environ.get("T2V_LAB_NAMESERVER") or "").split()
    if named:
        return named
    found: list[str] = []
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        if path.is_file():
            lines = (line.split() for line in path.read_text().splitlines())
            found += [line[1] for line in lines if len(line) > 1 and line[0] == "nameserver"]
            usable = [one for one in found if ":" not in one and _reachable(one, site)]
            if usable:
                return usable
    raise LabError(
        f"this machine's name servers ({', '.join(found) or 'none'}) are loopback addresses or "
        f"inside of the site's own {site.subnet}, where the lab's machines cannot reach them; "
        "set T2V_LAB_NAMESERVER to one that they can"
    )


def _reachable(nameserver: str, site: Site) -> bool:
    address = ipaddress.IPv4Address(nameserver)
    return not address.is_loopback and address not in site.subnet


def create(paths: Paths, site: Site) -> None:
    """Build the network anew unless it is complete.

    Machines that are on must be off before: they would stay in the old one. Raises LabError
    when its addresses are occupied.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    if not complete(paths, site):
        with _alone(paths):
            _remove(paths)
            _build(paths, site)


def complete(paths: Paths, site: Site) -> bool:
    """Whether the network stands, whole, with the site's gateway."""
    if not exists(paths):
        return False
    gateway = f"{site.gateway}/{site.subnet.prefixlen}"
    shown = subprocess.run(
        inside(paths, ["ip", "-o", "-4", "addr", "show", BRIDGE]),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return (
        gateway in shown
        and succeeds(inside(paths, ["nft", "list", "table", "ip", "t2v_lab"]))
        and succeeds(["nft", "list", "table", "ip", _table(paths)])
    )


def _build(paths: Paths, site: Site) -> None:
    outer = f"t2v-{paths.tag}"
    link = _free_link()
    _raise_sysctls(paths)
    paths.netns.touch()
    run(["unshare", f"--net={paths.netns}", "true"])
    gateway, prefix = site.gateway, site.subnet.prefixlen
    near, far = list(link.hosts())
    run(
        [
            "ip",
            "link",
            "add",
            outer,
            "type",
            "veth",
            "peer",
            "name",
            _UPLINK,
            "netns",
            str(paths.netns),
        ]
    )
    run(["ip", "addr", "add", f"{near}/30", "dev", outer])
    run(["ip", "link", "set", outer, "up"])
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", BRIDGE, "type", "bridge"],
        ["ip", "addr", "add", f"{gateway}/{prefix}", "dev", BRIDGE],
        ["ip", "link", "set", BRIDGE, "up"],
        ["ip", "addr", "add", f"{far}/30", "dev", _UPLINK],
        ["ip", "link", "set", _UPLINK, "up"],
        ["ip", "route", "add", "default", "via", str(near)],
        *(["ip", "route", "add", "unreachable", block] for block in _UNREACHABLE),
        ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
    ):
        run(inside(paths, command))
    rules = (
        "table ip t2v_lab {{\n chain post {{\n"
        "  type nat hook postrouting priority 100;\n  {}\n }}\n}}\n"
    )
    run(inside(paths, ["nft", "-f", "-"]), stdin=rules.format(f'oifname "{_UPLINK}" masquerade'))
    # Last, because ``complete`` takes this table for the sign that all the rest is there.
    outside = f'ip saddr {link} oifname != "{outer}" masquerade'
    run(["nft", "-f", "-"], stdin=rules.replace("t2v_lab", _table(paths)).format(outside))


def remove(paths: Paths) -> None:
    """Take the network away; the last lab puts this machine's settings back."""
    if paths.run.parent.is_dir():
        with _alone(paths):
            _remove(paths)
            _restore_sysctls(paths)


def _remove(paths: Paths) -> None:
    outer = f"t2v-{paths.tag}"
    if Path("/sys/class/net", outer).exists():
        run(["ip", "link", "del", outer])
    if succeeds(["nft", "list", "table", "ip", _table(paths)]):
        run(["nft", "delete", "table", "ip", _table(paths)])
    while exists(paths):
        run(["umount", str(paths.netns)])
    paths.netns.unlink(missing_ok=True)


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """Keep labs that come and go at the same time out of each other's addresses and sysctls."""
    with (paths.run.parent / "network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sysctl_record(paths: Paths) -> Path:
    return paths.run.parent / "sysctls.json"


def _raise_sysctls(paths: Paths) -> None:
    record = _sysctl_record(paths)
    before = json.loads(record.read_text()) if record.is_file() else {}
    lower = {}
    for key, wanted in _SYSCTLS.items():
        path = Path("/proc/sys") / key
        if path.exists() and int(path.read_text()) < wanted:
            lower[key] = path.read_text().strip()
    partial = record.with_suffix(".part")
    partial.write_text(json.dumps({**lower, **before}))
    partial.replace(record)
    for key in lower:
        _set_sysctl(key, str(_SYSCTLS[key]))


def _restore_sysctls(paths: Paths) -> None:
    record = _sysctl_record(paths)
    others = [other for other in paths.run.parent.iterdir() if (other / "netns").exists()]
    if record.is_file() and not others:
        for key, value in json.loads(record.read_text()).items():
            _set_sysctl(key, value)
        record.unlink()


def _table(paths: Paths) -> str:
    return f"t2v_lab_{paths.tag}"


def _set_sysctl(key: str, value: str) -> None:
    (Path("/proc/sys") / key).write_text(value)


def _free_link() -> ipaddress.IPv4Network:
    """A /30 for the way out that this machine neither has nor routes.

    From 100.64.0.0/10, which RFC 6598 sets apart for carriers' own links; T2V_LAB_UPLINK
    names another. Raises LabError when that one is occupied.
    """
    taken = _occupied()
    wished = os.environ.get("T2V_LAB_UPLINK")
    if wished:
        try:
            link = ipaddress.IPv4Network(wished)
        except ValueError as error:
            raise LabError(f"T2V_LAB_UPLINK={wished} is not a network: {error}") from error
        clash = [one for one in taken if one.overlaps(link)]
        if clash or link.prefixlen != 30:
            raise LabError(
                f"T2V_LAB_UPLINK={wished} cannot be used: it must be a /30 and overlap nothing "
                f"this machine has{f', but {clash[0]} is occupied' if clash else ''}"
            )
        return link
    for link in ipaddress.IPv4Network("100.127.0.0/16").subnets(new_prefix=30):
        if not any(one.overlaps(link) for one in taken):
            return link
    raise LabError(
        "every address of 100.127.0.0/16 is occupied on this machine; set T2V_LAB_UPLINK to a "
        "free /30 network for the lab's way out"
    )


def _occupied() -> list[ipaddress.IPv4Network]:
    routes = json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"]) or "[]")
    found = []
    for route in routes:
        if route.get("dst", "default") != "default":
            found.append(ipaddress.IPv4Network(route["dst"], strict=False))
    return found
