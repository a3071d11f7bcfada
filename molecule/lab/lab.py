"""Build a lab, take it down, say how it stands."""

import fcntl
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from lab import cgroups, images, machine, network, runtime
from lab.errors import LabError
from lab.hosts import Host, Site
from lab.settings import REPOSITORY, VIRTUAL, Paths, Scenario
from lab.shell import run, run_with_retries, succeeds, track_with
from lab.steps import say, step

# Program → the Debian package that brings it.
_PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ffprobe": "ffmpeg",
    "mke2fs": "e2fsprogs",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "update-ca-certificates": "ca-certificates",
}
_VM_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86"}
_FREE_GIB = 12
_FREE_GIB_BUILT = 2
_BOOT_SECONDS = {"debian12": 60.0, "py27": 60.0, "vm": 600.0, "py27-vm": 600.0}


@contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """Be the only one who changes this lab. Raises LabError when another does.

    Commands that are run meanwhile belong to the lab's group ``run``, by which the next
    holder ends what a killed one left running.
    """
    _require_root()
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LabError(
                f"lab '{paths.name}' is being changed by process {lock.read().strip() or '?'}; "
                "wait for it to end, or stop it"
            ) from None
        if not paths.lock.exists() or os.fstat(lock.fileno()).st_ino != paths.lock.stat().st_ino:
            raise LabError(f"lab '{paths.name}' was just removed by another run; repeat")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        # What an earlier run was doing when it was killed must not go on beside us.
        cgroups.kill(paths.name, "run")
        track_with(lambda: cgroups.enter(paths.name, "run", every_hierarchy=False))
        try:
            yield
        finally:
            track_with(None)
            if not paths.state.exists():
                # Held until the end: nobody can have locked the file that goes.
                paths.lock.unlink()
                _remove_if_empty(paths.lock.parent)


def _require_root() -> None:
    if platform.system() != "Linux":
        raise LabError(f"the lab needs Linux (systemd-nspawn), this is {platform.system()}")
    if os.geteuid() != 0:
        raise LabError(
            "the lab makes network namespaces and machines, which only root may; run it as root "
            "(for example `sudo make up`)"
        )


def check_space(paths: Paths, site: Site) -> None:
    """Refuse to start where the disk would fill up half way. Raises LabError.

    What is still to be built needs room; machines that stand need little more.
    """
    built = all(machine.load(paths, host.name) for host in site.hosts)
    needed = _FREE_GIB_BUILT if built else _FREE_GIB
    for place in {paths.cache, paths.state}:
        existing = place
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free / 1024**3
        if free < needed:
            setting = "T2V_LAB_CACHE" if place == paths.cache else "T2V_LAB_STATE"
            raise LabError(
                f"{place} has {free:.1f} GiB free and the lab needs {needed}; make room, or "
                f"set {setting} to a directory on a larger disk"
            )


def install_programs(scenario: Scenario, site: Site) -> None:
    """Install the Debian packages that the lab and its scenario need and this machine lacks."""
    wanted = _PROGRAMS | scenario.programs
    if any(host.kind in VIRTUAL for host in site.hosts):
        wanted |= _VM_PROGRAMS
    missing = sorted({package for name, package in wanted.items() if not shutil.which(name)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabError(f"this machine lacks {', '.join(missing)}; install what brings them")
    with step(f"Packages of this machine: {', '.join(missing)}"):
        run_with_retries(["apt-get", "update", "-qq"], "apt-get update")
        run_with_retries(
            [
                "env",
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "install",
                "-o",
                "DPkg::Lock::Timeout=300",
                "-qq",
                "-y",
                "--no-install-recommends",
                *missing,
            ],
            "apt-get install",
        )


def create(paths: Paths, scenario: Scenario, site: Site) -> None:
    """Build what is missing of the lab's machines and network, and wait until all answer."""
    check_space(paths, site)
    install_programs(scenario, site)
    resolvers = network.nameservers(site)
    standing = all(machine.load(paths, host.name) for host in site.hosts)
    pictures = {
        kind: images.machine_image(paths, kind)
        for kind in sorted({host.kind for host in site.hosts})
    }
    paths.state.mkdir(parents=True, exist_ok=True)
    for name in sorted(set(machine.prepared(paths)) - {host.name for host in site.hosts}):
        say(f"    {name} is no longer in the inventory: removed")
        _remove_machine(paths, name)
    with step("Network"):
        if not network.complete(paths, site):
            for name in machine.prepared(paths):
                machine.pull_plug(paths, name)
        network.create(paths, site)
        _check_mirror(paths, *images.mirror(next(iter(pictures.values()))), fatal=not standing)
    with step(f"{len(site.hosts)} machines powered on and answering over ssh"):
        _client_key(paths)
        for host in site.hosts:
            wanted = machine.describe(paths, scenario, site, host, pictures[host.kind], resolvers)
            present = machine.load(paths, host.name)
            if present != wanted:
                _renew(paths, present, wanted)
        _write_known_hosts(paths, site)
        for host in site.hosts:
            machine.power_on(paths, host.name)
        machine.wait_for_ssh(
            paths, site.hosts, max(_BOOT_SECONDS[host.kind] for host in site.hosts)
        )
    images.prune(paths, machine.images_in_use(paths))
    for share in scenario.shared:
        names = ", ".join(
            host.name
            for host in site.hosts
            if share.group in host.groups and host.kind not in VIRTUAL
        )
        if names:
            say(
                f"    stand-in: {share.path} of {names} is one directory of this machine, "
                "in place of an NFS mount"
            )


def _check_mirror(paths: Paths, mirror: str, port: int, *, fatal: bool) -> None:
    """Reach the mirror from inside; its name is looked up outside, as a loopback resolver may."""
    problem = ""
    for attempt in (1, 2, 3):
        try:
            address = socket.getaddrinfo(mirror, port, socket.AF_INET)[0][4][0]
        except OSError as error:
            problem = f"this machine cannot look up the package mirror {mirror} ({error})"
        else:
            probe = f"exec 3<>/dev/tcp/{address}/{port}"
            if succeeds(network.inside(paths, ["timeout", "10", "bash", "-c", probe])):
                return
            problem = (
                f"the lab's network cannot reach the package mirror {mirror}:{port}; check this "
                "machine's own access, and that its firewall lets forwarded packets pass"
            )
        say(f"    {problem} (attempt {attempt} of 3)")
        time.sleep(3 * attempt)
    if fatal:
        raise LabError(problem)


def _renew(paths: Paths, present: machine.Machine | None, wanted: machine.Machine) -> None:
    if present is not None:
        if replace(wanted, image=present.image) == present and Path(present.image).exists():
            say(
                f"    {wanted.name} keeps the older base image it was made from; "
                "`make down` and `make up` renew it"
            )
            return
        say(f"    {wanted.name} changed in the inventory or the scenario: made anew")
    _remove_machine(paths, wanted.name)
    machine.prepare(paths, wanted)


def _client_key(paths: Paths) -> None:
    if not paths.private_key.is_file():
        paths.ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = paths.ssh / "new"
        for path in (partial, partial.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "t2v-lab", "-f", str(partial)])
        partial.with_suffix(".pub").replace(paths.private_key.with_suffix(".pub"))
        partial.replace(paths.private_key)


def _write_known_hosts(paths: Paths, site: Site) -> None:
    lines = [
        f"{host.name},{host.address} {machine.host_key(paths, host.name)}\n" for host in site.hosts
    ]
    partial = paths.ssh / "known_hosts.part"
    partial.write_text("".join(lines))
    partial.replace(paths.known_hosts)


def _remove_machine(paths: Paths, name: str) -> None:
    machine.pull_plug(paths, name)
    cgroups.remove(paths.name, f"supervisor-{name}")
    shutil.rmtree(paths.machine(name), ignore_errors=True)


def destroy(paths: Paths) -> None:
    """Remove every trace of the lab but the cached images; fine when half of it is there.

    Every part is attempted; raises LabError at the end when one of them could not be removed.
    """
    problems = []
    parts: list[Callable[[], None]] = [
        *(partial(_remove_machine, paths, name) for name in machine.prepared(paths)),
        partial(cgroups.kill, paths.name, ""),
        partial(network.remove, paths),
        # Last: the commands that remove the network run in one of these groups.
        partial(cgroups.remove, paths.name),
    ]
    for remove in parts:
        try:
            remove()
        except LabError as error:
            problems.append(str(error))
    if problems:
        raise LabError("; ".join(problems))
    for place in (paths.state, paths.run):
        shutil.rmtree(place, ignore_errors=True)
    _remove_if_empty(paths.state.parent)
    if not any(path.is_dir() for path in paths.run.parent.iterdir()):
        (paths.run.parent / "network.lock").unlink(missing_ok=True)
    for leftover in (Path("/run/systemd/nspawn"), Path("/run/systemd")):
        _remove_if_empty(leftover)


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return


def ansible_variables(paths: Paths, scenario: Scenario, site: Site) -> list[str]:
    """The ``-e`` options by which a lab differs from the documented site.

    First the scenario's own ``vars.yml`` and its runtime's, then what only this lab knows: keys,
    the controller's state, and, where there is a host that builds images, their base.
    """
    own = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(paths.private_key),
        "ansible_ssh_common_args": (
            f"-o UserKnownHostsFile={paths.known_hosts} -o GlobalKnownHostsFile=/dev/null "
            "-o StrictHostKeyChecking=yes"
        ),
        "t2v_state_dir": str(paths.state / "controller"),
    }
    if any("harbor" in host.groups for host in site.hosts):
        own["t2v_image_base"] = images.CONTAINER_BASE
        own["t2v_image_base_archive"] = str(images.container_base(paths))
    chosen = runtime.load(paths)
    if chosen and chosen.bundle:
        own["t2v_bundle"] = chosen.bundle
    written = paths.state / "vars.yml"
    written.write_text(yaml.safe_dump(own))
    files = [*runtime.files(scenario, chosen, "vars.yml"), written]
    return [word for file in files for word in ("-e", f"@{file}")]


def environment(paths: Paths) -> Mapping[str, str]:
    """Environment for ansible: this repository's configuration, sockets in the lab's own place."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(paths.run / "cp"),
        "ANSIBLE_HOME": str(paths.state / "ansible"),
        "LC_ALL": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }


def status(paths: Paths, site: Site) -> list[tuple[Host, str, str]]:
    """For each host: (host, power, ssh), in words."""
    rows = []
    for host in site.hosts:
        on = machine.is_on(paths, host.name)
        up = on and machine.answers(paths, host.address)
        rows.append((host, "on" if on else "off", "answers" if up else "silent"))
    return rows


def ansible_playbook(
    paths: Paths, scenario: Scenario, site: Site, inventory: Path | str = "inventory"
) -> list[str]:
    """A command up to the playbook's name: this environment's ansible-playbook on this lab."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return [program, "-i", str(inventory), *ansible_variables(paths, scenario, site)]


def start_tracked(
    paths: Paths,
    command: list[str],
    *,
    output: int | None = None,
    more: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a command in the lab's network, such that the next run can end it if we are killed.

    Its output goes where ours goes, or to ``output`` (as in subprocess.Popen). ``more`` is for its
    environment.
    """
    return subprocess.Popen(
        network.inside(paths, command),
        cwd=REPOSITORY,
        env={**environment(paths), **(more or {})},
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: cgroups.enter(paths.name, "run", every_hierarchy=True),
    )
