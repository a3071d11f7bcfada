"""Harbor, from outside: `docker` on a worker, HTTPS, its API, a lost plug, rotated passwords.

STAND-IN: the installer and what its containers do (molecule/harbor/stand_in/README.md), as
Harbor itself cannot be had here. Docker, Docker Compose 2.40.3, the registry's program, TLS
and systemd are real.
"""

import hashlib
import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest

from machines import Machines
from playbooks import announce, changed
from registries import (
    CONTROLLER,
    REGISTRY,
    ask,
    docker,
    make_image,
    play,
    secret,
    sentence,
)

IMAGE = "ai/proof:1"
ROLE = "molecule/harbor/role.yml"
CONTAINERS = ["harbor-core", "harbor-log", "nginx", "registry"]
SECRETS = CONTROLLER / "secrets"
COMPOSE = "/opt/harbor/docker-compose.yml"
PREPARED = f"stat -c %Y.%i {COMPOSE}"


@pytest.fixture(scope="module", autouse=True)
def _announcement(request: pytest.FixtureRequest) -> None:
    """The output says what stood in for what."""
    announce(
        request,
        "STAND-IN: Harbor's offline installer, prepare and API (molecule/harbor/stand_in);"
        " no real Harbor ran",
    )


@pytest.fixture(scope="module", autouse=True)
def _published(machines: Machines) -> None:
    make_image(machines, "worker1", IMAGE)
    pushed = docker(machines, "worker1", f"push {REGISTRY}/{IMAGE}", robot("push"))
    assert pushed.rc == 0, pushed.stderr


def robot(name: str) -> tuple[str, str]:
    """User and password of push or pull."""
    return f"robot$t2v-{name}", secret(f"registry-{name}")


def admin() -> tuple[str, str]:
    """The administrator."""
    return "admin", secret("harbor-admin")


def pull(machines: Machines, who: tuple[str, str] | None, host: str = "worker1") -> bool:
    """Whether the host gets the image anew."""
    machines(host).run(f"docker image rm {REGISTRY}/{IMAGE}")
    return bool(docker(machines, host, f"pull {REGISTRY}/{IMAGE}", who).rc == 0)


def running(machines: Machines) -> list[str]:
    """Harbor's containers that run."""
    shown = machines("harbor").check_output("docker ps --format '{{.Names}}'")
    return sorted(shown.split())


def wait_until_healthy(seconds: float = 90) -> None:
    """Until Harbor says that all of it is well."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            health = json.loads(ask("/api/v2.0/health").body)
            if health["status"] == "healthy":
                return
        except OSError as error:
            health = error
        assert time.monotonic() < deadline, health
        time.sleep(0.5)


def robots() -> dict[str, dict[str, Any]]:
    """The robot accounts, by name."""
    return {one["name"]: one for one in json.loads(ask("/api/v2.0/robots", admin()).body)}


def rights() -> dict[str, set[str]]:
    """What the robot accounts may do."""
    return {
        name: {
            f"{scope['namespace']} {access['resource']} {access['action']}"
            for scope in one["permissions"]
            for access in scope["access"]
        }
        for name, one in robots().items()
    }


RIGHTS = {
    "robot$t2v-push": {"ai repository pull", "ai repository push"},
    "robot$t2v-pull": {"ai repository pull"},
}


# --- who may do what


def test_what_was_pushed_is_pulled(machines: Machines) -> None:
    assert pull(machines, robot("pull"), "worker1")
    assert pull(machines, robot("pull"), "worker2")


def test_pull_account_cannot_push(machines: Machines) -> None:
    make_image(machines, "worker1", "ai/other:1")
    refused = docker(machines, "worker1", f"push {REGISTRY}/ai/other:1", robot("pull"))
    assert refused.rc != 0
    assert "unauthorized to access repository: ai/other, action: push" in refused.stderr
    assert docker(machines, "worker1", f"push {REGISTRY}/ai/other:1", robot("push")).rc == 0


def test_push_account_has_one_project_alone(machines: Machines) -> None:
    make_image(machines, "worker1", "library/other:1")
    assert docker(machines, "worker1", f"push {REGISTRY}/library/other:1", robot("push")).rc != 0


def test_strangers_are_refused(machines: Machines) -> None:
    assert not pull(machines, None)
    assert ask("/v2/").status == 401
    assert ask("/v2/ai/proof/manifests/1").status == 401
    assert ask("/v2/", ("robot$t2v-pull", "wrong")).status == 401
    assert json.loads(ask("/api/v2.0/projects/ai", admin()).body)["metadata"]["public"] == "false"


def test_robots_have_their_rights_and_no_end() -> None:
    assert rights() == RIGHTS
    assert {one["expires_at"] for one in robots().values()} == {-1}
    assert ask("/api/v2.0/robots", robot("push")).status == 403


def test_certificate_is_the_private_ca_s() -> None:
    assert ask("/v2/", robot("pull")).status == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        ask("/v2/", robot("pull"), context=ssl.create_default_context())


def test_nothing_else_listens(machines: Machines) -> None:
    listening = machines("harbor").check_output("ss -Hltn").splitlines()
    outside = {line.split()[3] for line in listening if "127.0.0." not in line}
    assert {address.rsplit(":", 1)[1] for address in outside} == {"22", "5001"}


def test_settings_with_passwords_are_root_s_alone(machines: Machines) -> None:
    paths = "/opt/harbor /opt/harbor/harbor.yml /opt/harbor/tls/harbor.key"
    assert machines.ssh("harbor", f"stat -c %a {paths}").split() == [b"700", b"600", b"600"]


# --- what may not happen


def test_install_sh_never_ran(machines: Machines) -> None:
    found = machines.ssh("harbor", "cd /opt/harbor && ls install.sh*")
    assert found.split() == [b"install.sh"]


def test_images_are_loaded_again_when_one_is_gone_and_prepare_is_left_alone(
    machines: Machines,
) -> None:
    before = machines.ssh("harbor", PREPARED)
    machines.ssh("harbor", "docker image rm goharbor/prepare:v2.15.2")
    # The archive was loaded, and what it held written down; nothing was prepared or restarted.
    assert changed(play(machines, ROLE)) == 1
    assert machines.ssh("harbor", PREPARED) == before


def test_secrets_show_neither_in_the_output_nor_among_processes_nor_in_the_journal(
    machines: Machines,
) -> None:
    """Of a run that sets every one of them anew, at its most talkative."""
    for name in ("registry-push", "registry-pull"):
        (SECRETS / name).unlink()
    machines.ssh("harbor", "rm /opt/harbor/.sanchuang-applied")
    watch = "while sleep 0.2; do ps -eww -o args; done > /tmp/processes 2>&1"
    machines.ssh("harbor", f"systemd-run --quiet --unit=watch sh -c '{watch}'")
    done = play(machines, ROLE, "-vvv", "--diff")
    machines.ssh("harbor", "systemctl stop watch")
    assert changed(done) > 0
    known = [path.read_text().strip() for path in SECRETS.iterdir()]
    assert len(known) >= 4
    host = machines("harbor")
    journal = host.check_output("journalctl --no-pager")
    processes = host.check_output("sort -u /tmp/processes")
    assert "prepare" in processes
    for one in known:
        assert one not in done.stdout
        assert one not in journal
        assert one not in processes


# --- what comes back


def test_all_of_it_comes_back_after_a_reboot(machines: Machines) -> None:
    host = machines("harbor")
    host.check_output("touch /run/before-the-reboot")
    host.run("systemctl reboot")
    deadline = time.monotonic() + 120
    # 1: it answers, and the file is gone.
    while host.run("test -e /run/before-the-reboot").rc != 1:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    wait_until_healthy()
    assert running(machines) == CONTAINERS
    assert pull(machines, robot("pull"))


def test_all_of_it_comes_back_after_a_power_cut(unplugged: Machines) -> None:
    unplugged.power("off", "harbor")
    unplugged.power("on", "harbor")
    wait_until_healthy()
    assert running(unplugged) == CONTAINERS
    assert pull(unplugged, robot("pull"))


def test_power_cut_while_prepare_is_half_way_is_made_good(unplugged: Machines) -> None:
    env = "/opt/harbor/common/config/core/env"
    host = unplugged("harbor")
    unplugged.ssh("harbor", "touch /run/stand-in-stalls; rm /opt/harbor/.sanchuang-applied")
    started = "systemd-run --quiet --unit=stalled /opt/harbor/prepare"
    unplugged.ssh("harbor", f"rm -f {env}; systemctl stop harbor; {started}")
    deadline = time.monotonic() + 60
    while host.run("test -e /opt/harbor/common/config/registry/config.yml").rc != 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    unplugged.power("off", "harbor")
    unplugged.power("on", "harbor")
    assert host.run(f"test -e {env}").rc != 0
    assert changed(play(unplugged, ROLE)) > 0
    wait_until_healthy()
    assert running(unplugged) == CONTAINERS
    assert pull(unplugged, robot("pull"))
    assert changed(play(unplugged, ROLE)) == 0


# --- rotation


def test_rotated_password_of_a_robot_is_the_only_one(machines: Machines) -> None:
    old = robot("pull")
    before = machines.ssh("harbor", PREPARED)
    (SECRETS / "registry-pull").unlink()
    assert changed(play(machines, ROLE)) == 1
    assert robot("pull") != old
    assert ask("/v2/", old).status == 401
    assert pull(machines, robot("pull"))
    assert ask("/v2/", robot("push")).status == 200
    assert machines.ssh("harbor", PREPARED) == before


def test_lost_password_of_admin_is_refused_and_a_renamed_one_rotated(machines: Machines) -> None:
    old = admin()
    file = SECRETS / "harbor-admin"
    file.rename(SECRETS / "kept")
    assert sentence(play(machines, ROLE)) == (
        "Harbor on harbor does not accept harbor_admin_password for admin, and keeps the one it"
        f" has: write that one into {file} or, to rotate it, into harbor-admin.old beside it, and"
        " run the playbook again."
    )
    (SECRETS / "kept").rename(SECRETS / "harbor-admin.old")
    assert changed(play(machines, ROLE)) == 1
    time.sleep(2)
    assert admin() != old
    assert ask("/api/v2.0/users/current", admin()).status == 200
    assert ask("/api/v2.0/users/current", old).status == 401
    time.sleep(2)
    assert changed(play(machines, ROLE)) == 0
    (SECRETS / "harbor-admin.old").unlink()


def test_rights_and_project_that_somebody_changed_are_put_right(machines: Machines) -> None:
    one = robots()["robot$t2v-pull"]
    more = [{"resource": "repository", "action": action} for action in ("pull", "push")]
    wider = one | {"permissions": [{"kind": "project", "namespace": "ai", "access": more}]}
    changes = (
        ("robots/" + str(one["id"]), wider),
        ("projects/ai", {"metadata": {"public": "true"}}),
    )
    for path, body in changes:
        assert ask(f"/api/v2.0/{path}", admin(), method="PUT", body=body).status == 200
    assert changed(play(machines, ROLE)) == 2
    assert rights() == RIGHTS
    assert not pull(machines, None)


# --- what is refused


@pytest.fixture
def _database(machines: Machines) -> Iterator[None]:
    (SECRETS / "harbor-database").rename(SECRETS / "kept")
    yield
    (SECRETS / "kept").rename(SECRETS / "harbor-database")


@pytest.mark.usefixtures("_database")
def test_other_database_password_is_refused(machines: Machines) -> None:
    assert sentence(play(machines, ROLE)).startswith(
        "harbor_database_password is not the one that Harbor's database on harbor was made with,"
        " which cannot be changed: restore "
    )
    assert ask("/api/v2.0/users/current", admin()).status == 200


def table(**harbor: str) -> str:
    """The artifacts, Harbor's changed."""
    compose = "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372"
    path = "docker/compose/releases/download/v2.40.3/docker-compose-linux-x86_64"
    release = harbor.get("version", "2.15.2")
    entry = {
        "version": release,
        "mirror": "github",
        "path": f"releases/harbor-offline-installer-v{release}.tgz",
        "sha256": (CONTROLLER / "offline/harbor.sha256").read_text(),
    }
    other = {"version": "2.40.3", "mirror": "github", "path": path, "sha256": compose}
    return json.dumps({"t2v_artifacts": {"docker_compose": other, "harbor": entry | harbor}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"sha256": "0" * 64}, f"and harbor 2.15.2 has {'0' * 64}: fetch", id="other"),
        pytest.param({"sha256": ""}, "The artifact 'harbor' has no SHA-256: set", id="none"),
    ],
)
def test_wrong_checksum_is_refused(machines: Machines, options: dict[str, str], words: str) -> None:
    assert words in sentence(play(machines, ROLE, "-e", table(**options)))


def test_missing_installer_is_refused(machines: Machines) -> None:
    machines.ssh("harbor", "mv /var/cache/sanchuang-t2v /var/cache/kept")
    said = sentence(play(machines, ROLE, "-e", json.dumps({"t2v_offline_dir": "/nowhere"})))
    machines.ssh("harbor", "rm -rf /var/cache/sanchuang-t2v")
    machines.ssh("harbor", "mv /var/cache/kept /var/cache/sanchuang-t2v")
    assert said == (
        "t2v_mirror is 'offline' and /nowhere/docker-compose-linux-x86_64 is not there on the"
        " controller: put docker-compose-linux-x86_64 (version 2.40.3) into t2v_offline_dir."
    )


def test_weak_password_is_refused(machines: Machines) -> None:
    said = sentence(play(machines, ROLE, "-e", "t2v_registry_push_password=nodigits"))
    assert said.startswith("Harbor would not take the password of robot$t2v-push: it needs 8 to")


# --- the last ones change what runs


def sha256_of(name: str) -> str:
    """Checksum of a file of the offline directory."""
    return hashlib.sha256((CONTROLLER / "offline" / name).read_bytes()).hexdigest()


def test_upgrade_is_refused_until_it_is_asked_for_and_keeps_the_images(machines: Machines) -> None:
    newer = table(version="2.15.3", sha256=sha256_of("harbor-offline-installer-v2.15.3.tgz"))
    assert sentence(play(machines, ROLE, "-e", newer)) == (
        "harbor runs Harbor 2.15.2, and 2.15.3 is to be installed: an upgrade cannot be taken"
        " back, so back up /var/lib/harbor, then run with -e harbor_upgrade_from=2.15.2."
    )
    assert changed(play(machines, ROLE, "-e", newer, "-e", "harbor_upgrade_from=2.15.2")) > 0
    assert running(machines) == CONTAINERS
    shown = json.loads(ask("/api/v2.0/systeminfo", admin()).body)
    assert shown["harbor_version"].startswith("v2.15.3")
    assert pull(machines, robot("pull"))
    assert changed(play(machines, ROLE, "-e", newer)) == 0
    assert "restore the backup" in sentence(
        play(machines, ROLE, "-e", "harbor_upgrade_from=2.15.3")
    )


def test_flavours_make_room_for_each_other(machines: Machines) -> None:
    newer = table(version="2.15.3", sha256=sha256_of("harbor-offline-installer-v2.15.3.tgz"))
    site = ("playbooks/registry.yml", "--limit", "localhost,harbor", "-e", newer)
    light = (*site, "-e", "t2v_registry_flavour=distribution")
    assert changed(play(machines, *light)) > 0
    assert running(machines) == []
    assert ask("/v2/", ("t2v-pull", secret("registry-pull"))).status == 200
    assert changed(play(machines, *light)) == 0
    assert changed(play(machines, *site)) > 0
    assert running(machines) == CONTAINERS
    assert pull(machines, robot("pull"))
