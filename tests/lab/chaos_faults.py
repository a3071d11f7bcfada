"""Faults into a lab that stands. What one of them does it takes back, also when it is stopped."""

import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from chaos_share import Share
from lab import cgroups, lab, machine, network
from lab.hosts import Site
from lab.settings import Paths, load_scenario
from site_runs import LAST_TASK, finish, kill_at

WORKERS = ("worker1", "worker2")
LEASE = 30.0  # T2V_LEASE, where nobody sets it
# What a slow network still lets through: a page of jobs takes seconds.
SLOW = "64kbit"
_TABLE = "t2v_chaos"
_STATE = "/var/lib/sanchuang-t2v/server"
_STATE_BACK = f"docker kill wan22-t2v; umount -l {_STATE}; docker start wan22-t2v"


@dataclass
class Hands:
    """What is done to the lab's machines, and whatever a fault draws from ``rng``."""

    paths: Paths
    site: Site
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    share: Share | None = None
    note: str = ""

    def worker(self) -> str:
        """One of the workers."""
        return self.rng.choice(WORKERS)

    def ssh(self, host: str, script: str, *, check: bool = True) -> str:
        """What the script prints on the host. Raises CalledProcessError where it fails."""
        address = self.site.host(host).address
        quick = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
        command = [*machine.ssh_command(self.paths, address, *quick), script]
        done = subprocess.run(command, capture_output=True, text=True, check=check, timeout=300)
        return done.stdout

    def off(self, *hosts: str) -> None:
        """Pull the plugs."""
        for host in hosts:
            machine.pull_plug(self.paths, host)

    def on(self, *hosts: str) -> None:
        """Put the plugs back and wait for ssh."""
        for host in hosts:
            machine.power_on(self.paths, host)
        machine.wait_for_ssh(self.paths, [self.site.host(name) for name in hosts], 180)

    def running(self, host: str, pattern: str) -> list[int]:
        """Processes of the host, containers included, whose command line has the pattern.

        Raises AssertionError where there is none.
        """
        found = []
        for pid in cgroups.members(self.paths.name, f"machine-{host}"):
            try:
                raw = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if re.search(pattern, raw.replace(b"\0", b" ").decode(errors="replace")):
                found.append(pid)
        assert found, f"{host} runs nothing like {pattern}"
        return sorted(found)

    def kill(self, host: str, pattern: str) -> None:
        """SIGKILL for all of them. Raises AssertionError where there is none."""
        for pid in self.running(host, pattern):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of this machine in the lab's network, whatever comes of it."""
        whole = network.inside(self.paths, command)
        return subprocess.run(whole, capture_output=True, text=True, check=False)

    def port(self, host: str) -> str:
        """The host's plug at the lab's bridge."""
        described = machine.load(self.paths, host)
        assert described is not None
        return described.port

    def site_yml(self) -> list[str]:
        """The command, as ``make playbook`` runs it."""
        return [*lab.ansible_playbook(self.paths, load_scenario("site"), self.site), "site.yml"]

    def converge(self) -> str:
        """Run site.yml to its end; returns what it says. Raises AssertionError where it fails."""
        return finish(self.paths, self.site_yml(), 1200)

    def put_back(self) -> None:
        """Undo whatever a fault may have left: when a run was killed, nothing else does."""
        self.inside("nft", "delete", "table", "netdev", _TABLE)
        for host in self.site.hosts:
            cgroups.freeze(self.paths.name, f"machine-{host.name}", frozen=False)
            self.inside("tc", "qdisc", "del", "dev", self.port(host.name), "root")
        self.on(*(host.name for host in self.site.hosts))
        for worker in WORKERS:
            if self.ssh(worker, f"mountpoint -q {_STATE} && echo yes", check=False):
                self.ssh(worker, _STATE_BACK)


Act = Callable[[Hands], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    act: does it when entered and takes it back when left; hold: how many seconds lie between;
    prepare: what must be there before the jobs are, such as a small disk; codes: why a job may
    fail of it; alerts: those that must fire, and the hold lasts until they do; converge: site.yml
    is run afterwards; share: it needs the share on a volume of its own.
    """

    act: Act
    hold: tuple[float, float] = (0.0, 0.0)
    prepare: Act = lambda hands: nullcontext()
    codes: frozenset[str] = frozenset()
    alerts: frozenset[tuple[str, str]] = frozenset()
    converge: bool = False
    share: bool = False


def powered_off(*choices: Sequence[str]) -> Act:
    """All hosts of one of the choices lose their power."""

    @contextmanager
    def act(hands: Hands) -> Iterator[None]:
        hosts = hands.rng.choice(choices)
        hands.note = ", ".join(hosts)
        try:
            hands.off(*hosts)
            yield
        finally:
            hands.on(*hosts)

    return act


def killed(hosts: Sequence[str], pattern: str, *, all_of_them: bool = True) -> Act:
    """SIGKILL on one of the hosts: what must start again by itself."""

    @contextmanager
    def act(hands: Hands) -> Iterator[None]:
        host = hands.rng.choice(list(hosts))
        hands.note = host
        if all_of_them:
            hands.kill(host, pattern)
        else:
            os.kill(hands.rng.choice(hands.running(host, pattern)), signal.SIGKILL)
        yield

    return act


def stopped(
    host: str, what: str, *, stop: str = "systemctl stop", start: str = "systemctl start"
) -> Act:
    """A unit or a container is stopped, and started by an operator."""

    @contextmanager
    def act(hands: Hands) -> Iterator[None]:
        hands.note = f"{what} on {host}"
        try:
            hands.ssh(host, f"{stop} {what}")
            yield
        finally:
            hands.ssh(host, f"{start} {what}")

    return act


_CONTAINER = r"^(\S*/)?docker-init -- python3 -m t2v_server serve"


@contextmanager
def registry_down(hands: Hands) -> Iterator[None]:
    """The registry is away when a worker's container has to start anew."""
    worker = hands.note = hands.worker()
    try:
        hands.ssh("harbor", "systemctl stop docker-registry")
        hands.kill(worker, _CONTAINER)
        yield
    finally:
        hands.ssh("harbor", "systemctl start docker-registry")


@contextmanager
def paused(hands: Hands) -> Iterator[None]:
    """A whole machine stands still longer than its jobs are leased, and then goes on."""
    worker = hands.note = hands.worker()
    try:
        cgroups.freeze(hands.paths.name, f"machine-{worker}", frozen=True)
        yield
    finally:
        cgroups.freeze(hands.paths.name, f"machine-{worker}", frozen=False)


@contextmanager
def cut(hands: Hands) -> Iterator[None]:
    """No packet passes between a worker and the master: neither requests nor the job store."""
    worker = hands.note = hands.worker()
    far = hands.site.host("master").address
    near = hands.site.host(worker).address
    hook = "type filter hook ingress device"
    rules = (
        f"add table netdev {_TABLE}\n"
        f'add chain netdev {_TABLE} out {{ {hook} "{hands.port(worker)}" priority 0; }}\n'
        f"add rule netdev {_TABLE} out ip daddr {far} drop\n"
        f'add chain netdev {_TABLE} back {{ {hook} "{hands.port("master")}" priority 0; }}\n'
        f"add rule netdev {_TABLE} back ip daddr {near} drop\n"
    )
    try:
        done = subprocess.run(
            network.inside(hands.paths, ["nft", "-f", "-"]),
            input=rules,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield
    finally:
        hands.inside("nft", "delete", "table", "netdev", _TABLE)


@contextmanager
def slow(hands: Hands) -> Iterator[None]:
    """What goes between a worker and the master waits in a queue, for seconds when it is much."""
    worker = hands.note = hands.worker()
    ends = ((hands.port(worker), "master"), (hands.port("master"), worker))
    try:
        for port, far in ends:
            address = hands.site.host(far).address
            for command in (
                f"qdisc add dev {port} root handle 1: htb default 10",
                f"class add dev {port} parent 1: classid 1:10 htb rate 10gbit quantum 60000",
                f"class add dev {port} parent 1: classid 1:20 htb rate {SLOW} quantum 1600",
                f"filter add dev {port} parent 1: protocol ip u32 "
                f"match ip src {address}/32 flowid 1:20",
            ):
                done = hands.inside("tc", *command.split())
                assert done.returncode == 0, f"tc {command}: {done.stderr}"
        yield
    finally:
        for port, _ in ends:
            hands.inside("tc", "qdisc", "del", "dev", port, "root")


@contextmanager
def share_full(hands: Hands) -> Iterator[None]:
    """Not a byte is left on the volume of the share."""
    assert hands.share is not None
    try:
        hands.share.fill()
        yield
    finally:
        hands.share.empty()


@contextmanager
def share_stalled(hands: Hands) -> Iterator[None]:
    """Every write waits, as on a hard NFS mount whose server is away."""
    assert hands.share is not None
    try:
        hands.share.freeze()
        yield
    finally:
        hands.share.thaw()


@contextmanager
def small_state(hands: Hands) -> Iterator[None]:
    """The service's directory below /var on one worker has 8 MiB, which can be filled."""
    worker = hands.note = hands.worker()
    try:
        hands.ssh(
            worker,
            "set -e; docker kill wan22-t2v >/dev/null; rm -rf /run/chaos-state; "
            f"cp -a {_STATE} /run/chaos-state; "
            f"mount -t tmpfs -o size=8m,mode=750 tmpfs {_STATE}; "
            f"cp -a /run/chaos-state/. {_STATE}/; docker start wan22-t2v",
        )
        yield
    finally:
        hands.ssh(worker, _STATE_BACK)


@contextmanager
def state_full(hands: Hands) -> Iterator[None]:
    """Not a byte is left there."""
    try:
        hands.ssh(hands.note, f"cat /dev/zero >{_STATE}/filler", check=False)
        yield
    finally:
        hands.ssh(hands.note, f"rm -f {_STATE}/filler")


@contextmanager
def engine_stopped(hands: Hands) -> Iterator[None]:
    """An engine stands still longer than its lease; another takes over, then it goes on."""
    worker = hands.note = hands.worker()
    engine, *_ = hands.running(worker, "t2v_server engine")
    try:
        os.kill(engine, signal.SIGSTOP)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGCONT)


@contextmanager
def controller_killed(hands: Hands) -> Iterator[None]:
    """ansible-playbook and all that it started are gone at a task that the seed names."""
    number, after = hands.rng.randint(1, LAST_TASK), hands.rng.uniform(0, 1)
    where = kill_at(hands.paths, hands.site_yml(), number, after)
    hands.note = f"at {where}" if where else "after its end"
    yield


_ALL = ("ansible", "harbor", "master", "nfs-server", "prometheus", "worker1", "worker2")
_SPACE = frozenset({"storage_failed", "insufficient_storage", "encoding_failed"})

FAULTS: dict[str, Fault] = {
    "engine killed": Fault(killed(WORKERS, r"t2v_server engine", all_of_them=False)),
    "worker powered off": Fault(powered_off(["worker1"], ["worker2"]), hold=(0, 8)),
    "worker cut off from the master": Fault(cut, hold=(2, LEASE + 15)),
    "job store killed": Fault(killed(["master"], r"redis-server")),
    "share full": Fault(share_full, hold=(1, 8), codes=_SPACE, share=True),
    "registry down, container killed": Fault(registry_down, hold=(5, 12)),
    "worker paused past its lease": Fault(paused, hold=(LEASE + 1, LEASE + 8)),
    "edge killed": Fault(killed(["master"], r"^nginx: ")),
    "share stalled": Fault(share_stalled, hold=(1, LEASE + 5), share=True),
    "NFS server rebooted": Fault(powered_off(["nfs-server"])),
    "Docker killed": Fault(killed(WORKERS, r"^/usr/s?bin/dockerd")),
    "network to the master slow": Fault(slow, hold=(10, 20)),
    "gunicorn killed": Fault(killed(WORKERS, r"-m gunicorn")),
    "master powered off": Fault(powered_off(["master"]), hold=(0, 8)),
    "Prometheus killed": Fault(killed(["prometheus"], r"^/usr/bin/prometheus ")),
    "controller killed in site.yml": Fault(controller_killed, converge=True),
    "worker's /var full": Fault(state_full, hold=(2, 12), prepare=small_state),
    "engine stopped past its lease": Fault(engine_stopped, hold=(LEASE + 1, LEASE + 8)),
    "every host powered off": Fault(powered_off(_ALL)),
    "worker off until its alerts": Fault(
        powered_off(["worker2"]),
        alerts=frozenset({("T2VServerDown", "worker2"), ("HostDown", "worker2")}),
    ),
    "edge stopped until its alert": Fault(
        stopped("master", "nginx"), alerts=frozenset({("EdgeDown", "master")})
    ),
    "job store stopped until its alerts": Fault(
        stopped("master", "redis-server"),
        alerts=frozenset(
            {
                ("JobStoreDown", "master"),
                ("T2VStoreUnreachable", "worker1"),
                ("T2VStoreUnreachable", "worker2"),
            }
        ),
    ),
    "container stopped until its alert": Fault(
        # Docker does not start again what somebody has stopped.
        stopped("worker1", "wan22-t2v", stop="docker stop -t 5", start="docker start"),
        alerts=frozenset({("T2VServerDown", "worker1")}),
    ),
    "NFS server off until its alert": Fault(
        powered_off(["nfs-server"]), alerts=frozenset({("HostDown", "nfs-server")})
    ),
}
