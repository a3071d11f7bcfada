"""The rules of the role prometheus, and promtool, which judges them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "roles/prometheus/files/rules").glob("*.yml"))
RULE_TESTS = sorted((ROOT / "tests/monitoring/rules").glob("*_test.yml"))


@dataclass(frozen=True)
class Rule:
    """One alert or recording rule; ``name`` is the alert's or the new metric's."""

    name: str
    alert: bool
    expr: str
    file: str
    labels: dict[str, str]
    annotations: dict[str, str]


def all_rules() -> list[Rule]:
    """Every rule of every file."""
    return [
        Rule(
            one.get("alert") or one["record"],
            "alert" in one,
            str(one["expr"]),
            path.stem,
            one.get("labels", {}),
            one.get("annotations", {}),
        )
        for path in RULES
        for group in load(path)["groups"]
        for one in group["rules"]
    ]


@functools.lru_cache
def load(path: Path) -> dict[str, Any]:
    """A file of YAML that holds a mapping."""
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict), path
    return content


def program(name: str) -> str:
    """Where a program is. Without it the test is skipped, in CI it fails."""
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is not installed; `make test` installs it where it may"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def promtool(*arguments: str | Path, seconds: int = 500) -> tuple[bool, str]:
    """Run promtool: whether it is content, and what it said."""
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    return done.returncode == 0, done.stdout + done.stderr


def metrics_in(expr: str) -> set[str]:
    """The names of the metrics in an expression of PromQL.

    What is left of its identifiers without labels, strings, durations, functions and keywords.
    """
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    text = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    text = re.sub(r"\boffset\s+\w+", "", text)
    names = re.findall(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])", text)
    return set(names) - {"and", "or", "unless", "bool", "by", "without"}


def parse_errors(exprs: Iterable[str], folder: Path) -> str:
    """What promtool says against these expressions; empty if it is content."""
    rules = [
        {"record": f"test:expression_{number}:value", "expr": expr}
        for number, expr in enumerate(exprs)
    ]
    path = folder / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "expressions", "rules": rules}]}))
    good, said = promtool("check", "rules", path)
    return "" if good else said
