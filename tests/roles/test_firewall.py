"""The firewall, looked at from other hosts: nmap in the network of another machine."""

import time
from collections.abc import Iterator

import pytest

from machines import Machines
from ports import forget, reachable, scan

ARTICLE = ("-e", "base_firewall=disabled")
ELSEWHERE = (
    "-e",
    '{"t2v_admin_networks": ["10.99.0.0/24"], "base_firewall_confirm_seconds": 30}',
)
PLAYBOOK = "molecule/firewall/converge.yml"
# A port that no rule names, with somebody listening.
STRAY = 12345
HOSTS = ("master", "worker1", "harbor")


def is_open(machines: Machines, seen_from: str, host: str, port: int) -> bool:
    return scan(machines, seen_from, host, str(port)).get(port) == "open"


def listen(machines: Machines, host: str) -> None:
    unit = f"systemd-run --quiet --unit=stray python3 -m http.server {STRAY}"
    machines.ssh(host, f"systemctl is-active --quiet stray || {unit}")
    forget(machines, host)


@pytest.fixture(scope="module", autouse=True)
def listeners(machines: Machines) -> Iterator[None]:
    for host in HOSTS:
        listen(machines, host)
    yield
    for host in HOSTS:
        machines.ssh(host, "systemctl stop stray || true")


def run_playbook(machines: Machines, *options: str) -> str:
    return machines.play(PLAYBOOK, *options)[1]


@pytest.mark.parametrize(
    ("seen_from", "host", "ports"),
    [
        # An admin's network is the whole subnet here, so SSH and the registry are open to all.
        ("worker1", "master", {22, 80, 6379}),
        ("harbor", "master", {22, 80}),
        ("master", "worker1", {22, 31080}),
        ("harbor", "worker1", {22}),
        ("worker1", "harbor", {22, 5001}),
    ],
)
def test_exactly_the_documented_ports_let_a_packet_in(
    machines: Machines, seen_from: str, host: str, ports: set[int]
) -> None:
    assert reachable(machines, seen_from, host, ports) == ports


def test_a_port_that_address_translation_opens_is_filtered(machines: Machines) -> None:
    """As Docker and kube-proxy publish: translated in prerouting, never seen by an input rule."""
    rules = (
        "add table ip published; add chain ip published pre "
        "{ type nat hook prerouting priority -100; }; "
        "add rule ip published pre tcp dport { 8081, 31080 } redirect to :12345"
    )
    machines.ssh("worker1", f"nft '{rules}'")
    try:
        assert is_open(machines, "master", "worker1", 31080)
        assert not scan(machines, "master", "worker1", "8081")
        assert not scan(machines, "harbor", "worker1", "8081,31080")
    finally:
        machines.ssh("worker1", "nft delete table ip published")


def test_rules_survive_a_reboot_and_a_flush_is_mended(machines: Machines) -> None:
    machines.power("off", "master")
    machines.power("on", "master")
    assert reachable(machines, "harbor", "master", {22, 80}) == {22, 80}
    machines.ssh("master", "nft flush ruleset")
    assert "changed=" in run_playbook(machines, "--limit", "master")
    listen(machines, "master")
    assert reachable(machines, "harbor", "master", {22, 80}) == {22, 80}


@pytest.mark.parametrize("host", ["master", "harbor"])
def test_rules_that_lock_the_controller_out_are_taken_back(machines: Machines, host: str) -> None:
    said = run_playbook(machines, "--limit", host, *ELSEWHERE)
    assert "network to t2v_admin_networks in inventory" in said, said
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if machines.lab("ssh", host, "true", check=False).returncode == 0:
            break
        time.sleep(1)
    assert scan(machines, "worker1", host, f"22,{STRAY}") == {22: "open"}
    said = run_playbook(machines, "--limit", host)
    assert "changed=0" in said, said


def test_an_unknown_source_is_refused_by_name(machines: Machines) -> None:
    rule = '{"base_firewall_extra_rules": [{"name": "x", "to": ["all"], "from": ["wrokers"]}]}'
    said = run_playbook(machines, "--limit", "master", "-e", rule)
    assert "wrokers" in said and "name a group of the inventory" in said


@pytest.mark.parametrize("host", ["master", "harbor"])
def test_disabled_is_the_article_s_state_and_managed_comes_back(
    machines: Machines, host: str
) -> None:
    run_playbook(machines, "--limit", host, *ARTICLE)
    assert is_open(machines, "worker1", host, STRAY)
    said = run_playbook(machines, "--limit", host, *ARTICLE)
    assert "changed=0" in said, said
    run_playbook(machines, "--limit", host)
    assert not scan(machines, "worker1", host, str(STRAY))
