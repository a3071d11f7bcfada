"""The role base, seen from outside: network and its way back, time, kernel, limits, journal.

worker1's interface is run by systemd-networkd, nfs-server's by NetworkManager; prometheus has
Python 2.7 alone (Debian 11, systemd-networkd). Not here, because a container has no part in
them: a clock that is really set, swap, kernel modules, SELinux.
"""

import configparser
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from lab.lab import environment
from lab.settings import REPOSITORY, Paths
from machines import Machines
from playbooks import by_task

# What a shell starts in the background ignores Ctrl-C, and so would the playbooks started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

HOSTS = {"worker1": "192.168.0.121", "nfs-server": "192.168.0.136", "prometheus": "192.168.0.133"}
GATEWAY = "192.168.0.2"
# What a change of the network may touch.
FILES = "/etc/systemd/network /etc/NetworkManager/system-connections /etc/netplan /etc/network"


def command(machines: Machines, playbook: str, *options: str) -> list[str]:
    """Ansible-playbook as the scenario runs it. Not by ``lab playbook``: that is running us."""
    state = Paths(os.environ["T2V_LAB"]).state
    program = [".venv/bin/ansible-playbook", "-i", "inventory", f"molecule/base/{playbook}"]
    variables = ["-e", "@molecule/base/vars.yml", "-e", f"@{state}/vars.yml"]
    return machines.inside([*program, *variables, *options])


def start(machines: Machines, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """The same, in a process group of its own and with these in its environment."""
    return subprocess.Popen(
        command(machines, *arguments),
        cwd=REPOSITORY,
        env={**environment(Paths(os.environ["T2V_LAB"])), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def play(machines: Machines, *arguments: str) -> tuple[int, str]:
    """Exit status and output, its folded lines made one."""
    process = start(machines, *arguments)
    output = process.communicate(timeout=400)[0]
    return process.returncode, " ".join(output.split())


def network(machines: Machines, *hosts: str, **variables: object) -> tuple[int, str]:
    """Run the role's part for the network, with these variables over the others."""
    limit = ",".join(hosts)
    options = ("--tags", "base_network", "-l", limit, "-e", json.dumps(variables))
    return play(machines, "converge.yml", *options)


def each(addresses: dict[str, str]) -> str:
    """An expression that gives each host its own."""
    return f"{{{{ {addresses}[inventory_hostname] }}}}"


def answers(machines: Machines, address: str) -> bool:
    """Whether a machine listens for ssh at the address."""
    probe = ["timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/22"]
    return subprocess.run(machines.inside(probe), check=False, capture_output=True).returncode == 0


def wait(until: Callable[[], bool], seconds: float) -> float:
    """Seconds that it took. Fails after that many."""
    started = time.monotonic()
    while not until():
        assert time.monotonic() - started < seconds, f"not within {seconds} seconds"
        time.sleep(0.5)
    return time.monotonic() - started


def unplug(machines: Machines, host: str) -> None:
    """Pull the plug and the cable.

    A connection to an address that the machine had left holds its network in our kernel,
    and the cable with it, long after the machine is gone.
    """
    machines.power("off", host)
    cable = machines.inside(["ip", "link", "del", f"vb-{host}"])
    subprocess.run(cable, check=False, capture_output=True)


def state(machines: Machines, host: str) -> str:
    """The files of the network and what the kernel has of it."""
    files = f"find {FILES} -type f 2>/dev/null | sort | xargs -r sha256sum"
    shown = "ip -4 -o address show dev ens33; ip -4 route show default"
    return machines.ssh(host, f"{files}; {shown}").decode()


def test_an_address_that_is_static_already_is_left_alone(machines: Machines) -> None:
    for host in HOSTS:
        assert "sanchuang" not in machines.ssh(host, f"ls -R {FILES} 2>/dev/null; true").decode()
        assert f"{machines.address(host)}/24" in state(machines, host)


def test_a_wrong_gateway_is_refused_and_the_host_is_as_it_was(machines: Machines) -> None:
    before = {host: state(machines, host) for host in HOSTS}
    status, output = network(
        machines, *HOSTS, base_gateway="192.168.0.77", base_network_rollback_seconds=60
    )
    assert status != 0
    for host in HOSTS:
        address = machines.address(host)
        assert (
            f"The network of {host} was not changed to {address}/24 with the gateway 192.168.0.77: "
            "the gateway 192.168.0.77 does not answer. The host has gone back to the network that "
            f"it had and answers at {address}"
        ) in output
        assert state(machines, host) == before[host]
        assert machines(host).run("systemctl is-enabled sanchuang-network-rollback.timer").failed


def test_what_cannot_work_is_refused_before_anything_is_touched(machines: Machines) -> None:
    before = {host: state(machines, host) for host in HOSTS}
    _, output = network(
        machines,
        *HOSTS,
        base_gateway=each({"worker1": "10.0.0.1", "nfs-server": GATEWAY, "prometheus": GATEWAY}),
        base_address=each({**HOSTS, "nfs-server": machines.address("worker1")}),
        base_interface=each({"worker1": "ens33", "nfs-server": "ens33", "prometheus": "eth7"}),
    )
    assert "both must be inside of 192.168.0.0/24 and differ" in output
    assert "Another machine answers at 192.168.0.21, the new address of nfs-server" in output
    assert "prometheus has no interface eth7, it has ens33 lo" in output
    assert output.count("failed=1") == len(HOSTS)
    assert {host: state(machines, host) for host in HOSTS} == before


def test_hosts_move_to_other_addresses_and_back_with_ssh_kept(machines: Machines) -> None:
    home = {host: machines.address(host) for host in HOSTS}
    status, output = network(machines, *HOSTS, base_address=each(HOSTS))
    assert status == 0, output
    for host in HOSTS:
        assert answers(machines, HOSTS[host])
        assert not answers(machines, home[host])
    status, output = network(
        machines,
        *HOSTS,
        ansible_host=each(HOSTS),
        base_address=each(home),
        # What is known of the hosts is known under their inventory's names.
        ansible_ssh_extra_args="-o HostKeyAlias={{ inventory_hostname }}",
    )
    assert status == 0, output
    for host in HOSTS:
        assert not answers(machines, HOSTS[host])
        shown = state(machines, host)
        assert f"{home[host]}/24" in shown
        assert shown.count(" inet ") == 1
        assert f"default via {GATEWAY} dev ens33" in shown
    status, output = network(machines, *HOSTS)
    assert status == 0
    assert output.count("changed=0") == len(HOSTS)


def test_a_controller_that_dies_in_mid_change_leaves_a_host_that_goes_back(
    machines: Machines,
) -> None:
    before = state(machines, "worker1")
    options = {"base_address": HOSTS["worker1"], "base_network_rollback_seconds": 20}
    process = start(
        machines, "converge.yml", "--tags=base_network", "-lworker1", "-e", json.dumps(options)
    )
    wait(lambda: answers(machines, HOSTS["worker1"]), 120)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not answers(machines, machines.address("worker1"))
    took = wait(lambda: answers(machines, machines.address("worker1")), 60)
    print(f"worker1 went back {took:.0f} s after the controller's death")
    assert state(machines, "worker1") == before
    assert network(machines, "worker1")[0] == 0


def test_a_host_that_loses_power_in_mid_change_boots_and_goes_back(unplugged: Machines) -> None:
    before = state(unplugged, "nfs-server")
    options = {"base_address": HOSTS["nfs-server"], "base_network_rollback_seconds": 20}
    process = start(
        unplugged, "converge.yml", "--tags=base_network", "-lnfs-server", "-e", json.dumps(options)
    )
    wait(lambda: answers(unplugged, HOSTS["nfs-server"]), 120)
    unplug(unplugged, "nfs-server")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unplugged.power("on", "nfs-server")  # waits for the address of the inventory
    assert state(unplugged, "nfs-server") == before


def test_a_host_asks_the_configured_servers_for_the_time(machines: Machines) -> None:
    server, client = machines("nfs-server"), machines("worker1")
    server.check_output(
        "printf 'local stratum 8\\nallow\\npidfile /run/t.pid\\ncmdport 0\\nbindcmdaddress /\\n'"
        " > /root/t.conf && systemd-run -q --unit=time-server chronyd -x -d -f /root/t.conf"
    )
    try:
        asked = client.run("chronyd -Q -t 20 -f /etc/chrony/chrony.conf")
    finally:
        server.check_output("systemctl stop time-server")
    assert "System clock wrong by" in asked.stdout + asked.stderr
    # The clock is the host's of all these machines.
    assert client.run("systemctl is-active chrony").stdout.strip() == "inactive"
    assert client.run("systemctl is-enabled chrony").stdout.strip() == "disabled"


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_have_the_time_zone_and_each_other_s_names(machines: Machines, host: str) -> None:
    found = machines(host)
    assert found.check_output("date +%Z") == "CST"
    assert found.check_output("hostname") == host
    assert "192.168.0.34" in found.check_output("getent hosts harbor")


def test_a_cluster_s_node_forwards_packets_and_others_do_not_change(machines: Machines) -> None:
    """worker1 is one, nfs-server is not."""
    node = machines("worker1")
    for key, value in {
        "net.bridge.bridge-nf-call-iptables": "1",
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all.rp_filter": "2",
    }.items():
        assert node.check_output(f"sysctl -n {key}") == value, key
    assert machines("nfs-server").check_output("sysctl -n net.ipv4.conf.all.rp_filter") != "2"


@pytest.mark.parametrize("host", HOSTS)
def test_logins_and_services_have_the_limit(machines: Machines, host: str) -> None:
    wanted = ["4096", "8192"]
    assert machines.ssh(host, "ulimit -Sn; ulimit -Hn").decode().split() == wanted
    service = "systemd-run -q --wait --pipe sh -c 'ulimit -Sn; ulimit -Hn'"
    assert machines.ssh(host, service).decode().split() == wanted


@pytest.mark.parametrize("host", ["worker1", "prometheus"])
def test_the_journal_is_bounded_and_a_chatterbox_is_cut_off(machines: Machines, host: str) -> None:
    found = machines(host)
    started = found.check_output("journalctl -b -o cat -u systemd-journald")
    assert "max 200.0M" in [line for line in started.splitlines() if "max " in line][-1]
    unit = f"chatterbox-{time.time_ns()}"
    found.check_output(f"systemd-run -q --wait --unit={unit} seq 3000")
    found.check_output("journalctl --sync")
    lines = int(found.check_output(f"journalctl -o cat -u {unit} | wc -l"))
    assert 400 < lines < 2900


def test_journal_and_kernel_settings_survive_a_power_failure(unplugged: Machines) -> None:
    unplugged.ssh("worker1", "logger -t proof before-the-failure && journalctl --sync")
    unplug(unplugged, "worker1")
    unplugged.power("on", "worker1")
    found = unplugged("worker1")
    assert "before-the-failure" in found.check_output("journalctl -b -1 -t proof -o cat")
    assert found.check_output("sysctl -n net.ipv4.conf.all.rp_filter") == "2"
    assert found.check_output("date +%Z") == "CST"


def test_a_debian_mirror_is_the_only_server_that_apt_asks(machines: Machines) -> None:
    status, output = play(
        machines,
        "converge.yml",
        "--tags=base_repositories",
        "-lworker1",
        "-e",
        "base_repository_mirror=http://deb.debian.org/",
    )
    assert status == 0, output
    sites = machines("worker1").check_output("apt-get indextargets --format '$(SITE)'")
    assert {site.split("/")[2] for site in sites.split()} == {"deb.debian.org"}


# As the release packages write them, shortened to what differs.
CENTOS = {
    "7": """[base]
name=CentOS-$releasever - Base
mirrorlist=http://mirrorlist.centos.org/?release=$releasever&arch=$basearch&repo=os&infra=$infra
#baseurl=http://mirror.centos.org/centos/$releasever/os/$basearch/
gpgcheck=1
""",
    "8": """[base]
name=CentOS Linux $releasever - BaseOS
mirrorlist=http://mirrorlist.centos.org/?release=$releasever&arch=$basearch&repo=BaseOS&infra=$infra
#baseurl=http://mirror.centos.org/$contentdir/$releasever/BaseOS/$basearch/os/
gpgcheck=1
""",
}
VAULT = """[base]
name=CentOS-7.0.1406 - Base
baseurl=http://vault.centos.org/7.0.1406/os/$basearch/
enabled=0
"""


def test_centos_repositories_point_at_the_vault(machines: Machines) -> None:
    print("stand-in: CentOS' repository files on a Debian host; no yum reads them here")
    host = machines("worker1")
    for major, base in CENTOS.items():
        host.check_output(f"rm -rf /root/yum{major} && mkdir /root/yum{major}")
        for name, content in (("Base", base), ("Vault", VAULT)):
            host.check_output(f"printf %s '{content}' > /root/yum{major}/CentOS-{name}.repo")
    for changed in ("changed=4", "changed=0"):
        status, output = play(machines, "centos.yml")
        assert status == 0, output
        assert changed in output
    for file, address in {
        "yum7/CentOS-Base": "https://vault.centos.org/7.9.2009/os/$basearch/",
        "yum8/CentOS-Base": "https://vault.centos.org/8.5.2111/BaseOS/$basearch/os/",
        "yum7/CentOS-Vault": "http://vault.centos.org/7.0.1406/os/$basearch/",
    }.items():
        found = configparser.RawConfigParser()
        found.read_string(host.check_output(f"cat /root/{file}.repo"))
        assert found["base"]["baseurl"] == address
        assert "mirrorlist" not in found["base"]


def test_ansible_manages_a_host_that_has_python_27_alone(machines: Machines) -> None:
    found = machines("prometheus").check_output("ls /usr/bin | grep '^python'")
    assert found.split() == ["python2.7"]


# --- the strategy that all of this ran with


def strategy(machines: Machines, **settings: str) -> str:
    """What a playbook said with these settings."""
    process = start(machines, "strategy.yml", **settings)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


def test_threads_say_what_processes_say(machines: Machines) -> None:
    """Python 2.7 among the hosts: the same results, in the same words as Ansible's own."""
    runs = {
        "threads": strategy(machines),
        "processes": strategy(machines, T2V_THREADS="0"),
        # nobody's own directory is none, which Ansible itself warns of.
        "ansible": strategy(machines, ANSIBLE_STRATEGY="linear", ANSIBLE_REMOTE_TMP="/tmp"),
    }
    parents = {name: re.findall(r"parent (\d+) of", said) for name, said in runs.items()}
    assert [len(found) for found in parents.values()] == [3, 3, 3], parents
    # One process did it for all three hosts, or one for each.
    assert {name: len(set(found)) for name, found in parents.items()} == {
        "threads": 1,
        "processes": 3,
        "ansible": 3,
    }
    attempts = [sorted(re.findall("FAILED - RETRYING: .*", said)) for said in runs.values()]
    assert len(attempts[0]) == 6
    assert attempts[0] == attempts[1] == attempts[2]
    # With Mitogen a failure tells of the Python too.
    python = r"^ +ansible_facts:\n +discovered_interpreter_python: .*\n"
    said = {
        name: by_task(re.sub(python, "", re.sub(r"parent \d+", "parent", one), flags=re.M))
        for name, one in runs.items()
    }
    assert said["threads"] == said["processes"] == said["ansible"]
    assert runs["threads"].count("msg: reached") == runs["threads"].count("msg: found") == 3


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["ctrl-c", "kill"])
def test_an_interrupt_ends_threads_too(
    machines: Machines, send: Callable[[int, int], None]
) -> None:
    """Ctrl-C, which ends the connections too, and a signal to ansible-playbook alone."""
    process = start(machines, "strategy.yml", "-e", "seconds=300")
    running = "until pgrep -fx 'sleep 300'; do sleep 0.2; done"
    said = ""
    try:
        machines.ssh("worker1", f"timeout 90 sh -c {shlex.quote(running)}")
        send(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        if not said:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            print(process.communicate()[0])
        machines.ssh("worker1", "pkill -fx 'sleep 300' || true")
    assert process.returncode != 0
    assert "Traceback" not in said
