"""What of a host's ports other hosts reach: nmap, in the network of another machine."""

import subprocess
from xml.etree import ElementTree

from machines import Machines


def forget(machines: Machines, host: str) -> None:
    """Let the host soon forget whom it asked: answers to a scan of its own would be let in."""
    command = ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_syn_sent=1"]
    subprocess.run(machines.in_network_of(host, command), check=True)


def reachable(machines: Machines, seen_from: str, host: str, expected: set[int]) -> set[int]:
    """The TCP ports of ``host`` whose packets pass, whether or not somebody listens."""
    return set(scan_all(machines, seen_from, host, expected))


def scan_all(machines: Machines, seen_from: str, host: str, expected: set[int]) -> dict[int, str]:
    """State (open, closed) of all ports that answer.

    A busy machine loses packets of so fast a scan: the expected are asked again, patiently.
    """
    found = scan(machines, seen_from, host, "-", "-T5", "--min-rate", "20000", "--max-retries", "2")
    lost = expected - set(found)
    return found | (scan(machines, seen_from, host, ",".join(map(str, lost))) if lost else {})


def scan(machines: Machines, seen_from: str, host: str, ports: str, *pace: str) -> dict[int, str]:
    """State (open, closed) of those of the ports that answer at all."""
    command = ["nmap", "-sS", "-n", "-Pn", "-p", ports, *pace, "-oX", "-"]
    command.append(machines.address(host))
    shown = subprocess.run(
        machines.in_network_of(seen_from, command), capture_output=True, text=True, check=True
    ).stdout
    answer = ElementTree.fromstring(shown)
    found = {}
    for port in answer.iter("port"):
        state = port.find("state")
        assert state is not None
        found[int(port.attrib["portid"])] = state.attrib["state"]
    # Many of one state are counted instead: they may only be the filtered ones.
    assert {one.attrib["state"] for one in answer.iter("extraports")} <= {"filtered"}, shown
    return {port: state for port, state in found.items() if state != "filtered"}
