"""The site on the newest ansible-core that Python 3.11 allows, which knows no Python 2.7."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.settings import REPOSITORY
from site_runs import HOSTS, unchanged

NAME = "test-newest"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="it is locked for Python 3.11"),
]


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": "molecule", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=2400,
    )
    print(done.stdout[-6000:], done.stderr[-3000:], sep="\n")
    assert done.returncode == 0
    return done.stdout


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str | Path, ...]]:
    """``python -m lab`` of an environment with that core."""
    place = tmp_path_factory.mktemp("newest") / "venv"
    run(sys.executable, "-m", "venv", place)
    python = place / "bin/python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    run(python, *install, "-r", "tests/newest/requirements.txt")
    lab = (python, "-m", "lab", "--name", NAME)
    yield lab
    run(*lab, "down")


def test_the_site_is_built_and_a_second_run_changes_nothing(newest: tuple[str | Path, ...]) -> None:
    assert "core 2.16" not in run(newest[0], "-m", "ansible", "adhoc", "--version")
    assert "Video generated at" in run(*newest, "up")
    assert unchanged(run(*newest, "up")) >= HOSTS
