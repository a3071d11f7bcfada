"""What the strategy t2v_linear keeps of Ansible's answers is what Ansible would answer anew."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from ansible import constants
from ansible.config.manager import ConfigManager
from ansible.errors import AnsibleError
from ansible.plugins.loader import become_loader, connection_loader, init_plugin_loader
from ansible.template import Templar
from ansible.vars.fact_cache import FactCache
from ansible.vars.manager import VariableManager, namespace_facts

from lab.settings import REPOSITORY


@pytest.fixture(scope="module")
def strategy() -> Any:
    path = REPOSITORY / "plugins/strategy/t2v_linear.py"
    spec = importlib.util.spec_from_file_location("t2v_linear_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Mitogen would change what processes of all other tests are.
        patch.setenv("T2V_MITOGEN", "0")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plugins() -> None:
    init_plugin_loader([])
    connection_loader.get("ssh", class_only=True)
    become_loader.get("runas", class_only=True)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"variables": {"ansible_port": 2222, "ansible_ssh_common_args": "-v", "other": 1}},
        {"variables": {"ansible_user": "one"}, "keys": {"remote_user": "two", "timeout": 7}},
        {"keys": {"remote_user": "two", "port": 23}},
        {"direct": {"host": "there", "retries": 4}},
    ],
)
def test_options_of_ssh_are_ansible_s(strategy: Any, plugins: None, given: dict[str, Any]) -> None:
    asked = ("connection", "ssh")
    expected = ConfigManager.get_plugin_options(constants.config, *asked, **given)
    assert "control_path" in expected
    for _ in range(2):
        assert strategy._options_once(constants.config, *asked, **given) == expected


def test_a_required_option_may_be_given(strategy: Any, plugins: None) -> None:
    asked = (constants.config, "become", "runas")
    with pytest.raises(AnsibleError, match="required"):
        strategy._options_once(*asked)
    given = {"variables": {"ansible_become_user": "berta"}}
    options = strategy._options_once(*asked, **given)
    assert options == ConfigManager.get_plugin_options(*asked, **given)
    assert options["become_user"] == "berta"


@pytest.fixture
def facts(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[VariableManager]:
    """Variables whose facts are kept as the strategy keeps them while it runs."""
    monkeypatch.setattr(FactCache, "get", strategy._get_facts)
    monkeypatch.setattr(FactCache, "__setitem__", strategy._set_facts)
    monkeypatch.setattr(FactCache, "__delitem__", strategy._delete_facts)
    manager = VariableManager()
    yield manager
    manager._fact_cache.flush()
    strategy._facts_known.clear()


def test_facts_that_change_are_seen(strategy: Any, facts: VariableManager) -> None:
    def seen() -> Any:
        known = facts._fact_cache.get("one", {})
        # A task may add to its own.
        found = strategy._namespace_known(known)["ansible_facts"]
        expected = namespace_facts(dict(known))["ansible_facts"]
        assert found == expected
        found["mine"] = True
        return expected

    assert seen() == {}
    facts.set_host_facts("one", {"ansible_os_family": "Debian", "cpus": ["a"]})
    assert seen() == {"os_family": "Debian", "cpus": ["a"]}
    facts.set_host_facts("one", {"cpus": ["a", "b"]})
    assert seen() == {"os_family": "Debian", "cpus": ["a", "b"]}
    facts.clear_facts("one")
    assert seen() == {}


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("{{ ansible_port | default(22) }}", True),
        ("{{ way }}", True),
        ("{{ name }}", False),
        ("{{ nobody | default(1) }}", False),
    ],
)
def test_what_the_connection_knows_is_noticed(strategy: Any, text: str, asked: bool) -> None:
    given = {"way": "{{ ansible_connection | default('') }}", "name": "{{ ansible_host }}"}
    variables = strategy._Watching(given, ansible_host="192.0.2.1")
    strategy._Watching.asked = False
    Templar(loader=None, variables=variables).template(text)
    assert strategy._Watching.asked is asked
