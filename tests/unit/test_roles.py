"""Every role's defaults, argument specification and README say the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent for path in (ROOT / "roles").glob("*/tasks"))


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text()) if path.exists() else None
    assert content is None or isinstance(content, dict), path
    return content or {}


def default_files_of(role: Path) -> list[Path]:
    """One file, or one for each topic of a large role."""
    single = role / "defaults/main.yml"
    return [single] if single.exists() else sorted((role / "defaults/main").glob("*.yml"))


def defaults_of(role: Path) -> dict[str, Any]:
    return {name: value for path in default_files_of(role) for name, value in load(path).items()}


def entry_points_of(role: Path) -> dict[str, Any]:
    specs = load(role / "meta/argument_specs.yml")["argument_specs"]
    assert isinstance(specs, dict)
    return specs


def options_of(role: Path) -> dict[str, dict[str, Any]]:
    """The options of all entry points together."""
    return {
        name: option
        for entry_point in entry_points_of(role).values()
        for name, option in entry_point["options"].items()
    }


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_there_are_roles() -> None:
    assert ROLES


def test_optional_arguments_are_the_defaults(role: Path) -> None:
    optional = {name for name, option in options_of(role).items() if not option.get("required")}
    assert optional == set(defaults_of(role))


def test_required_arguments_are_commented_in_the_defaults(role: Path) -> None:
    text = "\n".join(path.read_text() for path in default_files_of(role))
    for name, option in options_of(role).items():
        if option.get("required"):
            assert "default" not in option, name
            assert re.search(rf"^# {name}:", text, re.MULTILINE), f"{name} is not commented"


def test_specified_defaults_are_the_defaults(role: Path) -> None:
    specified = {
        name: option["default"] for name, option in options_of(role).items() if "default" in option
    }
    assert specified == defaults_of(role)


def test_variables_begin_with_the_role_s_name(role: Path) -> None:
    assert all(name.startswith(f"{role.name}_") for name in options_of(role))
    for path in (role / "vars").rglob("*.yml"):
        assert all(name.startswith(f"_{role.name}_") for name in load(path)), path


def test_every_default_is_explained_where_it_is_defined(role: Path) -> None:
    """A comment opens the paragraph that a variable stands in."""
    for path in default_files_of(role):
        for paragraph in re.split(r"\n\s*\n", path.read_text().removeprefix("---\n")):
            if re.search(r"^[a-z]", paragraph, re.MULTILINE):
                assert paragraph.lstrip().startswith("#"), paragraph


def test_every_argument_is_described(role: Path) -> None:
    for entry_point in entry_points_of(role).values():
        assert entry_point["short_description"]
        assert all(option["description"] for option in entry_point["options"].values())


def test_entry_points_are_task_files(role: Path) -> None:
    for name in entry_points_of(role):
        assert (role / f"tasks/{name}.yml").is_file()


def test_readme_is_what_make_docs_writes(role: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(role, tmp_path / role.name)
    program = Path(sys.executable).with_name("aar-doc")
    subprocess.run([program, copy, "markdown"], cwd=ROOT, check=True, timeout=60)
    assert (copy / "README.md").read_text() == (role / "README.md").read_text(), "run `make docs`"
    assert [
        name for name in options_of(role) if f"`{name}`" not in (copy / "README.md").read_text()
    ] == []


def test_names_of_both_distributions_agree(role: Path) -> None:
    debian, redhat = (load(role / f"vars/{family}.yml") for family in ("Debian", "RedHat"))
    assert set(debian) == set(redhat)


def test_secrets_are_marked(role: Path) -> None:
    for name, option in options_of(role).items():
        if re.search(r"password|secret", name):
            assert option.get("no_log") is True, name


def test_task_files_are_used(role: Path) -> None:
    """No task file lies about: it is an entry point or included by another one."""
    files = {path.stem: path.read_text() for path in (role / "tasks").glob("*.yml")}
    used = {
        name
        for text in files.values()
        for name in re.findall(r"(?:import|include)_tasks:(?:\n\s+file:)? (\w+)\.yml", text)
    }
    assert set(files) == used | set(entry_points_of(role))
