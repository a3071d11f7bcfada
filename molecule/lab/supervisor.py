"""Keep one machine powered on: the part of a hypervisor that outlives ``make up``.

Run as ``python -m lab.supervisor LAB HOST`` in a mount namespace of its own, so that what
it mounts is gone when it is. A machine that reboots is started again; one that powers
itself off stays off, and its supervisor ends.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

from lab import cgroups, machine
from lab.machine import Machine
from lab.network import bridge_port, inside
from lab.settings import VIRTUAL, Paths
from lab.shell import run, succeeds

_REBOOT = 133  # systemd-nspawn's exit status when the machine asked for a reboot
# What a container engine and a kubelet call and nspawn's own filter refuses.
_SYSCALLS = "add_key keyctl bpf @mount"


def main(lab: str, name: str) -> int:
    """Power the machine on and stay until it is off; the exit status is 0 for a clean one."""
    paths = Paths(lab)
    cgroups.enter(lab, f"supervisor-{name}", every_hierarchy=False)
    described = machine.load(paths, name)
    if described is None:
        print(f"lab {lab} has no machine {name}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A machine whose supervisor was killed may still run, on the files we are about to mount.
    cgroups.kill(lab, f"machine-{name}")
    if described.kind not in VIRTUAL:
        _mount(paths, described)
    while True:
        status = _run_once(paths, described)
        print(f"[lab] {name} stopped with status {status}", flush=True)
        if status != _REBOOT:
            return 0


def _mount(paths: Paths, described: Machine) -> None:
    place = paths.machine(described.name)
    options = f"lowerdir={described.image}/rootfs,upperdir={place}/upper,workdir={place}/work"
    run(["mount", "-t", "overlay", "overlay", "-o", options, str(place / "root")])
    # nspawn keeps directories of its own below /run; these go with this mount namespace.
    Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", "tmpfs", "/run/systemd/nspawn"])


def _run_once(paths: Paths, described: Machine) -> int:
    group = f"machine-{described.name}"
    # Left-overs of the life before: a kubelet counts them, a container engine trips over them.
    cgroups.kill(paths.name, group)
    cgroups.remove(paths.name, group)
    virtual = described.kind in VIRTUAL
    if virtual:
        succeeds(inside(paths, ["ip", "tuntap", "add", "dev", described.port, "mode", "tap"]))
        bridge_port(paths, described.port)
    else:
        # The kernel takes a dead machine's plug away a moment after the machine.
        succeeds(inside(paths, ["ip", "link", "del", described.port]))
    command = _qemu(paths, described) if virtual else _nspawn(paths, described)
    process = subprocess.Popen(
        inside(paths, command),
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: cgroups.enter(paths.name, group, every_hierarchy=not virtual),
    )
    try:
        while not virtual and process.poll() is None and not bridge_port(paths, described.port):
            time.sleep(0.05)
        return process.wait()
    finally:
        # The plug was pulled (SIGTERM raised SystemExit): the machine ends here and now.
        cgroups.kill(paths.name, group)
        process.wait()


def _nspawn(paths: Paths, described: Machine) -> list[str]:
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={paths.machine(described.name) / 'root'}",
        f"--machine={described.name}",
        f"--hostname={described.name}",
        f"--uuid={described.uuid}",
        "--register=no",
        "--keep-unit",
        "--console=passive",
        "--resolv-conf=off",
        "--timezone=off",
        "--capability=all",
        f"--system-call-filter={_SYSCALLS}",
        f"--network-veth-extra={described.port}:{described.interface}",
        *(f"--bind={source}:{target}" for source, target in described.binds),
    ]


def _qemu(paths: Paths, described: Machine) -> list[str]:
    place = paths.machine(described.name)
    return [
        "qemu-system-x86_64",
        "-machine",
        "q35",
        # Emulation: /dev/kvm may exist and a guest still hang (seen), so it is not a choice
        # to make by its presence.
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        str(described.memory_mb),
        "-uuid",
        described.uuid,
        "-display",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        "none",
        "-kernel",
        f"{described.image}/vmlinuz",
        "-initrd",
        f"{described.image}/initrd.img",
        "-append",
        "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet",
        "-drive",
        f"file={place}/disk.ext4,if=virtio,format=raw,cache=unsafe",
        "-netdev",
        f"tap,id=lan,ifname={described.port},script=no,downscript=no",
        "-device",
        f"virtio-net-pci,netdev=lan,mac={described.mac}",
        "-device",
        "virtio-rng-pci",
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
