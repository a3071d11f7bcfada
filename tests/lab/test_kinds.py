"""Machines of every kind: containers and virtual ones with NFS, some with Python 2.7 only."""

import os
from collections.abc import Iterator

import pytest

from commands import Commands

lab = Commands("test-kinds", scenario="kinds").lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[None]:
    lab("down")
    try:
        print(lab("create"))
        yield
    finally:
        lab("down")


def test_python27_machines_have_no_other_python_and_ansible_manages_them() -> None:
    for host in ("master", "worker1"):
        found = lab("ssh", host, "ls /usr/bin | grep '^python'")
        assert found.split() == ["python2.7"]
    shown = lab("playbook", "molecule/kinds/converge.yml")
    assert "master: Python 2.7" in shown
    assert "worker1: Python 2.7" in shown


def test_a_vm_has_its_own_kernel_and_the_documented_address_and_interface() -> None:
    own = lab("ssh", "nfs-server", "uname -r").strip()
    assert own.endswith("cloud-amd64")
    assert own != lab("ssh", "worker2", "uname -r").strip()
    assert own == lab("ssh", "worker1", "uname -r").strip()
    assert "192.168.0.36/24" in lab("ssh", "nfs-server", "ip -4 address show ens33")


def test_a_real_nfs_server_serves_another_machine_and_squashes_root() -> None:
    lab(
        "ssh",
        "nfs-server",
        "mkdir -p /nfs/videos && chmod 777 /nfs/videos && "
        "echo '/nfs/videos 192.168.0.0/24(rw,sync,no_subtree_check)' > /etc/exports && "
        "systemctl restart nfs-server",
    )
    shown = lab(
        "ssh",
        "worker1",
        "mount -t nfs4 192.168.0.36:/nfs/videos /mnt && echo whole > /mnt/proof && "
        "stat --file-system --format %T /mnt && umount /mnt",
    )
    assert shown.strip() == "nfs"
    assert lab("ssh", "nfs-server", "stat -c '%u %s' /nfs/videos/proof").split() == ["65534", "6"]
