"""The NFS server, asked by a client, by somebody whom it does not know, and over the wire."""

import re
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from machines import Machines

EXPORT = "192.168.0.36:/nfs/videos"
MOUNT = f"mount -t nfs -o nfsvers=4.1,retry=0 {EXPORT} /mnt"
SERVICE = "setpriv --reuid 10001 --regid 10001 --clear-groups"


def refused(machines: Machines, host: str, command: str) -> str:
    """What the host says when it refuses the command; fails where it does not."""
    done = machines.lab("ssh", host, command, check=False)
    assert done.returncode != 0, done.stdout.decode()
    return done.stderr.decode()


@pytest.fixture
def mounted(machines: Machines) -> Iterator[Machines]:
    """The machines, the share mounted at /mnt of worker1 without the help of a role."""
    machines.ssh("worker1", MOUNT)
    yield machines
    machines.ssh("worker1", "umount /mnt")


def test_the_service_s_uid_writes_and_what_it_wrote_is_its_own(mounted: Machines) -> None:
    mounted.ssh("worker1", f"{SERVICE} sh -c 'umask 007; echo whole > /mnt/proof'")
    found = mounted.ssh("nfs-server", "stat -c '%u %g %a' /nfs/videos/proof; cat /nfs/videos/proof")
    assert found.decode().split() == ["10001", "10001", "660", "whole"]


def test_root_of_a_client_is_nobody(mounted: Machines) -> None:
    assert "Permission denied" in refused(mounted, "worker1", "touch /mnt/root")
    assert "Permission denied" in refused(mounted, "worker1", "cat /mnt/proof")
    assert "not permitted" in refused(mounted, "worker1", "chown 0:0 /mnt")


def test_another_uid_needs_the_group_that_a_pod_s_supplemental_groups_give_it(
    mounted: Machines,
) -> None:
    other = "setpriv --reuid 1234 --regid 1234"
    denied = refused(mounted, "worker1", f"{other} --clear-groups touch /mnt/other")
    assert "Permission denied" in denied
    mounted.ssh("worker1", f"{other} --groups 10001 touch /mnt/other")
    # setgid: what a member of the group writes stays the group's.
    assert mounted.ssh("nfs-server", "stat -c '%u %g' /nfs/videos/other").split() == [
        b"1234",
        b"10001",
    ]


def test_a_client_outside_of_the_export_is_refused(machines: Machines) -> None:
    """The same machine, asking from an address that is not a node's."""
    machines.ssh(
        "worker1",
        "ip address add 192.168.0.99/32 dev ens33 && "
        "ip route add 192.168.0.36/32 dev ens33 src 192.168.0.99",
    )
    try:
        said = refused(machines, "worker1", MOUNT)
    finally:
        machines.ssh(
            "worker1",
            "ip route del 192.168.0.36/32; ip address del 192.168.0.99/32 dev ens33",
        )
    assert "access denied by server" in said
    machines.ssh("worker1", f"{MOUNT} && umount /mnt")


def test_nothing_listens_but_ssh_and_nfs(machines: Machines) -> None:
    shown = machines.ssh("nfs-server", "ss -Hlntu").decode()
    assert {line.split()[4].rsplit(":", 1)[1] for line in shown.splitlines()} == {"22", "2049"}
    assert all(line.startswith("tcp") for line in shown.splitlines())


def test_nfs_3_is_answered_with_the_versions_that_there_are(machines: Machines) -> None:
    """A NULL call of NFS 3 (RFC 5531): the server accepts it, and knows version 4 alone."""
    call = struct.pack(">10I", 7, 0, 2, 100003, 3, 0, 0, 0, 0, 0)
    with socket.create_connection((machines.address("nfs-server"), 2049), timeout=30) as connection:
        connection.sendall(struct.pack(">I", 0x80000000 | len(call)) + call)
        answer = connection.recv(1024)
    # Mark; id, reply, accepted, verifier (2), PROG_MISMATCH, lowest and highest version.
    assert struct.unpack(">8I", answer[4:36]) == (7, 1, 0, 0, 0, 2, 4, 4)


def metrics(machines: Machines) -> dict[str, int]:
    shown = machines.ssh("nfs-server", "cat /var/lib/prometheus/node-exporter/t2v_nfs.prom")
    lines = [line.split() for line in shown.decode().splitlines() if not line.startswith("#")]
    return {name.removesuffix('{path="/nfs/videos"}'): int(value) for name, value in lines}


def test_a_disk_that_fills_up_is_an_alarm_until_there_is_room(machines: Machines) -> None:
    look = "systemctl start t2v-capacity.service"
    warnings = f"{look}; journalctl -q -u t2v-capacity -p warning -o cat --since '%s'"
    machines.ssh("nfs-server", "systemctl is-active --quiet t2v-capacity.timer")
    before = metrics(machines)  # the timer has looked before us
    assert before["t2v_nfs_export_alarm"] == 0
    assert 200 * 2**20 < before["t2v_nfs_export_size_bytes"] < 256 * 2**20
    since = machines.ssh("nfs-server", "date '+%F %T'").decode().strip()
    try:
        size = before["t2v_nfs_export_free_bytes"] * 9 // 10
        machines.ssh("nfs-server", f"fallocate -l {size} /nfs/videos/large")
        said = machines.ssh("nfs-server", warnings % since).decode()
        full = metrics(machines)
    finally:
        machines.ssh("nfs-server", "rm -f /nfs/videos/large")
    assert re.search(r"/nfs/videos is 9\d % full \(alarm from 85 %\), \d+ MiB are left", said)
    assert full["t2v_nfs_export_alarm"] == 1
    assert full["t2v_nfs_export_used_percent"] > full["t2v_nfs_export_alarm_percent"] == 85
    machines.ssh("nfs-server", look)
    assert metrics(machines)["t2v_nfs_export_alarm"] == 0


def boot_of(machines: Machines, host: str) -> bytes:
    return machines.lab("ssh", host, "cat /proc/sys/kernel/random/boot_id", check=False).stdout


def test_after_a_reboot_an_open_file_is_read_on(mounted: Machines) -> None:
    """The disk is there before the server is, and a client's handle means the same file."""
    # By setpriv: systemd starts nothing for a uid without an account, and this client has none.
    mounted.ssh(
        "worker1",
        f"{SERVICE} sh -c 'echo still here > /mnt/proof' && systemd-run -q --unit=reader {SERVICE}"
        " sh -c 'exec 3</mnt/proof; touch /tmp/open;"
        " until [ -e /tmp/go ]; do sleep 0.2; done; cat <&3'"
        " && until [ -e /tmp/open ]; do systemctl -q is-active reader || exit 1; sleep 0.2; done",
    )
    before = boot_of(mounted, "nfs-server")
    mounted.lab("ssh", "nfs-server", "systemctl reboot", check=False)
    deadline = time.monotonic() + 600
    while boot_of(mounted, "nfs-server") in (b"", before):
        assert time.monotonic() < deadline, "nfs-server did not come back"
        time.sleep(1)
    said = mounted.ssh(
        "worker1",
        "echo 3 > /proc/sys/vm/drop_caches; touch /tmp/go;"
        " while systemctl -q is-active reader; do sleep 0.2; done; journalctl -q -u reader -o cat",
    )
    assert "still here" in said.decode()
    source = mounted.ssh("nfs-server", "findmnt -n -o SOURCE /nfs/videos").decode().strip()
    assert source == "/dev/loop7"
