"""plugins/strategy/t2v_linear.py: results as of the linear strategy, with Mitogen and without."""

from pathlib import Path

import pytest

from controller import ansible
from playbooks import by_task

PLAY = """
- hosts: all
  gather_facts: false
  vars: {words: [one, two], nothing: []}
  tasks:
    - set_fact: {own: "{{ inventory_hostname }}"}
    - debug: {msg: "{{ own }} {{ item }}"}
      loop: "{{ words }}"
    - command: echo {{ own }}
      register: said
    - debug: {var: said.stdout}
    - command: echo only a
      when: own == 'a'
    - command: echo {{ item }}
      loop: "{{ nothing }}"
    - command: echo {{ item }}
      loop: "{{ words }}"
      when: item == own or item == 'two'
    - assert: {that: own == 'a'}
      ignore_errors: true
    - include_tasks: included.yml
      vars: {given: "{{ own }}"}
      when: own != 'b'
    - assert: {that: nobody_defined_this}
      ignore_errors: true
    - command: echo unreached
      when: nobody_defined_this
      ignore_errors: true
    - raw: echo raw
    - command: echo late
      async: 30
      poll: 1
    - set_fact: {own: "{{ own }}{{ item }}"}
      loop: "{{ words }}"
    - block:
        - fail: {msg: "{{ own }}"}
      rescue:
        - debug: {msg: "rescued {{ ansible_failed_task.name }} of {{ own }}"}
    - debug: {msg: "{{ lookup('ansible.builtin.env', 'HOME') | length > 0 }}"}
      run_once: true
    # Jinja has a filter of this name, which a folder of the playbook's replaces.
    - debug: {msg: "{{ words | map('title') | list }} {{ 'one' | title }}"}
    - debug: {msg: "{{ lookup('ansible.builtin.template', 'words.j2') }} {{ words }}"}
    - debug: {msg: "{{ lookup('template', 'words.j2', template_vars={'word': own}) }}"}
      when: lookup('ansible.builtin.template', 'words.j2') is search('one,two,three')
    - debug: {msg: "{{ word is defined }} {{ template_path is defined }} {{ words }}"}
    - fail: {msg: the end of b}
      when: inventory_hostname == 'b'
    - debug: {msg: not b}
"""


FILTERS = """
class FilterModule:
    def filters(self):
        return {"title": lambda text: f"the title of {text}"}
"""
TEMPLATE = "{% set _ = words.append('three') %}{{ words | join(',') }} {{ word | default('-') }}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("strategy")
    (place / "play.yml").write_text(PLAY)
    (place / "included.yml").write_text("- debug: {msg: 'included with {{ given }}'}\n")
    (place / "filter_plugins").mkdir()
    (place / "filter_plugins/titles.py").write_text(FILTERS)
    (place / "templates").mkdir()
    (place / "templates/words.j2").write_text(TEMPLATE)
    (place / "hosts").write_text("a\nb\nc\n[all:vars]\nansible_connection=local\n")
    return place


def run(place: Path, strategy: str, **settings: str) -> str:
    done = ansible(
        "ansible-playbook",
        *("-i", str(place / "hosts"), "-e", "ansible_python_interpreter=/usr/bin/python3"),
        str(place / "play.yml"),
        timeout=300,
        ANSIBLE_STRATEGY=strategy,
        **settings,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def expected(place: Path) -> list[tuple[str, list[str]]]:
    found = by_task(run(place, "linear"))
    assert len(found) > 15
    assert "the title of one" in str(found)
    assert "one,two,three" in str(found)
    return found


@pytest.mark.parametrize("mitogen", ["0", "installed", "not installed"])
def test_it_says_what_the_linear_strategy_says(
    place: Path, tmp_path: Path, expected: list[tuple[str, list[str]]], mitogen: str
) -> None:
    settings = {"T2V_MITOGEN": mitogen}
    if mitogen == "not installed":
        (tmp_path / "ansible_mitogen").mkdir()
        (tmp_path / "ansible_mitogen/__init__.py").write_text("raise ImportError('no')\n")
        settings["PYTHONPATH"] = str(tmp_path)
    assert by_task(run(place, "t2v_linear", **settings)) == expected
