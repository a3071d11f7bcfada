"""What a hardened host lets in, refuses and does, seen from the controller and after a reboot."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import lab as laboratory
from lab.settings import REPOSITORY, Paths
from machines import Machines

HOSTS = ("nfs-server", "worker1", "prometheus")
PHRASE = "Lange-genug-2026"


@pytest.fixture(scope="module")
def askpass(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ssh gives PHRASE wherever it is asked for a password."""
    program = tmp_path_factory.mktemp("askpass") / "answer"
    program.write_text(f"#!/bin/sh\necho '{PHRASE}'\n")
    program.chmod(0o700)
    return {**os.environ, "SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}


@pytest.fixture(scope="module")
def operator(machines: Machines) -> str:
    """An account on nfs-server with a password, sudo, and no key."""
    machines.ssh(
        "nfs-server",
        "id anna >/dev/null 2>&1 || useradd --create-home --shell /bin/bash anna; "
        f"echo 'anna:{PHRASE}' | chpasswd; "
        "echo 'anna ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/anna; "
        "chmod 0440 /etc/sudoers.d/anna",
    )
    return "anna"


def ssh(
    machines: Machines,
    host: str,
    *options: str,
    account: str = "root",
    command: str = "true",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A login of the controller's own, with a connection of its own."""
    paths = Paths(os.environ["T2V_LAB"])
    line = ["ssh", *options, "-o", "ControlPath=none", "-o", "ConnectTimeout=5"]
    line += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={paths.known_hosts}"]
    line += ["-i", str(paths.private_key), f"{account}@{machines.address(host)}", command]
    return subprocess.run(
        machines.inside(line),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def playbook(host: str, topic: str, *extra: str) -> list[str]:
    """The command that runs one topic of the role again, on one host, beside this test."""
    paths = Paths(os.environ["T2V_LAB"])
    scenario = REPOSITORY / "molecule" / os.environ["MOLECULE_SCENARIO_NAME"]
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory"]
    command += ["-e", f"@{scenario / 'vars.yml'}", "-e", f"@{paths.state / 'vars.yml'}"]
    command += ["--limit", host, "--tags", f"base_{topic}", *extra]
    return [*command, str(scenario / "converge.yml")]


def run_role(
    machines: Machines, host: str, topic: str, *extra: str, **environment: str
) -> tuple[int, str]:
    """Run one topic again on one host. Returns its exit status and what it said."""
    done = subprocess.run(
        machines.inside(playbook(host, topic, *extra)),
        cwd=REPOSITORY,
        env={
            **laboratory.environment(Paths(os.environ["T2V_LAB"])),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def effective(machines: Machines, host: str) -> dict[str, str]:
    """What the running configuration of sshd comes to."""
    lines = machines.ssh(host, "sshd -T").decode().splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it becomes true within that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.5)
    return False


@pytest.mark.parametrize("host", HOSTS)
def test_a_login_by_key_works_and_nothing_else_is_offered(machines: Machines, host: str) -> None:
    assert ssh(machines, host, "-o", "BatchMode=yes").returncode == 0
    offered = ssh(machines, host, "-o", "PreferredAuthentications=none")
    assert offered.returncode == 255
    assert "Permission denied (publickey)." in offered.stderr


def test_a_right_password_is_refused(
    machines: Machines, operator: str, askpass: dict[str, str]
) -> None:
    options = ("-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1")
    tried = ssh(machines, "nfs-server", *options, account=operator, environment=askpass)
    assert tried.returncode == 255
    assert "Permission denied (publickey)." in tried.stderr


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("option", "refusal"),
    [
        ("Ciphers=aes128-cbc", "no matching cipher found"),
        ("Ciphers=chacha20-poly1305@openssh.com", "no matching cipher found"),
        ("MACs=hmac-sha1", "no matching MAC found"),
        ("MACs=hmac-sha2-256", "no matching MAC found"),
        ("KexAlgorithms=ecdh-sha2-nistp256", "no matching key exchange method found"),
        ("KexAlgorithms=diffie-hellman-group14-sha256", "no matching key exchange method found"),
        ("HostKeyAlgorithms=ecdsa-sha2-nistp256", "no matching host key type found"),
    ],
)
def test_weak_algorithms_are_refused(
    machines: Machines, host: str, option: str, refusal: str
) -> None:
    # The MAC counts with a cipher that needs one.
    cipher = () if option.startswith("Ciphers") else ("-o", "Ciphers=aes256-ctr")
    tried = ssh(machines, host, "-o", option, *cipher)
    assert tried.returncode == 255
    assert refusal in tried.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_ssh_audit_finds_no_failure(machines: Machines, host: str) -> None:
    program = shutil.which("ssh-audit") or shutil.which(
        "ssh-audit", path=str(Path(sys.executable).parent)
    )
    if not program:
        pytest.skip("ssh-audit is not installed")
    done = subprocess.run(
        machines.inside([program, "--no-colors", machines.address(host)]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "(kex) curve25519-sha256" in done.stdout
    assert "[fail]" not in done.stdout


def test_the_role_refuses_to_lock_out_an_account_that_logs_in_by_password(
    machines: Machines, operator: str, askpass: dict[str, str], tmp_path: Path
) -> None:
    """The host as it was before: passwords allowed, and Ansible comes in by one."""
    site = tmp_path / "site.yml"
    site.write_text("all: {vars: {ansible_become: true}}\n")
    early = "/etc/ssh/sshd_config.d/00-before.conf"
    ours = "/etc/ssh/sshd_config.d/00-sanchuang-t2v.conf"
    before = machines.ssh("nfs-server", f"cat {ours}")
    machines.ssh("nfs-server", f"echo PasswordAuthentication yes > {early}; systemctl reload ssh")
    try:
        status, said = run_role(
            machines,
            "nfs-server",
            "sshd",
            *("-i", str(site), "-e", f"ansible_user={operator} base_sshd_max_auth_tries=2"),
            SSH_ASKPASS=askpass["SSH_ASKPASS"],
            SSH_ASKPASS_REQUIRE="force",
            ANSIBLE_SSH_ARGS=(
                "-o ControlMaster=auto -o ControlPersist=5s -o PubkeyAuthentication=no "
                "-o PasswordAuthentication=yes -o PreferredAuthentications=password"
            ),
        )
    finally:
        machines.ssh("nfs-server", f"rm {early} && systemctl reload ssh")
    assert status != 0
    assert (
        "anna has logged in to nfs-server by password, and this run would refuse passwords: "
        "give the account a key first (playbooks/bootstrap.yml), or set base_sshd_only_keys to "
        "false." in said
    )
    assert machines.ssh("nfs-server", f"cat {ours}") == before


def test_the_role_refuses_to_shut_out_the_root_that_it_works_as(machines: Machines) -> None:
    status, said = run_role(machines, "worker1", "sshd", "-e", "base_sshd_permit_root_login=no")
    assert status != 0
    assert "Ansible logs in to worker1 as root, and base_sshd_permit_root_login is no" in said
    assert ssh(machines, "worker1").returncode == 0


def test_where_the_journal_tells_of_no_login_the_account_s_keys_are_looked_for(
    machines: Machines,
) -> None:
    """Its last lines are about others, and Ansible's connection is an old one, kept open."""
    status, said = run_role(machines, "worker1", "sshd")
    assert status == 0, said
    machines.ssh("worker1", "sleep 2; journalctl --rotate --vacuum-time=1s")
    status, said = run_role(machines, "worker1", "sshd")
    assert "TASK [base : Look for a key there]" in said, said
    assert status == 0, said


def test_a_change_keeps_open_sessions_and_is_in_force(machines: Machines) -> None:
    paths = Paths(os.environ["T2V_LAB"])
    line = ["ssh", "-i", str(paths.private_key), "-o", f"UserKnownHostsFile={paths.known_hosts}"]
    line += [f"root@{machines.address('prometheus')}", "echo in; cat"]
    with subprocess.Popen(
        machines.inside(line), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdin
        assert session.stdout
        assert session.stdout.readline() == "in\n"
        status, said = run_role(machines, "prometheus", "sshd", "-e", "base_sshd_max_auth_tries=3")
        assert status == 0, said
        session.stdin.write("still here\n")
        session.stdin.close()
        assert session.stdout.readline() == "still here\n"
    assert effective(machines, "prometheus")["maxauthtries"] == "3"
    assert machines.ssh("prometheus", "systemctl list-timers --all").count(b"rollback") == 0


def test_a_configuration_that_lets_nobody_in_is_taken_back(machines: Machines) -> None:
    status, said = run_role(
        machines,
        "worker1",
        "sshd",
        "-e",
        '{"base_sshd_options": {"DenyUsers": "root"}, "base_sshd_rollback_seconds": 10}',
    )
    assert status != 0
    assert (
        "worker1 went back to its former SSH configuration; the step that failed: Log in anew"
        in said
    )
    assert ssh(machines, "worker1").returncode == 0
    assert "denyusers" not in effective(machines, "worker1")


def test_a_host_whose_run_was_killed_lets_everybody_in_again(machines: Machines) -> None:
    """The run dies between the reload and the new login: nobody is there to take it back."""
    options = '{"base_sshd_options": {"DenyUsers": "root"}, "base_sshd_rollback_seconds": 20}'
    run = subprocess.Popen(
        machines.inside(playbook("prometheus", "sshd", "-e", options)),
        cwd=REPOSITORY,
        env=laboratory.environment(Paths(os.environ["T2V_LAB"])),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_for(lambda: ssh(machines, "prometheus").returncode != 0, 120)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert wait_for(lambda: ssh(machines, "prometheus").returncode == 0, 60)
    assert "denyusers" not in effective(machines, "prometheus")
    assert run_role(machines, "prometheus", "sshd")[0] == 0
    assert effective(machines, "prometheus")["maxauthtries"] == "4"


def settings(machines: Machines, host: str, *names: str) -> list[str]:
    """What the kernel has now."""
    return machines.ssh(host, f"sysctl --values {' '.join(names)}").decode().split()


def test_a_host_that_forwards_keeps_forwarding_and_another_stops(machines: Machines) -> None:
    """worker1 carries containers by its group; nfs-server does as soon as an engine is there."""
    names = ("net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter")
    engine = "/usr/bin/dockerd"
    for host in ("worker1", "nfs-server"):
        machines.ssh(host, "sysctl --write net.ipv4.ip_forward=1")
    assert run_role(machines, "worker1", "sysctl")[0] == 0
    assert settings(machines, "worker1", *names) == ["1", "2"]
    machines.ssh("nfs-server", f"touch {engine}")
    try:
        assert run_role(machines, "nfs-server", "sysctl")[0] == 0
        assert settings(machines, "nfs-server", *names) == ["1", "2"]
    finally:
        machines.ssh("nfs-server", f"rm {engine}")
    assert run_role(machines, "nfs-server", "sysctl")[0] == 0
    assert settings(machines, "nfs-server", *names) == ["0", "1"]


def test_settings_that_the_kernel_does_not_take_are_named(
    machines: Machines,
) -> None:
    status, said = run_role(
        machines, "worker1", "sysctl", "-e", '{"base_sysctl_extra": {"net.nowhere.at_all": 1}}'
    )
    assert status == 0, said
    assert "not in this kernel: " in said
    assert "net.nowhere.at_all" in said


def test_sudo_has_its_defaults(machines: Machines, operator: str) -> None:
    machines.ssh("nfs-server", "visudo --check")
    shown = machines.ssh("nfs-server", f"sudo --list --other-user={operator}").decode()
    assert {"use_pty", "!visiblepw", "timestamp_timeout=5"} <= set(shown.replace(",", " ").split())


@pytest.mark.parametrize("host", HOSTS)
def test_a_login_makes_files_that_others_cannot_read(machines: Machines, host: str) -> None:
    for login in ("bash --login -c", "su --login root --command"):
        assert machines.ssh(host, f"{login} umask").decode().strip() == "0027"
    assert machines.ssh(host, "su --login root --command 'ulimit -Sc'").decode().strip() == "0"
    others = machines.ssh(host, "find /etc/cron* -maxdepth 0 -perm /077").decode()
    assert others == ""


def test_a_new_account_has_a_password_that_grows_old(machines: Machines) -> None:
    shown = machines.ssh(
        "nfs-server",
        "useradd --create-home berta && chage --list berta && stat --format=mode:%a ~berta; "
        "userdel --remove berta 2>/dev/null",
    ).decode()
    ages = [line.rpartition(": ")[2] for line in shown.splitlines() if "days" in line]
    assert ages == ["1", "365", "14"]
    assert "mode:750" in shown


def test_an_audit_rule_is_where_the_daemon_reads_it(machines: Machines) -> None:
    """The kernel below belongs to the test machine: nothing is recorded in a container."""
    for host in HOSTS:
        assert b"No change" in machines.ssh(host, "augenrules --check")
        assert b"-w /etc/shadow -p wa -k identity" in machines.ssh(
            host, "cat /etc/audit/audit.rules"
        )
        assert machines.ssh(host, "systemctl --failed --no-legend") == b""


def test_unused_services_and_packages_are_gone(machines: Machines) -> None:
    assert b":5353 " not in machines.ssh("nfs-server", "ss --udp --listening --numeric")
    tried = machines.lab("ssh", "nfs-server", "systemctl start avahi-daemon", check=False)
    assert tried.returncode != 0
    assert machines.lab("ssh", "nfs-server", "command -v telnet", check=False).returncode != 0


def test_security_updates_and_no_others_come_by_themselves(machines: Machines) -> None:
    tried = machines.ssh("nfs-server", "unattended-upgrade --dry-run --debug 2>&1").decode()
    allowed = next(line for line in tried.splitlines() if line.startswith("Allowed origins are:"))
    origins = [one.strip() for one in allowed.partition(":")[2].split(", ")]
    assert origins
    assert all("-security" in origin for origin in origins)
    assert "Initial blacklist: containerd cri- docker kube" in tried
    options = machines.ssh("nfs-server", "apt-config dump").decode()
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in options
    assert 'APT::Periodic::Unattended-Upgrade "1";' in options
    shown = machines.ssh("nfs-server", "systemctl is-enabled apt-daily-upgrade.timer")
    assert shown.strip() == b"enabled"


def test_all_of_it_survives_a_reboot(unplugged: Machines) -> None:
    for host in ("nfs-server", "prometheus"):
        unplugged.power("off", host)
        unplugged.power("on", host)
        now = effective(unplugged, host)
        assert (now["passwordauthentication"], now["permitrootlogin"]) == ("no", "without-password")
        names = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.accept_redirects")
        assert settings(unplugged, host, *names) == ["1", "0"]
        assert unplugged.ssh(host, "systemctl --failed --no-legend") == b""
        assert ssh(unplugged, host, "-o", "Ciphers=aes128-cbc").returncode == 255
    tried = unplugged.lab("ssh", "nfs-server", "systemctl is-active avahi-daemon", check=False)
    assert tried.stdout.strip() == b"inactive"
