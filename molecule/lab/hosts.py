"""The machines of a lab: names and addresses as ``inventory/`` has them, and nowhere else."""

import ipaddress
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.settings import REPOSITORY, Scenario


@dataclass(frozen=True)
class Host:
    """One machine: its inventory name, address, groups and the kind of machine to build."""

    name: str
    address: str
    groups: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Site:
    """The inventory as the lab needs it."""

    hosts: tuple[Host, ...]
    subnet: ipaddress.IPv4Network
    gateway: ipaddress.IPv4Address
    interface: str

    def host(self, name: str) -> Host:
        """The host of this name. Raises LabError with the names that exist."""
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise LabError(f"there is no host '{name}' in this lab; take one of {names}")


def _ansible_inventory(inventory: Path) -> dict[str, object]:
    command = [
        str(Path(sys.executable).with_name("ansible-inventory")),
        "-i",
        str(inventory),
        "--list",
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        detail = next((line for line in lines if "duplicate" in line), lines[-1] if lines else "")
        raise LabError(f"{inventory} cannot be read as an inventory: {detail.strip()}")
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


def read_site(inventory: Path, scenario: Scenario) -> Site:
    """Read names, addresses, subnet, gateway and interface of the site.

    Raises LabError for what would not make a network: an address twice, outside the
    subnet, equal to the gateway, or a host of the scenario that the inventory lacks.
    """
    data = _ansible_inventory(inventory)
    meta = data.get("_meta")
    hostvars = meta.get("hostvars", {}) if isinstance(meta, dict) else {}
    groups: dict[str, list[str]] = {}
    for group, content in data.items():
        if isinstance(content, dict):
            for name in content.get("hosts", ()):
                groups.setdefault(name, []).append(group)
    if not groups:
        raise LabError(f"{inventory} names no host; the lab builds the hosts of the inventory")
    first = hostvars.get(min(groups), {})
    missing = [key for key in ("t2v_subnet", "t2v_gateway", "t2v_interface") if key not in first]
    if missing:
        raise LabError(f"{inventory} does not set {', '.join(missing)} (group_vars/all/site.yml)")
    try:
        subnet = ipaddress.IPv4Network(first["t2v_subnet"])
        gateway = ipaddress.IPv4Address(first["t2v_gateway"])
    except ValueError as error:
        raise LabError(
            f"t2v_subnet or t2v_gateway in {inventory} (group_vars/all/site.yml) is wrong: {error}"
        ) from error
    if gateway not in subnet:
        raise LabError(
            f"t2v_gateway {gateway} in {inventory} is outside of t2v_subnet {subnet}; correct one"
        )
    unknown = sorted((set(scenario.hosts) | set(scenario.kinds)) - set(groups))
    if unknown:
        raise LabError(
            f"{scenario.directory.name}/lab.yml names {', '.join(unknown)}, "
            f"which {inventory} does not have"
        )

    taken: dict[ipaddress.IPv4Address, str] = {gateway: "the gateway (t2v_gateway)"}
    hosts = []
    for name in sorted(groups):
        text = str(hostvars.get(name, {}).get("ansible_host", name))
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError as error:
            raise LabError(
                f"host {name} in {inventory} has '{text}' as its address, which is not an "
                "IPv4 address; set its ansible_host"
            ) from error
        if address in taken:
            raise LabError(
                f"address {address} is given twice in {inventory}: to {taken[address]} and to "
                f"{name}; give one of them another ansible_host"
            )
        if address not in subnet or address in (
            subnet.network_address,
            subnet.broadcast_address,
        ):
            raise LabError(
                f"host {name} has address {address}, outside of t2v_subnet {subnet} or not for "
                f"hosts; correct ansible_host or t2v_subnet in {inventory}"
            )
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", name):
            raise LabError(
                f"'{name}' in {inventory} cannot be a machine's host name; use letters, digits "
                "and hyphens"
            )
        taken[address] = name
        if not scenario.hosts or name in scenario.hosts:
            kind = scenario.kinds.get(name, "debian12")
            hosts.append(Host(name, str(address), tuple(groups[name]), kind))
    return Site(tuple(hosts), subnet, gateway, str(first["t2v_interface"]))
