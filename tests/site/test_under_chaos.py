"""Three rounds of chaos, the quickest ones; ``make chaos`` has every kind of fault."""

import os

import pytest

from chaos import run
from chaos_plan import fault_of, verdict
from lab.hosts import Site
from lab.settings import Paths

pytestmark = pytest.mark.skipif(
    "T2V_TEST_ALL" not in os.environ, reason="`make test-all` runs it: it takes minutes"
)
SEEDS = {0: "engine killed", 3: "job store killed", 7: "edge killed"}


def test_no_job_is_lost_or_made_twice_when_what_serves_it_is_killed(
    paths: Paths, site: Site
) -> None:
    assert {seed: fault_of(seed) for seed in SEEDS} == SEEDS
    rounds = list(run(paths, site, tuple(SEEDS), converge=False))
    assert [one.sentence for result in rounds for one in result.broken] == [], verdict(rounds)
