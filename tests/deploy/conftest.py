"""Renders all cells of the matrix in one run of ansible-playbook, once a session."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import matrix
from controller import ROOT, ansible

HERE = Path(__file__).parent


def ansible_playbook(
    *arguments: str, timeout: int = 900, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook, on every core."""
    forks = {"ANSIBLE_FORKS": str(os.cpu_count())}
    return ansible("ansible-playbook", *arguments, timeout=timeout, **(forks | settings))


@dataclass(frozen=True)
class Cell:
    """What was rendered for one set of settings; ``manifests`` by the name of their template."""

    name: str
    faults: list[str]
    maximum: int
    texts: dict[str, str]
    manifests: dict[str, dict[str, Any]]

    def kinds(self, *kinds: str) -> list[dict[str, Any]]:
        return [manifest for manifest in self.manifests.values() if manifest["kind"] in kinds]

    def pod_specs(self) -> dict[str, dict[str, Any]]:
        return {
            manifest["metadata"]["name"]: manifest["spec"]["template"]["spec"]
            for manifest in self.kinds("Deployment", "StatefulSet", "DaemonSet", "Job")
        }


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    """Every cell, the refused ones too."""
    directory = tmp_path_factory.mktemp("cells")
    (directory / "recorded.json").write_text(
        json.dumps(
            {
                "reference": "192.168.0.34:5001/ai/wan2.2-t2v-5b:v1",
                "digest": matrix.DIGEST.split("@")[1],
                "image": matrix.DIGEST,
            }
        )
    )
    wanted = matrix.CELLS | {name: settings for name, (settings, _) in matrix.WRONG.items()}
    inventory = directory / "cells.yml"
    inventory.write_text(yaml.safe_dump({"cells": {"hosts": wanted}}))
    places = {
        "t2v_state_dir": str(directory),
        "cells_dir": str(directory),
        # The manifests are rendered by a task outside of the role.
        "role_path": str(ROOT / "roles/t2v_deploy"),
    }
    done = ansible_playbook(
        *("-i", "inventory/", "-i", str(inventory), str(HERE / "render_matrix.yml")),
        *("-e", json.dumps(places)),
    )
    assert done.returncode == 0, re.findall(r"fatal: .*", done.stdout)[:3] or done.stderr
    rendered: dict[str, Cell] = {}
    for name in wanted:
        content = json.loads((directory / f"{name}.json").read_text())
        rendered[name] = Cell(
            name,
            content["faults"],
            content["max"],
            content["manifests"],
            {key: yaml.safe_load(text) for key, text in content["manifests"].items()},
        )
    return rendered


@pytest.fixture(params=matrix.CELLS)
def cell(request: pytest.FixtureRequest, cells: dict[str, Cell]) -> Cell:
    """Each cell that is accepted."""
    return cells[request.param]


@pytest.fixture
def documented(cells: dict[str, Cell]) -> Cell:
    """The documented site, no variable changed."""
    return cells["documented"]
