"""``site.yml`` is a table of contents: a layer's tag runs that layer and nothing of another."""

from __future__ import annotations

import re

import pytest
import yaml

from controller import ROOT, ansible

LAYERS = {
    entry["tags"][0]: entry["ansible.builtin.import_playbook"]
    for entry in yaml.safe_load((ROOT / "site.yml").read_text())
}


def tasks_of(playbook: str, *options: str) -> list[tuple[str, str]]:
    """(play, task) of what would run, without the check of arguments that opens every role."""
    listed = ansible("ansible-playbook", "-i", "inventory/", playbook, "--list-tasks", *options)
    assert listed.returncode == 0, listed.stderr
    found, play = [], ""
    for line in listed.stdout.splitlines():
        if heading := re.match(r"  play #\d+ \(.*?\): (.*?)\tTAGS", line):
            play = heading.group(1)
        elif (task := re.match(r"      (.*?)\tTAGS", line)) and "Validating" not in task.group(1):
            found.append((play, task.group(1)))
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_s_tag_runs_that_layer_alone(layer: str) -> None:
    chosen = tasks_of("site.yml", "--tags", layer)
    assert chosen
    assert chosen == tasks_of(LAYERS[layer])


def test_a_topic_of_the_base_brings_what_it_needs_and_no_other_topic() -> None:
    """The plays gather facts with the layer's tag alone, so the role must learn them by itself."""
    chosen = tasks_of("site.yml", "--tags", "base_sudo")
    assert [task for _, task in chosen[:2]] == [
        "base : Learn which distribution this is",
        "base : Load the names of this distribution",
    ]
    assert all("sudo" in task for _, task in chosen[4:])
