"""The mounted share: who may write, what a lost server costs a writer, what a boot does."""

import hashlib
import re
import time
from itertools import pairwise

from lab.settings import REPOSITORY
from machines import Machines

SHARE = "/shared/videos"
SERVICE = "setpriv --reuid 10001 --regid 10001 --clear-groups"

# Numbered records, each on the server's disk before the next; when each was, on this disk.
WRITER = f"""
import os, time
out = os.open("{SHARE}/records", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
log = open("/tmp/writer.log", "w")
number = 0
while not os.path.exists("/tmp/writer.stop"):
    os.write(out, ("%08d\\n" % number).encode("ascii"))
    os.fsync(out)
    log.write("%d %d %.3f\\n" % (number, os.getpid(), time.time()))
    log.flush()
    number += 1
    time.sleep(0.02)
os.close(out)
"""


def refused(machines: Machines, host: str, command: str) -> str:
    """What the host says when it refuses the command; fails where it does not."""
    done = machines.lab("ssh", host, command, check=False)
    assert done.returncode != 0, done.stdout.decode()
    return done.stderr.decode()


def boot_of(machines: Machines, host: str) -> bytes:
    return machines.lab("ssh", host, "cat /proc/sys/kernel/random/boot_id", check=False).stdout


def reboot(machines: Machines, host: str) -> None:
    """As an operator does; ends when the host lets us in again."""
    before = boot_of(machines, host)
    machines.lab("ssh", host, "systemctl reboot", check=False)
    deadline = time.monotonic() + 600
    while boot_of(machines, host) in (b"", before):
        assert time.monotonic() < deadline, f"{host} did not come back"
        time.sleep(1)


def records(machines: Machines) -> int:
    return int(machines.ssh("worker1", "wc -l < /tmp/writer.log"))


def wait_for_records(machines: Machines, number: int) -> None:
    deadline = time.monotonic() + 480
    while records(machines) < number:
        assert time.monotonic() < deadline, f"the writer stands at {records(machines)}"
        time.sleep(1)


def test_the_host_has_no_python_but_2_7_and_the_share_is_mounted(machines: Machines) -> None:
    found = machines.ssh("worker1", "ls /usr/bin | grep '^python'; findmnt -nr " + SHARE).decode()
    python, mount = found.splitlines()
    assert python == "python2.7"
    path, source, kind, options = mount.split()
    assert (path, source, kind) == (SHARE, "192.168.0.36:/nfs/videos", "nfs4")
    assert {"hard", "vers=4.1", "lookupcache=pos", "nosuid", "nodev", "noexec"} <= set(
        options.split(",")
    )


def test_the_service_s_uid_writes_and_root_does_not(machines: Machines) -> None:
    machines.ssh("worker1", f"{SERVICE} sh -c 'echo whole > {SHARE}/proof'")
    found = machines.ssh("nfs-server", "stat -c '%u %g' /nfs/videos/proof; cat /nfs/videos/proof")
    assert found.decode().split() == ["10001", "10001", "whole"]
    assert "Permission denied" in refused(machines, "worker1", f"touch {SHARE}/root")
    assert "Permission denied" in refused(machines, "worker1", f"cat {SHARE}/proof")


def test_a_writer_outlives_the_server_s_power_cut_and_reboot_and_no_byte_is_lost(
    unplugged: Machines,
) -> None:
    machines = unplugged
    machines.ssh(
        "worker1",
        f"{SERVICE} rm -f {SHARE}/records; rm -f /tmp/writer.*;"
        f" cat > /usr/local/bin/writer.py <<'END'\n{WRITER}\nEND\n"
        "systemd-run -q --unit=writer --uid=10001 python2.7 /usr/local/bin/writer.py",
    )
    wait_for_records(machines, 20)
    machines.power("off", "nfs-server")
    cut = records(machines)
    time.sleep(3)
    assert records(machines) <= cut + 1, "it wrote on without a server"
    machines.power("on", "nfs-server")
    wait_for_records(machines, cut + 20)
    reboot(machines, "nfs-server")
    wait_for_records(machines, records(machines) + 20)
    machines.ssh(
        "worker1",
        "touch /tmp/writer.stop; while systemctl -q is-active writer; do sleep 0.2; done",
    )

    log = [line.split() for line in machines.ssh("worker1", "cat /tmp/writer.log").splitlines()]
    expected = "".join(f"{number:08d}\n" for number in range(len(log))).encode()
    digest = hashlib.sha256(expected).hexdigest()
    assert [int(number) for number, _, _ in log] == list(range(len(log)))
    assert len({process for _, process, _ in log}) == 1, "it was started again"
    here = machines.ssh("worker1", f"{SERVICE} sha256sum {SHARE}/records").decode().split()[0]
    there = machines.ssh("nfs-server", "sha256sum /nfs/videos/records").decode().split()[0]
    assert (here, there) == (digest, digest)

    times = [float(when) for _, _, when in log]
    pauses = sorted(after - before for before, after in pairwise(times))[-2:]
    assert pauses[0] > 3, "the server was never away"
    shown = " and ".join(f"{pause:.0f} s" for pause in pauses)
    print(f"{len(log)} records, pauses of {shown}, sha256 {digest} on both sides")


def test_users_of_the_share_are_found_also_in_a_container_s_mounts(machines: Machines) -> None:
    """As the role looks before it unmounts: an open file, and a mount of a container's own."""
    script = (REPOSITORY / "roles/nfs_client/files/users.sh").read_text()
    users = f"sh -s -- {SHARE} 192.168.0.36:/nfs/videos <<'END'\n{script}\nEND"
    assert machines.ssh("worker1", users) == b""
    machines.ssh(
        "worker1",
        f"systemd-run -q --unit=opener --uid=10001 sh -c 'exec 3<{SHARE}/proof; sleep 600; :'",
    )
    machines.ssh(
        "worker1",
        "systemd-run -q --unit=container unshare --mount --propagation private tail -f /dev/null",
    )
    try:
        time.sleep(2)
        found = machines.ssh("worker1", users).decode()
    finally:
        machines.ssh("worker1", "systemctl stop opener container")
    assert re.search(r"^sh\(\d+\)$", found, re.MULTILINE)
    assert re.search(r"^tail\(\d+\)$", found, re.MULTILINE)


def test_a_boot_without_the_server_waits_for_it_and_lets_us_in_meanwhile(
    unplugged: Machines,
) -> None:
    """And a container engine (a stand-in: a unit of its name) starts with the share, not before."""
    machines = unplugged
    print("stand-in: docker.service is a unit that says whether the share is mounted")
    stand_in = (
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        f"ExecStart=/bin/sh -c 'findmnt -nr -o FSTYPE {SHARE} > /var/tmp/engine'\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    machines.ssh(
        "worker1",
        f"cat > /etc/systemd/system/docker.service <<'END'\n{stand_in}END\n"
        "rm -f /var/tmp/engine; systemctl -q enable docker.service",
    )
    machines.power("off", "nfs-server")
    reboot(machines, "worker1")
    nothing = f"ls {SHARE}; findmnt -n {SHARE}; ls /var/tmp/engine 2>/dev/null; true"
    assert machines.ssh("worker1", nothing) == b""
    assert "Permission denied" in refused(machines, "worker1", f"{SERVICE} touch {SHARE}/lost")
    machines.power("on", "nfs-server")
    deadline = time.monotonic() + 360
    while not machines.ssh("worker1", "ls /var/tmp/engine 2>/dev/null; true"):
        assert time.monotonic() < deadline, "the share was not mounted"
        time.sleep(1)
    shown = machines.ssh("worker1", f"cat /var/tmp/engine; {SERVICE} cat {SHARE}/proof")
    assert shown.decode().split() == ["nfs4", "whole"]
