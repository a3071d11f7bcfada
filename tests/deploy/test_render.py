"""playbooks/render.yml writes the manifests to a directory, and only what is wanted."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import yaml

from conftest import Cell, ansible_playbook

SECRETS = {"secret-registry", "secret-wan22", "secret-redis"}


def render(directory: Path, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    places = {
        "t2v_state_dir": str(directory / "state"),
        "t2v_deploy_render_dir": str(directory / "out"),
    }
    return ansible_playbook(
        *("-i", "inventory/", "playbooks/render.yml", *arguments),
        *("-e", json.dumps(places | settings)),
    )


def changed(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"changed=(\d+)", done.stdout)
    assert found
    return int(found[1])


def test_a_directory_of_manifests(documented: Cell, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(tmp_path, "--check")
    assert not out.exists()

    first = render(tmp_path)
    assert changed(first) > 0
    assert "The autoscaler's maximum is 2 and not 6: the workers have GPUs for 2 pods." in (
        first.stdout
    )
    written = {path.stem: path.read_text() for path in out.glob("*.yaml")}
    listed = yaml.safe_load(written.pop("kustomization"))["resources"]
    wanted = {name: text for name, text in documented.texts.items() if name not in SECRETS}
    # A hash that a password went into is in no file for a reader.
    redis, applied = written.pop("statefulset-redis"), wanted.pop("statefulset-redis")
    assert len(set(applied.splitlines()) - set(redis.splitlines())) == 3
    assert "annotations" not in redis
    assert written == wanted
    assert [name.removesuffix(".yaml") for name in listed] == [
        name for name in documented.texts if name not in SECRETS
    ]
    passwords = [path.read_text().strip() for path in (tmp_path / "state/secrets").iterdir()]
    assert passwords
    everything = "".join(path.read_text() for path in out.iterdir())
    assert not [password for password in passwords if password in everything]

    assert changed(render(tmp_path)) == 0

    (out / "wan22-notes.txt").write_text("not ours\n")
    assert changed(render(tmp_path, t2v_autoscaler="none", t2v_deploy_render_credentials=True)) > 0
    assert not (out / "hpa-wan22.yaml").exists()
    assert (out / "wan22-notes.txt").exists()
    for name in SECRETS:
        assert stat.S_IMODE((out / f"{name}.yaml").stat().st_mode) == 0o600


def test_wrong_settings_write_nothing(tmp_path: Path) -> None:
    done = render(tmp_path, t2v_autoscaler="vpa")
    assert done.returncode != 0
    assert "t2v_autoscaler is 'vpa'" in done.stdout
    assert not (tmp_path / "out").exists()
