"""ssh_trust: from passwords to keys, on controllers that know nothing but the passwords.

Each test has a controller of its own (inventory, keys, known hosts) beside the lab's.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab.settings import REPOSITORY
from machines import Machines

PASSWORD = "correct-horse-7431"
PASSPHRASE = "battery staple 2096"
PORT = 2222


@dataclass(frozen=True)
class Run:
    """One run of ansible-playbook: what it printed, and how it ended."""

    status: int
    output: str

    def sentence(self, host: str) -> str:
        """What the run says last about a host that it gave up."""
        *_, last = self.output.split(f"fatal: [{host}]: FAILED! => ")
        assert last != self.output, self.output
        result, _ = json.JSONDecoder().raw_decode(last)
        return " ".join(str(result["msg"]).split())

    def changed(self, host: str) -> int:
        """Of the recap."""
        found = re.search(rf"^{host} +: ok=\d+ +changed=(\d+)", self.output, re.M)
        assert found, self.output
        return int(found.group(1))


class Controller:
    """A directory with an inventory, and in ``ssh`` what the role writes on a controller."""

    def __init__(self, place: Path, hosts: dict[str, dict[str, object]]) -> None:
        self.place = place
        self.key = place / "ssh/id_ed25519"
        self.rsa_key = place / "ssh/id_rsa"
        self.known_hosts = place / "ssh/known_hosts"
        variables = {
            "ansible_user": "root",
            "ssh_trust_key": str(self.key),
            "ssh_trust_rsa_key": str(self.rsa_key),
            "ssh_trust_known_hosts": str(self.known_hosts),
            "ansible_ssh_private_key_file": "{{ ssh_trust_key }}",
            "ansible_ssh_common_args": "-o UserKnownHostsFile={{ ssh_trust_known_hosts }}",
        }
        place.mkdir(exist_ok=True)
        inventory = {"all": {"vars": variables, "hosts": hosts}}
        (place / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def start(
        self, program: str, *arguments: str, password: str | None, **settings: str
    ) -> "subprocess.Popen[str]":
        """Start one of ansible's programs as an operator would, with ``--ask-pass`` or without."""
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "SSH_"))
        }
        environment |= {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.place / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "LC_ALL": "C.UTF-8",
        }
        process = subprocess.Popen(
            [
                f"{REPOSITORY}/.venv/bin/{program}",
                *(["--ask-pass"] if password else []),
                *["-i", str(self.place / "hosts.yml"), *arguments],
            ],
            cwd=REPOSITORY,
            env=environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Without a terminal the password is read from the standard input.
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(f"{password}\n" if password else "")
        process.stdin.close()
        process.stdin = None
        return process

    def run(
        self, program: str, *arguments: str, password: str | None = None, **settings: str
    ) -> Run:
        process = self.start(program, *arguments, password=password, **settings)
        output, _ = process.communicate(timeout=300)
        return Run(process.returncode, output)

    def bootstrap(self, *arguments: str, password: str | None = None, **settings: str) -> Run:
        return self.run(
            "ansible-playbook",
            "playbooks/bootstrap.yml",
            *arguments,
            password=password,
            **settings,
        )

    def killed(self, *arguments: str, when: Callable[[], bool]) -> None:
        """Run the playbook with the password until ``when``, then kill all of it at once."""
        process = self.start(
            "ansible-playbook", "playbooks/bootstrap.yml", *arguments, password=PASSWORD
        )
        while not when():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def files(self) -> dict[str, bytes]:
        """What lies in ``ssh``."""
        return {path.name: path.read_bytes() for path in (self.place / "ssh").glob("*")}

    def opens(self, address: str, key: Path, *, user: str = "root", port: int = 22) -> bool:
        """Whether the key alone opens the host, checked against the controller's known hosts."""
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "PreferredAuthentications": "publickey",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "ControlPath": "none",
        }
        command = ["ssh", "-F", "/dev/null", "-n", "-p", str(port), "-i", str(key), "-l", user]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        done = subprocess.run([*command, address, "true"], capture_output=True, timeout=60)
        return done.returncode == 0


def make_key(path: Path, kind: str = "ed25519") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "mine", "-f", str(path)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module", autouse=True)
def passwords(machines: Machines) -> None:
    """Let root and an account with sudo in with a password, as freshly installed hosts do."""
    allow = "PermitRootLogin yes\\nPasswordAuthentication yes\\n"
    for host in ("worker1", "master"):
        machines.ssh(
            host,
            f"printf '{allow}' > /etc/ssh/sshd_config.d/00-passwords.conf;"
            "id operator2 >/dev/null 2>&1 || useradd -m -s /bin/bash operator2;"
            f"printf 'root:{PASSWORD}\\noperator2:{PASSWORD}\\n' | chpasswd;"
            "echo 'operator2 ALL=(ALL) ALL' > /etc/sudoers.d/operator2;"
            "systemctl restart ssh",
        )


@pytest.fixture
def lab_keys(machines: Machines) -> Iterator[Callable[[str], str]]:
    """Give the authorized keys of root; after the test they are what they were."""

    def read(host: str) -> str:
        return machines.ssh(host, "cat /root/.ssh/authorized_keys").decode()

    for host in ("worker1", "master"):
        machines.ssh(host, "cp -p /root/.ssh/authorized_keys /root/kept")
    yield read
    for host in ("worker1", "master"):
        machines.ssh(host, "mv /root/kept /root/.ssh/authorized_keys")


@pytest.fixture
def controller(
    machines: Machines, tmp_path: Path, lab_keys: Callable[[str], str]
) -> Callable[..., Controller]:
    """Make a controller of these hosts, by name; further arguments are variables of each."""

    def make(*hosts: str, **variables: object) -> Controller:
        return Controller(
            tmp_path / "controller",
            {host: {"ansible_host": machines.address(host), **variables} for host in hosts},
        )

    return make


@pytest.fixture
def second_sshd(machines: Machines) -> Iterator[Callable[..., str]]:
    """Run another sshd on a host at port 2222, with a host key of its own made anew each time.

    Gives the key's fingerprint. Takes further options of sshd.
    """
    started: set[str] = set()

    def start(host: str, *options: str) -> str:
        started.add(host)
        words = " ".join(f"-o {option}" for option in options)
        return (
            machines.ssh(
                host,
                "systemctl stop sshd-second 2>/dev/null; rm -f /root/second*;"
                "ssh-keygen -q -t ed25519 -N '' -f /root/second;"
                f"systemd-run -q --unit=sshd-second /usr/sbin/sshd -D -p {PORT} -h /root/second"
                f" -o PidFile=none {words};"
                f"until timeout 1 bash -c '</dev/tcp/127.0.0.1/{PORT}' 2>/dev/null;"
                " do sleep 0.1; done;"
                "ssh-keygen -lf /root/second.pub | cut -d' ' -f2",
            )
            .decode()
            .strip()
        )

    yield start
    for host in started:
        machines.ssh(host, "systemctl stop sshd-second; rm -f /root/second*")


def test_passwords_become_keys(
    machines: Machines,
    controller: Callable[..., Controller],
    lab_keys: Callable[[str], str],
) -> None:
    site = controller("worker1", "master")
    foreign = site.place / "ssh-of-another/id"
    make_key(foreign)
    mine = f'# by hand\nfrom="10.0.0.1" {foreign.with_suffix(".pub").read_text()}'
    for host in ("worker1", "master"):
        machines.ssh(host, f"cat >> /root/.ssh/authorized_keys <<'END'\n{mine}END")
    before = {host: lab_keys(host) for host in ("worker1", "master")}

    predicted = site.bootstrap("--check", password=PASSWORD)
    assert predicted.status == 0, predicted.output
    assert predicted.changed("worker1") and predicted.changed("master")
    assert not (site.place / "ssh").exists()
    assert before == {host: lab_keys(host) for host in ("worker1", "master")}

    first = site.bootstrap("-vvv", password=PASSWORD)
    assert first.status == 0, first.output
    assert PASSWORD not in first.output
    assert "PRIVATE KEY" not in first.output
    public = site.key.with_suffix(".pub").read_text().strip()
    for host in ("worker1", "master"):
        assert site.opens(machines.address(host), site.key)
        assert lab_keys(host) == f"{before[host]}{public}\n"
        for name in (host, machines.address(host)):
            lines = [
                line.split()[1:]
                for line in site.known_hosts.read_text().splitlines()
                if line.startswith(f"{name} ")
            ]
            pair = machines.ssh(host, "cat /etc/ssh/ssh_host_ed25519_key.pub").decode().split()
            assert pair[:2] in lines
    assert not site.rsa_key.exists()

    # As an operator goes on: no password, this repository's settings, nothing shared.
    pinged = site.run("ansible", "all", "-m", "ping")
    assert pinged.status == 0, pinged.output
    assert pinged.output.count('"ping": "pong"') == 2

    files = site.files()
    again = site.bootstrap()
    assert again.status == 0, again.output
    assert again.changed("worker1") == again.changed("master") == 0
    assert site.files() == files


def test_wrong_password_fails_that_host_with_one_sentence(
    machines: Machines, controller: Callable[..., Controller]
) -> None:
    each = json.dumps({"worker1": PASSWORD, "master": "wrong-4711"})
    site = controller("worker1", "master", ansible_password=f"{{{{ {each}[inventory_hostname] }}}}")
    ran = site.bootstrap("-vvv")
    assert ran.status == 2
    assert re.match(
        r"master does not let root in at 192\.168\.0\.20"
        r" \(Invalid/incorrect .*Permission denied.*\):"
        r" give the right password with --ask-pass or ansible_password, and see that its sshd"
        r" allows passwords to that account \(PasswordAuthentication, PermitRootLogin\)\.$",
        ran.sentence("master"),
    )
    assert "wrong-4711" not in ran.output
    assert PASSWORD not in ran.output
    assert site.opens(machines.address("worker1"), site.key)
    assert not site.opens(machines.address("master"), site.key)

    without = site.bootstrap("-e", "ansible_password=")
    assert "master does not let root in" in without.sentence("master")
    assert without.changed("worker1") == 0

    mended = site.bootstrap("-e", f"ansible_password={PASSWORD}")
    assert mended.status == 0, mended.output
    assert mended.changed("worker1") == 0
    assert mended.changed("master") == 1


def test_controller_without_sshpass_is_told_the_package(
    tmp_path: Path, controller: Callable[..., Controller]
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name != "sshpass":
            (programs / program.name).symlink_to(program)
    ran = controller("worker1").bootstrap(password=PASSWORD, PATH=str(programs))
    assert "install the package sshpass" in ran.sentence("worker1")


def test_changed_host_key_is_refused_until_it_is_replaced(
    machines: Machines,
    controller: Callable[..., Controller],
    second_sshd: Callable[..., str],
) -> None:
    site = controller("master", ansible_port=PORT, ssh_trust_hash_names=True)
    old = second_sshd("master")
    stranger = site.place / "stranger"
    make_key(stranger)
    other = "elsewhere " + " ".join(stranger.with_suffix(".pub").read_text().split()[:2])
    site.known_hosts.parent.mkdir()
    site.known_hosts.write_text(other)  # and no newline
    first = site.bootstrap(password=PASSWORD)
    assert first.status == 0, first.output
    assert f"{old} (ED25519)" in first.output
    assert "trusted at first contact" in first.output
    known = site.known_hosts.read_text()
    assert known.splitlines()[0] == other
    assert "[master]:2222" not in known

    new = second_sshd("master")
    ran = site.bootstrap(password=PASSWORD)
    assert ran.sentence("master") == (
        f"master at 192.168.0.20 shows the host key {new} (ED25519), and {site.known_hosts} knows"
        f" it by {old} (ED25519): another machine may be answering in its place; if you"
        " reinstalled it, compare the fingerprint on its console and run this again with"
        " -e ssh_trust_replace_host_keys=master."
    )
    assert site.known_hosts.read_text() == known
    assert "Log in" not in ran.output

    replaced = site.bootstrap("-e", "ssh_trust_replace_host_keys=master")
    assert replaced.status == 0, replaced.output
    assert f"{new} (ED25519)" in replaced.output
    assert site.opens(machines.address("master"), site.key, port=PORT)
    lines = site.known_hosts.read_text().splitlines()
    assert lines[0] == other
    assert len(lines) == 3
    assert not set(lines[1:]) & set(known.splitlines())


def test_a_new_type_of_key_does_not_make_a_known_host_trusted_anew(
    controller: Callable[..., Controller], machines: Machines, second_sshd: Callable[..., str]
) -> None:
    """A host known by RSA that shows another type alone is refused, not met for the first time."""
    site = controller("master", ansible_port=PORT)
    make_key(site.place / "was", "rsa")
    was = " ".join((site.place / "was.pub").read_text().split()[:2])
    site.known_hosts.parent.mkdir()
    site.known_hosts.write_text(f"[master]:{PORT} {was}\n")
    second_sshd("master")
    assert "shows the host key SHA256:" in site.bootstrap().sentence("master")
    assert site.known_hosts.read_text() == f"[master]:{PORT} {was}\n"


def test_fingerprints_decide(
    controller: Callable[..., Controller],
    second_sshd: Callable[..., str],
    lab_keys: Callable[[str], str],
) -> None:
    wrong = "SHA256:" + "A" * 43
    site = controller("master", ansible_port=PORT, ssh_trust_first_contact=False)
    before = lab_keys("master")
    print_ = second_sshd("master")

    unverified = site.bootstrap(password=PASSWORD)
    assert unverified.sentence("master") == (
        "master at 192.168.0.20 is not known, and ssh_trust_first_contact is false: it shows"
        f" {print_} (ED25519); compare that on the host's console and add it to"
        " ssh_trust_fingerprints."
    )
    refused = site.bootstrap(
        "-e", json.dumps({"ssh_trust_fingerprints": {"master": wrong}}), password=PASSWORD
    )
    assert refused.sentence("master") == (
        f"master at 192.168.0.20 shows the host key {print_} (ED25519), and"
        f" ssh_trust_fingerprints expects {wrong}: another machine may be answering in its place;"
        " if the fingerprint on the host's console is the one shown here, correct"
        " ssh_trust_fingerprints."
    )
    assert not (site.place / "ssh").exists()
    assert lab_keys("master") == before

    verified = site.bootstrap(
        "-e",
        json.dumps({"ssh_trust_fingerprints": {"master": [wrong, print_]}}),
        password=PASSWORD,
    )
    assert verified.status == 0, verified.output
    assert "(verified by ssh_trust_fingerprints)" in verified.output


def test_rsa_where_ed25519_is_refused_and_pairs_that_are_there_are_kept(
    machines: Machines, controller: Callable[..., Controller], second_sshd: Callable[..., str]
) -> None:
    site = controller("worker1", ansible_port=PORT)
    # Debian 12's sshd; Debian 11's has no such option.
    second_sshd("worker1", "PubkeyAcceptedAlgorithms=rsa-sha2-256,rsa-sha2-512")
    make_key(site.key)
    private, public = site.key.read_bytes(), site.key.with_suffix(".pub").read_bytes()
    site.key.with_suffix(".pub").unlink()
    first = site.bootstrap(password=PASSWORD)
    assert first.status == 0, first.output
    assert site.key.read_bytes() == private
    assert site.key.with_suffix(".pub").read_bytes() == public
    bits = subprocess.run(["ssh-keygen", "-lf", site.rsa_key], capture_output=True, check=True)
    assert bits.stdout.split()[0] == b"4096"
    address = machines.address("worker1")
    assert not site.opens(address, site.key, port=PORT)
    assert site.opens(address, site.rsa_key, port=PORT)
    again = site.bootstrap()
    assert again.status == 0, again.output
    assert again.changed("worker1") == 0


def test_passphrase_is_the_agent_s(
    machines: Machines, controller: Callable[..., Controller]
) -> None:
    site = controller("master", ssh_trust_key_passphrase=PASSPHRASE)
    ran = site.bootstrap("-vvv", password=PASSWORD)
    assert ran.sentence("master").startswith(
        f"{site.key} has a passphrase, and no ssh-agent holds the key: run `ssh-add {site.key}`"
    )
    assert PASSPHRASE not in ran.output
    empty = ["ssh-keygen", "-y", "-P", "", "-f", str(site.key)]
    assert subprocess.run(empty, capture_output=True).returncode != 0
    socket = str(site.place / "agent")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        ask = site.place / "ask"
        ask.write_text(f"#!/bin/sh\necho '{PASSPHRASE}'\n")
        ask.chmod(0o700)
        while not Path(socket).exists():
            time.sleep(0.05)
        subprocess.run(
            ["ssh-add", "-q", str(site.key)],
            env={"SSH_AUTH_SOCK": socket, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"},
            check=True,
        )
        done = site.bootstrap(password=PASSWORD, SSH_AUTH_SOCK=socket)
    finally:
        agent.terminate()
        agent.wait()
    assert done.status == 0, done.output
    assert (
        site.key.with_suffix(".pub").read_text().split()[1]
        in machines.ssh("master", "cat /root/.ssh/authorized_keys").decode()
    )


def test_host_without_python_and_a_limit(
    machines: Machines,
    controller: Callable[..., Controller],
    lab_keys: Callable[[str], str],
) -> None:
    machines.ssh(
        "worker1",
        "apt-get purge -qq -y 'python3*' 'libpython3*' >/dev/null 2>&1; ! command -v python3",
    )
    site = controller("worker1", "master")
    before = lab_keys("master")
    refused = site.bootstrap(
        "--limit", "worker1", "-e", "ssh_trust_install_python=false", password=PASSWORD
    )
    assert refused.sentence("worker1").startswith("worker1 has no Python, which Ansible needs:")
    ran = site.bootstrap("--limit", "worker1", password=PASSWORD)
    assert ran.status == 0, ran.output
    assert site.run("ansible", "worker1", "-m", "ping").status == 0
    assert lab_keys("master") == before


def test_account_with_sudo_and_root(
    machines: Machines, controller: Callable[..., Controller]
) -> None:
    site = controller(
        "master", ansible_user="operator2", ansible_become_password=PASSWORD, ssh_trust_root=True
    )
    ran = site.bootstrap(password=PASSWORD)
    assert ran.status == 0, ran.output
    address = machines.address("master")
    assert site.opens(address, site.key, user="operator2")
    assert site.opens(address, site.key)
    owner = machines.ssh("master", "stat -c '%U %a' /home/operator2/.ssh/authorized_keys")
    assert owner.decode().strip() == "operator2 600"
    assert site.bootstrap().changed("master") == 0


def test_killed_run_goes_on(machines: Machines, controller: Callable[..., Controller]) -> None:
    site = controller("worker1", "master")
    site.killed(when=site.known_hosts.is_file)
    assert not site.opens(machines.address("worker1"), site.key)
    again = site.bootstrap(password=PASSWORD)
    assert again.status == 0, again.output
    assert all(site.opens(machines.address(host), site.key) for host in ("worker1", "master"))


def test_rotation_locks_nobody_out(
    machines: Machines,
    controller: Callable[..., Controller],
    second_sshd: Callable[..., str],
    lab_keys: Callable[[str], str],
) -> None:
    site = controller("worker1", "master", ansible_port=PORT)
    second_sshd("worker1")
    second_sshd("master")
    assert site.bootstrap(password=PASSWORD).status == 0
    old = site.place / "old"
    shutil.copy2(site.key, old)
    old_public = site.key.with_suffix(".pub").read_text()
    new = site.key.with_suffix(".new")

    def opens(key: Path) -> list[bool]:
        return [
            site.opens(machines.address(host), key, port=PORT) for host in ("worker1", "master")
        ]

    some = site.bootstrap("-e", "ssh_trust_rotate=true", "--limit", "worker1")
    assert some.sentence("worker1") == (
        "ssh_trust_rotate needs every host of the inventory, and this run leaves out master: run"
        " it without --limit."
    )

    # One host does not take part: the new key is let in, the old one stays.
    machines.ssh("master", "systemctl kill -s STOP sshd-second")
    part = site.bootstrap("-e", "ssh_trust_rotate=true", "-e", "ssh_trust_timeout=2")
    machines.ssh("master", "systemctl kill -s CONT sshd-second")
    assert part.sentence("worker1").startswith("The old key stays, for master did not let the new")
    assert opens(old) == [True, True]
    assert opens(new) == [True, False]
    assert site.key.read_bytes() == old.read_bytes()

    # With both of them the same command goes on: the same new key, and the old one is closed.
    kept = new.read_bytes()
    whole = site.bootstrap("-e", "ssh_trust_rotate=true")
    assert whole.status == 0, whole.output
    assert site.key.read_bytes() == kept
    assert opens(site.key) == [True, True]
    assert opens(old) == [False, False]
    for host in ("worker1", "master"):
        assert old_public.split()[1] not in lab_keys(host)
    names = sorted(re.sub(r"-\d{8}T\d{6}Z", "-time", name) for name in site.files())
    assert names == [
        "id_ed25519",
        "id_ed25519.pub",
        "id_ed25519.retired-time",
        "id_ed25519.retired-time.pub",
        "known_hosts",
    ]

    # As if killed while the new key was put in its place: any run finishes it.
    for retired in sorted((site.place / "ssh").glob("*.retired-*")):
        retired.rename(re.sub(r"retired-\w+", "old", str(retired)))
    site.key.with_suffix(".pub").rename(f"{new}.pub")
    for host in ("worker1", "master"):
        machines.ssh(host, f"cat >> /root/.ssh/authorized_keys <<'END'\n{old_public}END")
    assert opens(old) == [True, True]
    finished = site.bootstrap()
    assert finished.status == 0, finished.output
    assert opens(site.key) == [True, True]
    assert opens(old) == [False, False]
    assert not new.exists() and not site.key.with_suffix(".old").exists()
