"""Which ports of the documented hosts other hosts reach: these, and no other."""

import pytest

from machines import Machines
from ports import forget, scan

# A host that nothing is open to but what is open to all, a worker, and the master.
OPEN = {
    "prometheus": {
        "master": {22, 80},
        "worker1": {22},
        "worker2": {22},
        "nfs-server": {22},
        "harbor": {22, 5001},
        "ansible": {22},
    },
    "worker1": {"master": {22, 80, 6379}, "worker2": {22}},
    "master": {"worker1": {22, 31080}, "worker2": {22, 31080}, "prometheus": {22}},
}


@pytest.mark.parametrize("seen_from", OPEN)
def test_exactly_the_documented_ports_are_open(machines: Machines, seen_from: str) -> None:
    found = {}
    for host in OPEN[seen_from]:
        forget(machines, host)
        found[host] = scan(machines, seen_from, host, "-")
    assert found == {host: dict.fromkeys(ports, "open") for host, ports in OPEN[seen_from].items()}
