"""The container engines, seen from outside: their daemons, a registry, the package manager.

worker1 has Debian's Docker, worker2 Debian's containerd, master Docker from a vendor's
repository. STAND-INS (molecule/container_runtime/files/stand_ins.py): that repository holds
Debian's engine under the vendor's names and versions, and cri-dockerd is a script that takes
its socket and says that it is ready, unless CRI_DOCKERD named a real one to prepare.yml.
"""

import json
import os
import shlex
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import environment
from lab.settings import REPOSITORY, Paths
from machines import Machines

REGISTRY = "192.168.0.33:5001"
STRANGER = "192.168.0.33:5003"
IMAGE = f"{REGISTRY}/ai/pause:lab"
CLEAN = "docker ps -aq | xargs -r docker rm -f"
STATE = Paths(os.environ["T2V_LAB"]).state


def secret(name: str) -> str:
    """A password that the controller made."""
    return (STATE / "controller/secrets" / name).read_text().strip()


def start(
    machines: Machines, playbook: str, host: str, variables: dict[str, object]
) -> subprocess.Popen[str]:
    """A playbook of the scenario on one host, with other variables, in a process group of its own.

    Not by ``lab playbook``: that is running us.
    """
    command = [".venv/bin/ansible-playbook", "-i", "inventory", "-l", host]
    command += [f"molecule/container_runtime/{playbook}.yml"]
    command += ["-e", "@molecule/container_runtime/vars.yml", "-e", f"@{STATE}/vars.yml"]
    return subprocess.Popen(
        machines.inside([*command, "-e", json.dumps(variables)]),
        cwd=REPOSITORY,
        env=dict(environment(Paths(os.environ["T2V_LAB"]))),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def play(machines: Machines, playbook: str, host: str, **variables: object) -> str:
    """What it says, its folded lines made one; the last word is its exit status."""
    process = start(machines, playbook, host, variables)
    output = process.communicate(timeout=300)[0]
    return " ".join(output.replace("''", "'").split()) + f" {process.returncode}"


def login(machines: Machines, host: str, account: str) -> None:
    """Log Docker in to the registry with one of the site's accounts."""
    user = f"t2v-{account}"
    password = secret(f"registry-{account}")
    machines.ssh(host, f"echo {password} | docker login -u {user} --password-stdin {REGISTRY}")


@pytest.fixture(scope="module", autouse=True)
def _published(machines: Machines) -> Iterator[None]:
    """An image of busybox alone, pushed by worker1's Docker over TLS of the private CA."""
    login(machines, "worker1", "push")
    machines.ssh("worker1", CLEAN)
    machines.ssh(
        "worker1",
        "tar -C / -c bin/busybox | docker import --change 'ENTRYPOINT [\"/bin/busybox\"]' "
        f'--change \'CMD ["sleep", "3600"]\' - {IMAGE} && docker push -q {IMAGE}',
    )
    yield
    machines.ssh("worker1", f"docker logout {REGISTRY}; {CLEAN}")


def field(number: int, value: bytes | str | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    content = value.encode() if isinstance(value, str) else value
    assert len(content) < 16384
    size = bytes([len(content) & 127 | 128, len(content) >> 7])
    return bytes([number << 3 | 2]) + size + content


def cri(machines: Machines, host: str, method: str, message: bytes = b"") -> tuple[str, bytes]:
    """Call the CRI of the host's engine. Returns gRPC's message ("" for success), and the answer.

    As the kubelet does: gRPC over the engine's socket; spoken by curl.
    """
    frame = (b"\0" + struct.pack(">I", len(message)) + message).hex()
    said = machines.ssh(
        host,
        f"printf '%b' \"$(echo {frame} | sed 's/../\\\\x&/g')\" | curl -sS --http2-prior-knowledge "
        "--unix-socket /run/containerd/containerd.sock -H 'content-type: application/grpc' "
        "-H 'te: trailers' -D /tmp/head -o /tmp/body --data-binary @- "
        f"http://localhost/runtime.v1.{method} && cat /tmp/head && echo BODY && cat /tmp/body",
    )
    head, _, body = said.partition(b"BODY\n")
    lines = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    return "" if lines["grpc-status"] == "0" else lines["grpc-message"], body[5:]


def pull(machines: Machines, reference: str) -> str:
    """PullImage of containerd's CRI on worker2, with the pull account. Returns its complaint."""
    account = field(1, "t2v-pull") + field(2, secret("registry-pull"))
    message = field(1, field(1, reference)) + field(2, account)
    return cri(machines, "worker2", "ImageService/PullImage", message)[0]


# --- versions and where they come from


def test_an_upgrade_does_not_move_the_vendor_s_packages(machines: Machines) -> None:
    upgrade = "apt-get -s dist-upgrade | grep '^Inst' || true"
    assert machines.ssh("master", upgrade) == b""
    # Which is the pin's doing: later ones are there.
    unpinned = upgrade.replace("-s", "-s -o Dir::Etc::preferencesparts=/srv")
    moved = machines.ssh("master", unpinned).decode()
    assert "docker-ce [5:24.0.2-1~debian.12~bookworm] (5:24.0.9-1" in moved
    assert "containerd.io [1.6.21-1] (1.6.33-1" in moved


def test_the_vendor_s_engine_runs_a_container(machines: Machines) -> None:
    login(machines, "master", "pull")
    said = machines.ssh("master", f"docker run --rm {IMAGE} echo here; docker logout {REGISTRY}")
    assert said.startswith(b"here")


def test_a_key_that_is_not_the_vendor_s_is_refused(machines: Machines) -> None:
    machines.ssh("master", "mv /etc/apt/keyrings/docker.asc /root/kept.asc")
    path = "linux/debian/dists/bookworm/InRelease"
    entry = {"version": "other", "mirror": "docker", "path": path, "sha256": "0" * 64}
    table = json.loads((STATE / "controller/stand-ins.json").read_text()) | {
        "docker_apt_key": entry
    }
    said = play(
        machines, "converge", "master", t2v_artifacts=table, artifact_attempts=1, artifact_delay=0
    )
    assert "checksum" in said
    assert said.endswith(" 2")
    assert b"docker.asc" not in machines.ssh("master", "ls /etc/apt/keyrings")
    machines.ssh("master", "mv /root/kept.asc /etc/apt/keyrings/docker.asc")


# --- what the daemons say


@pytest.mark.parametrize("host", ["worker1", "master"])
def test_docker_manages_groups_as_a_node_s_kubelet_does(machines: Machines, host: str) -> None:
    assert machines.ssh(host, "docker info -f '{{.CgroupDriver}}'").strip() == b"systemd"


def test_a_container_of_docker_is_a_scope_of_systemd(machines: Machines) -> None:
    name = machines.ssh("worker1", f"docker run -d --rm {IMAGE}").decode().strip()
    assert machines.ssh("worker1", f"systemctl is-active docker-{name}.scope").strip() == b"active"


def test_a_pod_of_containerd_is_a_scope_of_systemd(machines: Machines) -> None:
    assert pull(machines, IMAGE) == ""
    metadata = field(1, "probe") + field(2, "uid") + field(3, "default")
    on_host = field(2, field(1, field(1, 2)))  # NamespaceMode NODE: no network plugin is asked
    config = field(1, metadata) + field(8, field(1, "system.slice") + on_host)
    complaint, answer = cri(machines, "worker2", "RuntimeService/RunPodSandbox", field(1, config))
    assert complaint == ""
    name = answer[2:].decode()
    state = machines.ssh("worker2", f"systemctl is-active cri-containerd-{name}.scope")
    cri(machines, "worker2", "RuntimeService/RemovePodSandbox", field(1, name))
    assert state.strip() == b"active"


def test_cri_dockerd_listens_where_the_kubelet_looks(machines: Machines) -> None:
    for host in ("worker1", "master"):
        listening = machines.ssh(host, "ss -Hlx src /run/cri-dockerd.sock")
        assert b"/run/cri-dockerd.sock" in listening
        assert machines.ssh(host, "systemctl is-active cri-docker.service").strip() == b"active"
        assert machines.ssh(host, "systemctl is-enabled cri-docker.socket").strip() == b"enabled"
    assert b"cri-dockerd" not in machines.ssh("worker2", "ls /usr/local/bin")


def test_nothing_listens_to_the_network(machines: Machines) -> None:
    for host in ("worker1", "worker2", "master"):
        listening = machines.ssh(host, "ss -Hltn").decode().split("\n")
        outside = {line.split()[3] for line in listening if line and "127.0.0." not in line}
        assert {address.rsplit(":", 1)[1] for address in outside} == {"22"}


# --- the registry


def test_containerd_pulls_over_the_private_ca(machines: Machines) -> None:
    machines.ssh("worker2", f"ctr -n k8s.io images rm {IMAGE}")
    assert pull(machines, IMAGE) == ""


def test_containerd_asks_the_mirror_first(machines: Machines) -> None:
    # Nobody else has it.
    assert pull(machines, "docker.io/ai/pause:lab") == ""


def test_docker_knows_the_mirror(machines: Machines) -> None:
    said = machines.ssh("worker1", "docker info -f '{{json .RegistryConfig.Mirrors}}'")
    assert json.loads(said) == [f"https://{REGISTRY}/"]


def test_another_ca_is_refused(machines: Machines) -> None:
    refused = "x509: certificate signed by unknown authority"
    docker = machines("worker1").run(f"docker pull {STRANGER}/x")
    assert docker.rc != 0
    assert refused in docker.stderr
    assert "x509" in pull(machines, f"{STRANGER}/x:1")
    for host in ("worker1", "worker2"):
        assert b"x509" not in machines.ssh(host, "cat /etc/ssl/certs/ca-certificates.crt")


# --- logs, changes, killed runs


def test_a_log_is_rotated(machines: Machines) -> None:
    name = "chatter"
    write = (
        "i=0; while [ $i -lt 4000 ]; do echo line $i of some eighty characters; i=$((i+1)); done"
    )
    machines.ssh(
        "worker1",
        f"docker run --name {name} --entrypoint /bin/busybox {IMAGE} sh -c '{write}' > /dev/null",
    )
    path = machines.ssh("worker1", f"docker inspect -f '{{{{.LogPath}}}}' {name}").decode().strip()
    sizes = machines.ssh("worker1", f"stat -c %s {path}*").decode().split()
    assert len(sizes) == 2
    # Counted in lines' worth: 100k and the line that went over.
    assert all(0 < int(size) < 101_000 for size in sizes)
    kept = machines.ssh("worker1", f"docker logs {name} | tail -1")
    assert kept.startswith(b"line 3999 ")


def test_a_container_survives_a_change(machines: Machines) -> None:
    machines.ssh("worker1", f"docker run -d --name survivor {IMAGE} sleep 3600")
    pid = machines.ssh("worker1", "docker inspect -f '{{.State.Pid}}' survivor")
    started = machines.ssh("worker1", "systemctl show docker -p MainPID")
    said = play(machines, "configure", "worker1", container_runtime_daemon_options={"debug": True})
    assert said.endswith(" 0")
    assert machines.ssh("worker1", "docker info -f '{{.Debug}}'").strip() == b"true"
    assert machines.ssh("worker1", "systemctl show docker -p MainPID") != started
    assert machines.ssh("worker1", "docker inspect -f '{{.State.Pid}}' survivor") == pid
    assert machines.ssh("worker1", "docker exec survivor /bin/busybox echo yes").strip() == b"yes"


def test_a_killed_run_is_made_good(machines: Machines) -> None:
    """Killed after the new file and before the restart: the next run restarts all the same."""
    wanted: dict[str, object] = {"container_runtime_daemon_options": {"debug": False}}
    process = start(machines, "configure", "worker1", wanted)
    # Watched there: asked again and again from here, the answer may come after the restart.
    seen = "until grep -q 'debug.*false' /etc/docker/daemon.json; do sleep 0.02; done"
    machines.ssh("worker1", f"timeout 120 sh -c {shlex.quote(seen)}")
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(2)
    assert machines.ssh("worker1", "docker info -f '{{.Debug}}'").strip() == b"true"
    assert play(machines, "configure", "worker1", **wanted).endswith(" 0")
    assert machines.ssh("worker1", "docker info -f '{{.Debug}}'").strip() == b"false"


def test_pods_keep_their_cgroup_driver(machines: Machines) -> None:
    label = "io.kubernetes.pod.uid=1"
    machines.ssh("worker1", f"docker run -d --name pod --label {label} {IMAGE} sleep 3600")
    said = play(machines, "configure", "worker1", container_runtime_cgroup_driver="cgroupfs")
    machines.ssh("worker1", "docker rm -f pod")
    assert (
        "The pods on worker1 run under the cgroup driver systemd, which is to become cgroupfs:"
        " drain the node and run the playbook again"
    ) in said
    assert said.endswith(" 2")


def test_a_cri_dockerd_that_does_not_run_says_why(machines: Machines) -> None:
    """One that does not fit its Docker, in the words of 0.4.3 beside Docker 20.10."""
    program, marker = "/usr/local/bin/cri-dockerd", "/etc/systemd/system/cri-docker.service.applied"
    reason = "docker API version is older than 1.42.0"
    complaint = f'time="2026-01-01T00:00:00Z" level=fatal msg="{reason}"'
    refusing = shlex.quote(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
    machines.ssh("worker1", f"mv {program} {program}.kept && rm -f {marker}")
    try:
        machines.ssh("worker1", f"printf %s {refusing} > {program} && chmod 755 {program}")
        said = play(machines, "configure", "worker1")
    finally:
        machines.ssh("worker1", f"mv {program}.kept {program}")
    assert (
        f"cri-dockerd does not run on worker1: {reason}. Look at `journalctl -u cri-docker` there."
    ) in said
    assert said.endswith(" 2")
    assert play(machines, "configure", "worker1").endswith(" 0")
    assert machines.ssh("worker1", "systemctl is-active cri-docker.service").strip() == b"active"


def test_containerd_has_nvidia_s_runtime_and_a_kubelet_is_told(machines: Machines) -> None:
    wanted = {"container_runtime_nvidia": "true", "container_runtime_nvidia_default": True}
    said = play(machines, "configure", "worker2", **wanted)
    assert "cri_socket: unix:///run/containerd/containerd.sock engine: containerd" in said
    assert "cgroup_driver: systemd" in said
    # What the daemon runs with, not what is in its file.
    info = cri(machines, "worker2", "RuntimeService/Status", field(1, 1))[1]
    assert b'"defaultRuntimeName":"nvidia"' in info
    assert b'"BinaryName":"/usr/bin/nvidia-container-runtime"' in info
    assert b'"SystemdCgroup":true' in info
    assert f'"sandboxImage":"{IMAGE}"'.encode() in info


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"t2v_runtime": "docker", "container_runtime_engine": "containerd"},
            "container_runtime is containerd and t2v_runtime is docker, which runs the service in"
            " Docker on worker1: set container_runtime to docker",
        ),
        (
            {"t2v_mirror": "offline", "container_runtime_source": "vendor"},
            "container_runtime_repository is '' and t2v_mirror is 'offline': set the first one",
        ),
        (
            {"container_runtime_mirrors": {"docker.io": ["http://192.168.0.33"]}},
            "give every registry a list of addresses that begin with https://",
        ),
        (
            {"container_runtime_log_max_size": "20 MB"},
            "container_runtime_log_max_size is '20 MB' on worker1: set it to a number followed by",
        ),
    ],
)
def test_wrong_settings_are_refused(
    machines: Machines, variables: dict[str, object], sentence: str
) -> None:
    assert sentence in play(machines, "converge", "worker1", **variables)


def test_stand_ins_are_named() -> None:
    """Pytest's output says what was not the real thing."""
    print("STAND-IN: the vendor's repository (Debian's engine under Docker's names)")
    print("STAND-IN: cri-dockerd" if not Path(os.environ.get("CRI_DOCKERD", "")).is_file() else "")
