"""What ansible-playbook says at the end of a run of the whole site."""

import re

HOSTS = {"ansible", "harbor", "master", "nfs-server", "prometheus", "worker1", "worker2"}


def unchanged(output: str) -> set[str]:
    """The hosts of the recap. Fails where one was changed, failed or was out of reach."""
    found = set()
    for host, counts in re.findall(r"^(\S+)\s+: (ok=.*)$", output, re.MULTILINE):
        numbers = dict(re.findall(r"(\w+)=(\d+)", counts))
        assert (numbers["changed"], numbers["failed"], numbers["unreachable"]) == ("0",) * 3, host
        found.add(host)
    return found
