"""The distribution's registry, from outside: `docker` on a worker, HTTPS, a lost plug."""

import ssl
import time

import pytest

from machines import Machines
from playbooks import changed
from registries import (
    CONTROLLER,
    REGISTRY,
    Answer,
    ask,
    docker,
    make_image,
    play,
    secret,
)

IMAGE = "ai/proof:1"
CONVERGE = "molecule/registry/converge.yml"


def account(name: str) -> tuple[str, str]:
    """User and password of push or pull."""
    return f"t2v-{name}", secret(f"registry-{name}")


@pytest.fixture(scope="module", autouse=True)
def _published(machines: Machines) -> None:
    make_image(machines, "worker1", IMAGE)
    pushed = docker(machines, "worker1", f"push {REGISTRY}/{IMAGE}", account("push"))
    assert pushed.rc == 0, pushed.stderr


def pull(machines: Machines, who: tuple[str, str] | None) -> bool:
    """Whether worker1 gets the image anew."""
    machines("worker1").run(f"docker image rm {REGISTRY}/{IMAGE}")
    return bool(docker(machines, "worker1", f"pull {REGISTRY}/{IMAGE}", who).rc == 0)


def manifest() -> Answer:
    """The image as the registry names it."""
    return ask(f"/v2/{IMAGE.replace(':', '/manifests/')}", account("pull"))


def test_what_was_pushed_is_pulled(machines: Machines) -> None:
    assert pull(machines, account("pull"))


def test_strangers_are_refused(machines: Machines) -> None:
    assert not pull(machines, None)
    assert ask("/v2/").status == 401
    assert ask("/v2/", ("t2v-pull", "wrong")).status == 401
    assert ask("/v2/_catalog").status == 401


def test_certificate_is_the_private_ca_s() -> None:
    assert ask("/v2/", account("pull")).status == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask("/v2/", account("pull"), context=ssl.create_default_context())


def test_old_tls_is_refused() -> None:
    old = ssl.create_default_context(cafile=str(CONTROLLER / "ca/ca.crt"))
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        ask("/v2/", context=old)


def test_nothing_else_listens(machines: Machines) -> None:
    listening = machines("harbor").check_output("ss -Hltn").splitlines()
    outside = {line.split()[3] for line in listening if "127.0.0." not in line}
    assert {address.rsplit(":", 1)[1] for address in outside} == {"22", "5001", "5002"}


def test_passwords_are_nowhere_to_be_read(machines: Machines) -> None:
    for host in ("harbor", "worker1"):
        found = machines(host).run(
            f"journalctl --no-pager | grep -c -e {secret('registry-push')}"
            f" -e {secret('registry-pull')}"
        )
        # testinfra's own ssh commands are not in the journal.
        assert found.stdout.strip() == "0"


def test_power_cut_loses_nothing(unplugged: Machines) -> None:
    before = manifest()
    assert before.status == 200
    unplugged.power("off", "harbor")
    unplugged.power("on", "harbor")
    deadline = time.monotonic() + 60
    while True:
        try:
            after = manifest()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert after.headers["Docker-Content-Digest"] == before.headers["Docker-Content-Digest"]
    assert pull(unplugged, account("pull"))


def test_process_that_dies_is_started_again(machines: Machines) -> None:
    machines.ssh("harbor", "systemctl kill --signal=KILL docker-registry")
    time.sleep(4)
    assert manifest().status == 200


def test_rotated_password_is_the_only_one(machines: Machines) -> None:
    old = account("pull")
    (CONTROLLER / "secrets/registry-pull").unlink()
    assert changed(play(machines, CONVERGE, "--limit", "localhost,harbor")) > 0
    assert account("pull") != old
    assert ask("/v2/", old).status == 401
    assert ask("/v2/", account("pull")).status == 200
    assert ask("/v2/", account("push")).status == 200
    assert changed(play(machines, CONVERGE, "--limit", "localhost,harbor")) == 0


def test_configuration_that_was_not_applied_is_applied(machines: Machines) -> None:
    """As after a run that was killed between the new file and the restart."""
    machines.ssh("harbor", "rm /etc/docker/registry/config.yml.applied")
    started = "systemctl show docker-registry -p MainPID"
    before = machines.ssh("harbor", started)
    assert changed(play(machines, CONVERGE, "--limit", "localhost,harbor")) > 0
    assert machines.ssh("harbor", started) != before
