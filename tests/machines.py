"""The lab's machines in the hands of a test: a plug to pull, a shell, testinfra's questions."""

import os
import subprocess
from collections.abc import Sequence

import testinfra
from testinfra.host import Host

from lab import lab, machine, network
from lab.hosts import Site
from lab.settings import REPOSITORY, Paths


class Machines:
    """The machines of one lab, as an operator has them. ``site``: who they are."""

    def __init__(self, paths: Paths, scenario: str, site: Site) -> None:
        self._paths = paths
        self._scenario = scenario
        self._site = site

    def lab(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run ``python -m lab`` on this lab."""
        command = [".venv/bin/python", "-m", "lab", "--name", self._paths.name]
        return subprocess.run(
            [*command, "--scenario", self._scenario, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": "molecule"},
            capture_output=True,
            check=check,
            timeout=600,
        )

    def run_playbook(
        self, playbook: str, *options: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a playbook as the scenario does, whatever comes of it; all output is in ``stdout``.

        Not by ``lab playbook``, which holds the lab's lock while it is running us.
        """
        variables = [f"@molecule/{self._scenario}/vars.yml", f"@{self._paths.state}/vars.yml"]
        command = [".venv/bin/ansible-playbook", "-i", "inventory", playbook]
        command += [part for file in variables for part in ("-e", file)]
        return subprocess.run(
            self.inside([*command, *options]),
            cwd=REPOSITORY,
            env={**lab.environment(self._paths), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1200,
        )

    def play(self, playbook: str, *options: str) -> tuple[int, str]:
        """The same. Returns status and output, its folded lines made one."""
        done = self.run_playbook(playbook, *options)
        return done.returncode, " ".join(done.stdout.split())

    def power(self, state: str, host: str) -> None:
        """Pull a machine's plug (``off``), or put it back and wait for ssh (``on``)."""
        self.lab("power", state, host)

    def power_all_on(self) -> None:
        """Put every plug back."""
        for host in self._site.hosts:
            self.power("on", host.name)

    def ssh(self, host: str, command: str) -> bytes:
        """What the command prints on the host. Raises CalledProcessError where it fails."""
        return self.lab("ssh", host, command).stdout

    def address(self, host: str) -> str:
        """The host's address in inventory/."""
        return self._site.host(host).address

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command, to be run by this machine in the lab's network."""
        return network.inside(self._paths, command)

    def in_network_of(self, host: str, command: Sequence[str]) -> list[str]:
        """The command of this machine, to be run as if it were on ``host``: in its network."""
        pid = machine.leader(self._paths, host)
        return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command]

    def __call__(self, host: str) -> Host:
        """Testinfra's view of the host, over ssh with its host key checked."""
        trust = f"-o UserKnownHostsFile={self._paths.known_hosts} -o GlobalKnownHostsFile=/dev/null"
        control = (
            f"-o ControlMaster=auto -o ControlPersist=30s -o ControlPath={self._paths.run}/ti-%C"
        )
        return testinfra.get_host(
            f"ssh://root@{self.address(host)}",
            ssh_identity_file=str(self._paths.private_key),
            ssh_extra_args=f"{trust} -o StrictHostKeyChecking=yes -o LogLevel=ERROR {control}",
        )
