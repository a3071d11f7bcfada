"""Both runtimes give the server the same, and the server knows every setting that it gets."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from conftest import Cell, ansible_playbook
from controller import ROOT

# What differs, and why.
DIFFERENT = {
    "T2V_STORE": "Redis is in the cluster, not on the master",
    "T2V_INSTANCE": "the pod's name, by the downward API",
}


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the role t2v_service gives its container on the documented site."""
    directory = tmp_path_factory.mktemp("docker")
    play = directory / "play.yml"
    names = {
        "env": "_t2v_service_environment",
        **{
            name: f"t2v_service_{name}"
            for name in (
                *("memory", "cpus", "shm_size", "tmp_size", "drain_seconds"),
                *("ready_attempts", "ready_delay", "uid", "gid"),
            )
        },
    }
    content = (
        "{{ {" + ", ".join(f"'{key}': {name}" for key, name in names.items()) + "} | to_json }}"
    )
    play.write_text(
        yaml.safe_dump(
            [
                {
                    "hosts": "worker1",
                    "connection": "local",
                    "gather_facts": False,
                    "vars_files": [
                        str(ROOT / "roles/t2v_service/defaults/main.yml"),
                        str(ROOT / "roles/t2v_service/vars/main.yml"),
                    ],
                    "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
                    "tasks": [
                        {
                            "ansible.builtin.copy": {
                                "content": content,
                                "dest": str(directory / "docker.json"),
                                "mode": "0600",
                            },
                        }
                    ],
                }
            ]
        )
    )
    done = ansible_playbook(
        *("-i", "inventory/", str(play), "-e", json.dumps({"t2v_state_dir": str(directory)}))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((directory / "docker.json").read_text())
    return found


def test_settings_are_the_same(docker: dict[str, Any], documented: Cell) -> None:
    data = documented.manifests["configmap-wan22"]["data"]
    shared = {name: value for name, value in docker["env"].items() if name not in DIFFERENT}
    assert shared == {name: value for name, value in data.items() if name not in DIFFERENT}
    container = documented.pod_specs()["wan22-t2v-deployment"]["containers"][0]
    assert {*data, *(variable["name"] for variable in container["env"])} == set(docker["env"])


def test_limits_are_the_same(docker: dict[str, Any], documented: Cell) -> None:
    pod = documented.pod_specs()["wan22-t2v-deployment"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert f"{docker['memory']}i".replace("g", "G") == limits["memory"]
    assert str(docker["cpus"]) == limits["cpu"]
    sizes = {
        volume["name"]: volume["emptyDir"]["sizeLimit"]
        for volume in pod["volumes"]
        if "emptyDir" in volume
    }
    assert sizes["shm"] == f"{docker['shm_size'].removesuffix('m')}Mi"
    assert sizes["tmp"] == f"{docker['tmp_size'].removesuffix('m')}Mi"


def test_times_and_numbers_are_the_same(docker: dict[str, Any], documented: Cell) -> None:
    pod = documented.pod_specs()["wan22-t2v-deployment"]
    probe = pod["containers"][0]["startupProbe"]
    assert int(docker["ready_attempts"]) * int(docker["ready_delay"]) == (
        probe["periodSeconds"] * probe["failureThreshold"]
    )
    assert int(docker["uid"]) == pod["securityContext"]["runAsUser"]
    assert int(docker["gid"]) == pod["securityContext"]["runAsGroup"]


def test_the_server_knows_every_setting(cell: Cell) -> None:
    config = (ROOT / "files/server/t2v_server/config.py").read_text()
    known = set(re.findall(r'^    "(T2V_[A-Z_]+)":', config, re.MULTILINE))
    assert len(known) > 40
    assert set(cell.manifests["configmap-wan22"]["data"]) <= known


def test_files_that_settings_name_are_mounted(cell: Cell) -> None:
    data = cell.manifests["configmap-wan22"]["data"]
    for name, path in data.items():
        if name.endswith("_FILE"):
            assert path.startswith("/etc/t2v/")
            assert path.removeprefix("/etc/t2v/") in cell.manifests["secret-wan22"]["data"]


def test_paths_are_those_of_the_image() -> None:
    dockerfile = (ROOT / "files/server/Dockerfile").read_text()
    assert "EXPOSE 8080" in dockerfile
    for path in ("/shared/videos", "/var/lib/t2v", "/var/cache/t2v"):
        assert path in dockerfile
