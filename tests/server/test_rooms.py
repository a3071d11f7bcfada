"""Imports point one way, and torch stays out of the way until the engine thread runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SERVER_ROOT

PACKAGE = SERVER_ROOT / "t2v_server"

# What each room may import of this package; the leaves are config, profiles and metrics.
MAY_IMPORT = {
    "api": {"api", "jobs", "metrics", "profiles"},
    "jobs": {"jobs"},
    "engine": {"engine", "jobs", "storage", "metrics", "profiles"},
    "storage": {"storage"},
    "config": {"profiles"},
    "metrics": set[str](),
    "profiles": set[str](),
    "app": {"api", "config", "engine", "jobs", "metrics", "storage"},
    "lifecycle": {"app", "config", "storage"},
    "gunicorn.conf": {"lifecycle", "app"},
    "__init__": set[str](),
    "__main__": set[str](),
}
FRAMEWORKS = {
    "flask": {"api", "app"},
    "werkzeug": {"api"},
    "torch": {"engine"},
    "diffusers": {"engine"},
    "transformers": {"engine"},
    "numpy": {"engine"},
    "prometheus_client": {"metrics", "api"},
    "gunicorn": {"gunicorn.conf"},
}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_by(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = room_of(path)
    for name in imported_by(path):
        top, _, rest = name.partition(".")
        if top == "t2v_server":
            assert rest.partition(".")[0] in MAY_IMPORT[room], f"{room} imports {name}"
        elif top in FRAMEWORKS:
            assert room in FRAMEWORKS[top], f"{room} imports {name}"


def test_the_application_imports_no_torch_before_it_serves() -> None:
    code = (
        "import sys, t2v_server.app, t2v_server.lifecycle;"
        "print([name for name in ('torch', 'diffusers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SERVER_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
