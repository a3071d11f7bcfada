"""Tests of a site that stands, from outside of it: run inside its network.

Against the lab: ``make playbook`` first, then
``PYTHONPATH=molecule .venv/bin/python -m lab run .venv/bin/python -m pytest tests/site``;
``molecule test -s site`` does the same as its verify step.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import Edge
from lab.hosts import Site, read_site
from lab.settings import REPOSITORY, Paths, load_scenario
from machines import Machines


@pytest.fixture(scope="session")
def paths() -> Paths:
    return Paths(os.environ.get("T2V_LAB") or "site")


@pytest.fixture(scope="session")
def site(paths: Paths) -> Site:
    return read_site(REPOSITORY / "inventory", load_scenario("site"))


@pytest.fixture(scope="session")
def edge(site: Site) -> Edge:
    return Edge(site.host("master").address, "t2v.sanchuang.ai")


@pytest.fixture
def machines(paths: Paths, site: Site) -> Iterator[Machines]:
    """The machines; whatever a test pulled is plugged in again after it."""
    hands = Machines(paths, "site", site)
    yield hands
    hands.power_all_on()


@pytest.fixture
def clock() -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"took {time.monotonic() - started:.1f} s")


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    return tmp_path
