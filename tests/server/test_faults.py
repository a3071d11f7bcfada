"""Faults into a running server: one round of each kind; ``make test-all`` runs a hundred.

More, or one again, by hand: ``python tests/server/faults.py --store redis --rounds 100 --seed 1``.
"""

from __future__ import annotations

import os
import shutil

import faults
import pytest

ROUNDS = int(os.environ.get("T2V_FAULT_ROUNDS", "0"))  # 0: each kind once
SEED = int(os.environ.get("T2V_FAULT_SEED", "1"))


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_no_accepted_job_is_lost_or_made_twice(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() != 0 or shutil.which("fsfreeze") is None:
        assert not os.environ.get("CI"), "the faults of disks need root, mkfs.ext4 and fsfreeze"
        pytest.skip("the faults of disks need root, mkfs.ext4 and fsfreeze")
    kinds = faults.REDIS_FAULTS if store == "redis" else faults.FAULTS

    tally = faults.run(store, ROUNDS or len(kinds), SEED)

    with capsys.disabled():
        print(f"\n{store}\n{tally.table()}")
    assert set(tally.rounds) == set(kinds)
    assert sum(outcomes["completed"] for outcomes in tally.outcomes.values()) > 0
