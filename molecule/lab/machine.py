"""One machine: its files on disk, power on, plug pulled, ssh."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import cgroups
from lab.errors import LabError
from lab.hosts import Host, Site
from lab.network import inside
from lab.settings import REPOSITORY, VIRTUAL, Paths, Scenario
from lab.shell import run, succeeds

# A container engine stacks file systems of its own, which needs a plain directory below; a kubelet
# asks how full the disk below it is, and etcd waits for it.
_VOLUMES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd")
_DISK_BYTES = 8 * 1024**3


@dataclass(frozen=True)
class Machine:
    """What the supervisor must know to power a machine on; kept as ``machine.json``.

    binds: pairs of (directory of this machine, path inside); memory_mb: MiB, of a vm.
    """

    name: str
    address: str
    gateway: str
    nameservers: tuple[str, ...]
    kind: str
    image: str
    interface: str
    uuid: str
    memory_mb: int
    binds: tuple[tuple[str, str], ...]

    @property
    def port(self) -> str:
        """The machine's end at the bridge; the kernel allows 15 characters."""
        return f"vb-{self.name}" if len(self.name) <= 12 else f"vb-{self.uuid[:12]}"

    @property
    def mac(self) -> str:
        """A locally administered address, stable over the machine's life."""
        digits = self.uuid.replace("-", "")
        return "52:54:00:" + ":".join(digits[i : i + 2] for i in (0, 2, 4))


def load(paths: Paths, name: str) -> Machine | None:
    """The machine as it was prepared, or None where it was not (or only half)."""
    record = paths.machine(name) / "machine.json"
    if not record.is_file():
        return None
    try:
        raw = json.loads(record.read_text())
        raw["binds"] = tuple((source, target) for source, target in raw["binds"])
        raw["nameservers"] = tuple(raw["nameservers"])
        return Machine(**raw)
    except (ValueError, TypeError, KeyError):
        return None  # written by another version of the lab: as good as none


def prepared(paths: Paths) -> list[str]:
    """Names of the machines that have files in this lab."""
    top = paths.state / "machines"
    return sorted(path.name for path in top.iterdir()) if top.is_dir() else []


def images_in_use(paths: Paths) -> set[Path]:
    """Base images that machines of any lab stand on."""
    records = paths.state.parent.glob("*/machines/*/machine.json")
    return {Path(json.loads(record.read_text())["image"]) for record in records}


def describe(
    paths: Paths,
    scenario: Scenario,
    site: Site,
    host: Host,
    image: Path,
    nameservers: Sequence[str],
) -> Machine:
    """The machine that this host of the inventory should be."""
    volumes = [
        (str(paths.machine(host.name) / "volumes" / path.strip("/").replace("/", "-")), path)
        for path in _VOLUMES
    ]
    shares = [
        (str(paths.state / "shared" / share.name), share.path)
        for share in scenario.shared
        if share.group in host.groups
    ]
    return Machine(
        name=host.name,
        address=f"{host.address}/{site.subnet.prefixlen}",
        gateway=str(site.gateway),
        nameservers=tuple(nameservers),
        kind=host.kind,
        image=str(image),
        interface=site.interface,
        uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host.name}.{paths.name}.t2v-lab")),
        memory_mb=scenario.memory_mb,
        binds=() if host.kind in VIRTUAL else tuple(volumes + shares),
    )


def prepare(paths: Paths, machine: Machine) -> None:
    """Write the machine's own files; ``machine.json`` last, as the sign that all are there."""
    place = paths.machine(machine.name)
    shutil.rmtree(place, ignore_errors=True)
    for name in ("upper", "work", "root"):
        (place / name).mkdir(parents=True)
    for source, _ in machine.binds:
        Path(source).mkdir(parents=True, exist_ok=True)
    _seed(paths, machine, place / "upper")
    if machine.kind in VIRTUAL:
        _build_disk(machine, place)
    partial = place / "machine.json.part"
    partial.write_text(json.dumps(asdict(machine)))
    partial.replace(place / "machine.json")


def _seed(paths: Paths, machine: Machine, upper: Path) -> None:
    network = (
        f"[Match]\nName={machine.interface}\n[Network]\nAddress={machine.address}\n"
        f"Gateway={machine.gateway}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )
    link = f"[Match]\nMACAddress={machine.mac}\n[Link]\nName={machine.interface}\n"
    address = machine.address.split("/")[0]
    files = {
        "etc/hostname": f"{machine.name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n{address} {machine.name}\n",
        "etc/machine-id": machine.uuid.replace("-", "") + "\n",
        "etc/resolv.conf": "".join(f"nameserver {one}\n" for one in machine.nameservers),
        "etc/systemd/network/10-lab.network": network,
        "root/.ssh/authorized_keys": paths.private_key.with_suffix(".pub").read_text(),
    }
    if machine.kind in VIRTUAL:
        files["etc/systemd/network/10-lab.link"] = link
    for name, content in files.items():
        path = upper / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)
    (upper / "etc/ssh").mkdir(exist_ok=True)
    key = upper / "etc/ssh/ssh_host_ed25519_key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", machine.name, "-f", str(key)])


def _build_disk(machine: Machine, place: Path) -> None:
    """The vm's disk: base image and the machine's own files, merged and written as ext4."""
    disk = place / "disk.ext4"
    options = f"lowerdir={machine.image}/rootfs,upperdir={place}/upper,workdir={place}/work"
    script = (
        f'mount -t overlay overlay -o "{options}" "{place}/root" && '
        f'mke2fs -q -t ext4 -d "{place}/root" "{disk}" {_DISK_BYTES // 1024}k'
    )
    run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script])


def host_key(paths: Paths, name: str) -> str:
    """The machine's public host key, as the lab made it."""
    text = (paths.machine(name) / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text()
    return " ".join(text.split()[:2])


def is_on(paths: Paths, name: str) -> bool:
    """Whether the machine is powered on (it may still be booting)."""
    return bool(cgroups.members(paths.name, f"supervisor-{name}"))


def leader(paths: Paths, name: str) -> int:
    """Process id, here, of the machine's init. Raises LabError where it is off, or a vm."""
    for pid in cgroups.members(paths.name, f"machine-{name}"):
        status = Path(f"/proc/{pid}/status").read_text()
        (namespaced,) = (line.split()[1:] for line in status.splitlines() if "NSpid:" in line)
        if len(namespaced) == 2 and namespaced[1] == "1" and status.startswith("Name:\tsystemd\n"):
            return pid
    raise LabError(f"{name} has no init in this machine's sight: it is off, or a vm")


def power_on(paths: Paths, name: str) -> None:
    """Start the machine's supervisor, if it is not running."""
    if is_on(paths, name):
        return
    log = paths.machine(name) / "console.log"
    with log.open("ab") as console:
        process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                sys.executable,
                "-m",
                "lab.supervisor",
                paths.name,
                name,
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "molecule")},
        )
    while not is_on(paths, name):
        if process.poll() is not None:
            tail = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
            raise LabError(f"machine {name} did not start: {tail} (all of it is in {log})")
        time.sleep(0.02)


def pull_plug(paths: Paths, name: str) -> None:
    """Power the machine off at once, as a mains failure would."""
    cgroups.kill(paths.name, f"supervisor-{name}", number=signal.SIGTERM)
    # Nothing is left of it here, unless the supervisor itself had been killed before.
    cgroups.kill(paths.name, f"machine-{name}")
    cgroups.remove(paths.name, f"machine-{name}")


def ssh_command(paths: Paths, address: str, *options: str) -> list[str]:
    """Ssh into a machine from the lab's network, its host key checked against the lab's."""
    return inside(
        paths,
        [
            "ssh",
            "-i",
            str(paths.private_key),
            "-o",
            f"UserKnownHostsFile={paths.known_hosts}",
            "-o",
            "GlobalKnownHostsFile=/dev/null",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "LogLevel=ERROR",
            *options,
            f"root@{address}",
        ],
    )


def answers(paths: Paths, address: str) -> bool:
    """Whether the machine lets the lab's key in over ssh right now."""
    options = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=2")
    return succeeds([*ssh_command(paths, address, *options), "true"])


def wait_for_ssh(paths: Paths, hosts: Sequence[Host], seconds: float) -> None:
    """Wait until every host answers. Raises LabError naming those that do not."""
    deadline = time.monotonic() + seconds
    waiting = list(hosts)
    while waiting:
        waiting = [host for host in waiting if not answers(paths, host.address)]
        if waiting and time.monotonic() > deadline:
            names = ", ".join(host.name for host in waiting)
            raise LabError(
                f"{names} did not answer over ssh within {seconds:.0f} s; read "
                f"{paths.machine(waiting[0].name)}/console.log"
            )
        time.sleep(0.2)
