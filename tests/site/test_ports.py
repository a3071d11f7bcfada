"""Which ports of the documented hosts other hosts reach: these, and no other."""

import pytest

from machines import Machines
from ports import forget, scan_all

# The host that watches all the others, a worker, and the master.
OPEN = {
    "prometheus": {
        "master": {22, 80, 9100, 9113, 9121},
        "worker1": {22, 9100, 31080},
        "worker2": {22, 9100, 31080},
        "nfs-server": {22, 9100},
        "harbor": {22, 5001, 5002, 9100},
        "ansible": {22, 9100},
    },
    "worker1": {"master": {22, 80, 6379}, "worker2": {22}},
    "master": {"worker1": {22, 31080}, "worker2": {22, 31080}, "prometheus": {22, 9090, 9093}},
}


# Let in, with nobody there: a GPU's exporter, on workers that have none.
SILENT = {("prometheus", "worker1"): {9400}, ("prometheus", "worker2"): {9400}}


@pytest.mark.parametrize("seen_from", OPEN)
def test_exactly_the_documented_ports_are_open(machines: Machines, seen_from: str) -> None:
    # The one who asks too: what it asked would let an answer in when it is scanned itself.
    for host in (seen_from, *OPEN[seen_from]):
        forget(machines, host)
    expected = {
        host: dict.fromkeys(ports, "open")
        | dict.fromkeys(SILENT.get((seen_from, host), set()), "closed")
        for host, ports in OPEN[seen_from].items()
    }
    found = {
        host: scan_all(machines, seen_from, host, set(ports)) for host, ports in expected.items()
    }
    assert found == expected
