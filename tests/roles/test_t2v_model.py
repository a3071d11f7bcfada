"""A model prepared on a worker: by whom, what is refused, and what an interruption leaves.

The share is a directory of worker1, and what is published a model of random weights; both are
stand-ins. Preparing, the image and Docker are real.
"""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines import Machines
from playbooks import WHOLE, changed, sentences

CONVERGE = "molecule/t2v_model/converge.yml"
SHARE = "/shared/models"
MODEL = f"{SHARE}/wan-tiny"
VAE = f"{MODEL}/vae/diffusion_pytorch_model-00001-of-00015.safetensors"
SERVICE = "setpriv --reuid 10001 --regid 10001 --clear-groups"


def play(machines: Machines, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the role once more."""
    return machines.run_playbook(CONVERGE, *options, **WHOLE)


def refusal(machines: Machines, *options: str) -> str:
    """The one sentence with which the role refuses to go on."""
    done = play(machines, *options)
    assert done.returncode != 0, done.stdout
    assert "PLAY RECAP" in done.stdout
    return sentences(done)[-1]


def manifest(machines: Machines) -> dict[str, object]:
    """That of the prepared model."""
    found = json.loads(machines.ssh("worker1", f"cat {MODEL}/manifest.json"))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def damaged(machines: Machines) -> Iterator[Machines]:
    """The machines; whatever a test does to the model is undone after it."""
    machines.ssh("worker1", f"rm -rf /srv/kept && cp -a {MODEL} /srv/kept")
    yield machines
    machines.ssh("worker1", f"rm -rf {MODEL} {SHARE}/.wan-tiny.*; mv /srv/kept {MODEL}")


def test_it_is_the_service_s_own_and_whole(machines: Machines) -> None:
    found = manifest(machines)
    assert found["profile"] == "tiny"
    origin = found["origin"]
    assert isinstance(origin, dict)
    assert (origin["kind"], origin["name"]) == ("directory", "/srv/published/tiny")
    owners = machines.ssh("worker1", f"find {MODEL} -printf '%U:%G\\n' | sort -u").split()
    assert owners == [b"10001:10001"]
    assert machines.ssh("worker1", f"ls -A {SHARE}").split() == [b"wan-tiny"]
    # No container is left.
    assert machines.ssh("worker1", "docker ps -aq").strip() == b""


def test_a_second_run_changes_nothing_in_check_mode_either(machines: Machines) -> None:
    assert changed(play(machines)) == 0
    assert changed(play(machines, "--check")) == 0


def test_damage_is_refused_by_the_name_of_the_file(damaged: Machines) -> None:
    damaged.ssh("worker1", f"printf X | dd of={VAE} bs=1 seek=5000 conv=notrunc 2>/dev/null")
    assert changed(play(damaged)) == 0  # sizes are what they were
    full = refusal(damaged, "-e", "t2v_model_verify=true")
    assert full == (
        f"{VAE} is damaged (its SHA-256 is not the manifest's): remove {MODEL} and prepare it again"
    )
    damaged.ssh("worker1", f"truncate --size=-1 {VAE}")
    assert refusal(damaged).startswith(f"{VAE} is damaged (")
    damaged.ssh("worker1", f"rm {MODEL}/manifest.json")
    assert "holds no manifest.json, so it is something else's" in refusal(damaged)


def test_another_profile_or_source_is_refused(machines: Machines) -> None:
    assert refusal(machines, "-e", "t2v_model_profile=t4") == (
        f"{MODEL} is prepared for the profile tiny and not for t4: name another directory, or "
        "remove this one"
    )
    machines.ssh("worker1", "mkdir -p /srv/other")
    assert "and not from /srv/other" in refusal(machines, "-e", "t2v_model_source=/srv/other")
    assert "bring the published model there" in refusal(
        machines, "-e", "t2v_model_source=/srv/nowhere"
    )


# Killed by itself at its fifth file: from outside nobody is as fast as the small model.
KILLED = f"""
import os
from pathlib import Path
from t2v_server.checkpoint.wanted import Wanted
from t2v_server.engine.prepare import prepare
from t2v_server.profiles import TINY
def die(line):
    if line.startswith("[5/"):
        os.kill(os.getpid(), 9)
prepare(Wanted("/srv/published/tiny", TINY, Path("{MODEL}")), die)
"""


def test_an_interrupted_preparation_is_finished_by_the_next_run(damaged: Machines) -> None:
    damaged.ssh("worker1", f"rm -rf {MODEL}")
    image = damaged.ssh("worker1", "docker images -q --no-trunc | head -1").decode().strip()
    volumes = f"-v {SHARE}:{SHARE} -v /srv/published:/srv/published"
    damaged.ssh(
        "worker1",
        f"docker run --rm --init --user 10001:10001 --hostname worker1 {volumes}"
        f" --entrypoint python3 {image} -c {shlex.quote(KILLED)} || true",
    )
    left = damaged.ssh("worker1", f"ls -A {SHARE} {SHARE}/.wan-tiny.preparing").decode()
    assert "wan-tiny\n" not in left
    assert "journal.json\n" in left

    assert changed(play(damaged, "--check")) == 1  # it would be prepared
    assert changed(play(damaged)) > 0
    assert changed(play(damaged)) == 0
    assert damaged.ssh("worker1", f"ls -A {SHARE}").split() == [b"wan-tiny"]
    assert manifest(damaged)["profile"] == "tiny"


def test_what_a_stopped_playbook_left_is_cleared(machines: Machines) -> None:
    """The preparation went on to its end, and nobody removed its container."""
    image = machines.ssh("worker1", "docker images -q --no-trunc | head -1").decode().strip()
    machines.ssh("worker1", f"docker run --name t2v-model {image} --version")
    assert changed(play(machines)) == 1
    assert machines.ssh("worker1", "docker ps -aq").strip() == b""
    assert changed(play(machines)) == 0


def test_settings_that_cannot_work_are_refused_before_any_host_is_touched(
    machines: Machines, tmp_path: Path
) -> None:
    for more, sentence in (
        ({"t2v_model": "/shared/models/a/b"}, "is a directory directly below /shared/models"),
        ({"t2v_model": "/shared/models/.wan"}, "begins with a dot"),
        ({"t2v_model_source": "tiny"}, "which is no absolute path"),
        ({"t2v_model_from": "huggingface"}, "which is no OWNER/NAME"),
        ({"t2v_model_revision": "main"}, "which has no revision, endpoint or token"),
        ({"container_runtime": "containerd"}, "a model is prepared with Docker"),
    ):
        said = refusal(machines, "-e", json.dumps(more))
        assert sentence in said, said


def test_a_token_is_given_and_taken_away(machines: Machines, tmp_path: Path) -> None:
    """The hub cannot be reached from here: what matters is where the token was, and is not."""
    token = tmp_path / "token"
    token.write_text("hf_NotForEverybody\n")
    done = play(
        machines, "-vvv", "-e",
        json.dumps(
            {
                "t2v_model": f"{SHARE}/from-hub", "t2v_model_source": "Wan-AI/Nothing",
                "t2v_model_from": "huggingface", "t2v_model_endpoint": "http://127.0.0.1:9",
                "t2v_model_token_file": str(token),
            }
        ),
    )  # fmt: skip
    assert done.returncode != 0
    assert "cannot be had from http://127.0.0.1:9" in done.stdout
    assert "hf_NotForEverybody" not in done.stdout
    left = machines.ssh(
        "worker1",
        "docker inspect t2v-model; ls -d /run/sanchuang* || true;"
        f" rm -rf {SHARE}/.from-hub*; journalctl --no-pager | grep hf_Not || true",
    ).decode()
    assert "hf_NotForEverybody" not in left
    assert "/run/sanchuang-t2v-model\n" not in left
