"""Tests of one role from outside of it, on the machines of its molecule scenario.

``molecule test -s <role>`` runs them as its verify step, inside the lab's network; on
machines that stand (``molecule converge -s <role>``), from the top of the repository:
``PYTHONPATH=molecule .venv/bin/python -m lab --name molecule-<role> --scenario <role> run
env T2V_LAB=molecule-<role> MOLECULE_SCENARIO_NAME=<role>
.venv/bin/python -m pytest tests/roles/test_<role>.py``.
"""

import os
from collections.abc import Iterator

import pytest

from lab.hosts import read_site
from lab.settings import REPOSITORY, Paths, load_scenario
from machines import Machines


@pytest.fixture(scope="session")
def machines() -> Machines:
    """The machines of the scenario; ``machines("worker1")`` is testinfra's view of one."""
    scenario = os.environ["MOLECULE_SCENARIO_NAME"]
    site = read_site(REPOSITORY / "inventory", load_scenario(scenario))
    return Machines(Paths(os.environ["T2V_LAB"]), scenario, site)


@pytest.fixture
def unplugged(machines: Machines) -> Iterator[Machines]:
    """The machines; whatever a test unplugs is plugged in again after it."""
    yield machines
    machines.power_all_on()
