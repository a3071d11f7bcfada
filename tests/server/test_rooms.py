"""Imports point one way, and torch stays out of every process but the engines."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SERVER_ROOT

PACKAGE = SERVER_ROOT / "t2v_server"

# What each room and module may import of this package.
MAY_IMPORT = {
    "api": {"api", "jobs", "storage", "config", "metrics", "profiles", "__version__"},
    "jobs": {"jobs", "config", "profiles"},
    "checkpoint": {"checkpoint", "profiles"},
    "engine": {
        "engine", "checkpoint", "jobs", "storage", "config", "janitor", "metrics", "processes",
        "profiles", "__version__",
    },
    "storage": {"storage"},
    "janitor": {"config", "jobs", "metrics", "storage"},
    "config": {"checkpoint", "gpu", "profiles"},
    "gpu": set[str](),
    "metrics": {"profiles"},
    "profiles": set[str](),
    "processes": set[str](),
    "logs": {"config"},
    "client": set[str](),
    "worker": set[str](),
    "supervisor": {"config", "processes"},
    "serve": {
        "api", "config", "jobs", "logs", "metrics", "processes", "storage", "supervisor",
    },
    "app": {"api", "config", "jobs", "logs", "metrics", "storage", "__version__"},
    "gunicorn.conf": {"app", "config", "logs", "metrics", "processes", "supervisor"},
    "make": {"api", "checkpoint", "client", "config", "engine", "jobs", "profiles"},
    "doctor": {
        "api", "checkpoint", "config", "gpu", "jobs", "profiles", "serve", "storage",
        "__version__",
    },
    "cli": {
        "api", "checkpoint", "config", "doctor", "engine", "logs", "make", "profiles", "serve",
        "__version__",
    },
    "__init__": set[str](),
    "__main__": {"cli"},
}  # fmt: skip
FRAMEWORKS = {
    "flask": {"api", "app"},
    "werkzeug": {"api", "app"},
    "pydantic": {"api"},
    "jwt": {"api"},
    "torch": {"engine"},
    "diffusers": {"engine"},
    "transformers": {"engine"},
    "safetensors": {"engine"},
    "huggingface_hub": {"checkpoint"},
    "numpy": {"engine"},
    "redis": {"jobs", "api"},
    "sqlite3": {"jobs"},
    "prometheus_client": {"metrics", "api"},
    "gunicorn": {"gunicorn.conf", "worker", "api"},  # api: what it raises for a broken body
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


@pytest.mark.parametrize(
    "modules",
    ["t2v_server.app", "t2v_server.supervisor, t2v_server.serve", "t2v_server.cli"],
)
def test_only_an_engine_imports_torch(modules: str) -> None:
    code = (
        f"import sys, {modules};"
        "print([name for name in ('torch', 'diffusers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SERVER_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_an_engine_says_that_it_loads_before_it_imports_torch() -> None:
    code = "import sys, t2v_server.engine.process; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SERVER_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
