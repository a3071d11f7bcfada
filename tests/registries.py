"""The site's private registry, as its users have it: HTTPS, `docker`, and playbooks."""

import base64
import http.client
import json
import os
import shlex
import ssl
import subprocess
from dataclasses import dataclass

from testinfra.backend.base import CommandResult

from lab.settings import Paths
from machines import Machines
from playbooks import WHOLE, sentences

ADDRESS, PORT = "192.168.0.34", 5001
REGISTRY = f"{ADDRESS}:{PORT}"
CONTROLLER = Paths(os.environ["T2V_LAB"]).state / "controller"


def secret(name: str) -> str:
    """A password that the controller made."""
    return (CONTROLLER / "secrets" / name).read_text().strip()


@dataclass(frozen=True)
class Answer:
    """What the registry answered."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    path: str,
    account: tuple[str, str] | None = None,
    *,
    method: str = "GET",
    body: object = None,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Ask over TLS of the private CA alone, or of ``context``. ``account``: user, password."""
    trusted = context or ssl.create_default_context(cafile=str(CONTROLLER / "ca/ca.crt"))
    connection = http.client.HTTPSConnection(ADDRESS, PORT, timeout=30, context=trusted)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if account:
        encoded = base64.b64encode(":".join(account).encode()).decode()
        headers["Authorization"] = f"Basic {encoded}"
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    reply = connection.getresponse()
    answer = Answer(reply.status, dict(reply.getheaders()), reply.read())
    connection.close()
    return answer


def docker(
    machines: Machines, host: str, command: str, account: tuple[str, str] | None = None
) -> CommandResult:
    """Run a docker command on a host, logged in as this account or as nobody."""
    login = "true"
    if account:
        user, password = (shlex.quote(one) for one in account)
        login = f"echo {password} | docker login -u {user} --password-stdin {REGISTRY}"
    return machines(host).run(
        f"{login} >/dev/null && docker {command}; code=$?;"
        f" docker logout {REGISTRY} >/dev/null; exit $code"
    )


def make_image(machines: Machines, host: str, name: str) -> None:
    """An image of one small file, which differs from all others."""
    command = (
        f"mkdir -p /tmp/image && date +%N > /tmp/image/now && tar -C /tmp/image -c now"
        f" | docker import - {REGISTRY}/{name}"
    )
    machines(host).check_output(command)


def play(machines: Machines, playbook: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook on the scenario's machines."""
    return machines.run_playbook(playbook, *arguments, **WHOLE)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The last thing that a playbook told its reader before it stopped, having changed nothing."""
    assert done.returncode != 0, done.stdout
    found = sentences(done)
    assert found, done.stdout
    return found[-1]
