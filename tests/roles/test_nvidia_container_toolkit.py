"""A worker with GPUs brings them into containers; a driver that cannot is named in a sentence.

There is no GPU here: hardware, driver and NVIDIA's packages are stand-ins
(molecule/nvidia_container_toolkit/stand_in/README.md). apt, dockerd and runc are real.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator

import pytest

from machines import Machines
from playbooks import WHOLE, announce, changed, sentences

GPUS = [f"GPU-5eed0000-0000-4000-8000-00000000000{number}" for number in range(2)]
IMAGE = "sanchuang-t2v/gpu-proof:host"
STAND_IN = "/opt/nvidia-stand-in"
PCI = f"{STAND_IN}/sys/bus/pci/devices"
NEEDED = "the service's image needs driver 530.30.02 and CUDA 12.1 or newer"
SOURCE = (
    "Debian non-free (apt install nvidia-driver nvidia-smi) or NVIDIA's CUDA repository"
    " (cuda-drivers)"
)


@pytest.fixture(scope="module", autouse=True)
def announcement(request: pytest.FixtureRequest) -> None:
    """The output says what stood in for what."""
    announce(
        request,
        "STAND-IN: two Tesla T4, nvidia-smi, NVIDIA's repository, its runtime and its hook"
        " (molecule/nvidia_container_toolkit/stand_in); no CUDA ran",
    )


def play(
    machines: Machines, *arguments: str, playbook: str = "playbooks/gpu.yml"
) -> subprocess.CompletedProcess[str]:
    """Run a playbook on the scenario's machines."""
    return machines.run_playbook(playbook, *arguments, **WHOLE)


def gpus_in_container(machines: Machines, *options: str) -> list[str]:
    command = ["docker", "run", "--rm", "--network", "none", *options, IMAGE, "nvidia-smi", "-L"]
    printed = machines("worker1").check_output(shlex.join(command))
    return re.findall(r"UUID: (GPU-\S+)\)", printed)


@pytest.fixture
def worker1(machines: Machines) -> Iterator[Callable[[str], bytes]]:
    """Do something to worker1's GPUs or driver; all is well again after the test."""
    yield lambda command: machines.ssh("worker1", command)
    machines.ssh(
        "worker1",
        f"rm -rf {STAND_IN}/sys {STAND_IN}/proc /etc/nvidia-stand-in && {STAND_IN}/hardware 2",
    )


def test_engine_knows_nvidia_s_runtime_and_has_not_made_it_the_default(machines: Machines) -> None:
    engine = json.loads(machines.ssh("worker1", "docker info --format '{{json .}}'"))
    assert engine["Runtimes"]["nvidia"]["path"] == "/usr/bin/nvidia-container-runtime"
    assert engine["DefaultRuntime"] == "runc"


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        (["--gpus", "all"], GPUS),
        (["--gpus", "1"], GPUS[:1]),
        (["--gpus", "device=1"], GPUS[1:]),
        (["--gpus", f"device={GPUS[1]}"], GPUS[1:]),
        (["--runtime", "nvidia", "--env", "NVIDIA_VISIBLE_DEVICES=all"], GPUS),
        (["--gpus", "all", "--runtime", "nvidia"], GPUS),
    ],
    ids=lambda value: "-".join(value).replace(" ", "-") if "--" in str(value) else "",
)
def test_container_sees_the_gpus_that_it_asks_for(
    machines: Machines, options: list[str], gpus: list[str]
) -> None:
    assert gpus_in_container(machines, *options) == gpus


def test_container_that_asks_for_none_sees_none(machines: Machines) -> None:
    seen = machines("worker1").run(f"docker run --rm --network none {IMAGE} nvidia-smi -L")
    assert seen.rc == 127, "there must be no nvidia-smi in it"


def test_service_s_own_device_request_gets_all_gpus(machines: Machines) -> None:
    done = play(machines, playbook="molecule/nvidia_container_toolkit/service.yml")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"GPU-[\w-]+", sentences(done)[-1]) == GPUS


def test_toolkit_s_configuration_is_toml_with_our_setting_and_the_package_s(
    machines: Machines,
) -> None:
    read = (
        "import json, tomllib;"
        " print(json.dumps(tomllib.load(open('/etc/nvidia-container-runtime/config.toml', 'rb'))))"
    )
    printed = machines("worker1").check_output(f"python3 -c {shlex.quote(read)}")
    tool = json.loads(printed)["nvidia-container-cli"]
    assert tool == {
        "environment": [],
        "ldconfig": "@/sbin/ldconfig",
        "load-kmods": True,
        "no-cgroups": False,
    }


def test_upgrade_does_not_move_the_toolkit(machines: Machines) -> None:
    worker1 = machines("worker1")
    assert "1.99.0-1" in worker1.check_output("apt-cache madison nvidia-container-toolkit")
    assert "nvidia" not in worker1.check_output("apt-get --simulate dist-upgrade")
    worker1.check_output("apt-get install --yes --quiet nvidia-container-toolkit")
    query = (
        "dpkg-query --show --showformat '${Version} ' nvidia-container-toolkit libnvidia-container1"
    )
    assert worker1.check_output(query).split() == ["1.20.0-1", "1.20.0-1"]


def test_index_that_another_key_signed_is_refused(machines: Machines) -> None:
    worker2 = machines("worker2")
    index = f"/srv/nvidia/stable/deb/{worker2.check_output('dpkg --print-architecture')}/InRelease"
    worker2.check_output(f"cp -p {index} /tmp/right && sed -i s/Origin/Label/ {index}")
    try:
        update = machines("worker1").run("apt-get update")
    finally:
        worker2.check_output(f"mv /tmp/right {index}")
    assert "is not signed" in update.stderr or "BADSIG" in update.stderr, update.stderr


def test_persistence_daemon_runs(machines: Machines) -> None:
    state = "systemctl is-active nvidia-persistenced; systemctl is-enabled nvidia-persistenced"
    assert machines("worker1").check_output(state).split() == ["active", "enabled"]


def test_worker_without_a_gpu_is_passed_over_with_a_line(machines: Machines) -> None:
    done = play(machines, "--limit", "worker2")
    assert changed(done) == 0
    assert sentences(done) == ["worker2 has no NVIDIA GPU and is passed over (t2v_gpu: auto)."]
    assert machines("worker2").run("ls /usr/bin | grep nvidia").stdout == ""


def test_worker_without_a_gpu_is_refused_where_one_is_required(machines: Machines) -> None:
    done = play(machines, "--limit", "worker2", "-e", "t2v_gpu=required")
    assert done.returncode != 0
    assert sentences(done) == [
        "worker2 has no NVIDIA GPU and t2v_gpu is 'required': put one in (or pass it through to"
        " this virtual machine), or set t2v_gpu to 'auto' in inventory/group_vars/all/gpu.yml or"
        " for this host alone."
    ]


def test_nothing_is_looked_at_where_no_gpu_is_wanted(
    machines: Machines, worker1: Callable[[str], bytes]
) -> None:
    worker1("echo old > /etc/nvidia-stand-in")
    done = play(machines, "-e", "t2v_gpu=none")
    assert changed(done) == 0
    assert sentences(done) == []


UNLOADED = (
    "(nvidia-smi: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running.)"
)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        pytest.param(
            "rm /usr/bin/nvidia-smi",
            "worker1 has an NVIDIA GPU and no NVIDIA driver (there is no nvidia-smi), and"
            f" {NEEDED}: install it from {SOURCE} and reboot.",
            id="no-driver",
        ),
        pytest.param(
            f"rm /usr/bin/nvidia-smi; ln -sfn ../nouveau {PCI}/0000:05:00.0/driver;"
            f" ln -sfn ../nouveau {PCI}/0000:06:00.0/driver",
            f"worker1's GPU is driven by nouveau, which cannot do CUDA, and {NEEDED}: put nouveau"
            f" on the kernel's blacklist and install it from {SOURCE} and reboot.",
            id="nouveau",
        ),
        pytest.param(
            f"ln -sfn ../vfio-pci {PCI}/0000:05:00.0/driver;"
            f" ln -sfn ../vfio-pci {PCI}/0000:06:00.0/driver",
            "worker1's GPU is held by vfio-pci for a virtual machine: give it back to the host, or"
            " set t2v_gpu to 'none' for this host.",
            id="virtual-machine",
        ),
        pytest.param(
            "echo mismatch > /etc/nvidia-stand-in",
            "worker1's loaded NVIDIA module and its libraries are of different versions, as after"
            " an update of the driver (nvidia-smi: Failed to initialize NVML: Driver/library"
            " version mismatch NVML library version: 535.183): reboot it.",
            id="mismatch",
        ),
        pytest.param(
            f"echo unloaded > /etc/nvidia-stand-in; rm -r {STAND_IN}/proc",
            f"worker1's NVIDIA module is not loaded {UNLOADED}: build it for the running kernel"
            " (dkms status; the kernel's headers must be installed) and run modprobe nvidia, or"
            " reboot.",
            id="module-not-loaded",
        ),
        pytest.param(
            f"echo unloaded > /etc/nvidia-stand-in; rm -r {STAND_IN}/proc;"
            f" mkdir -p {STAND_IN}/sys/firmware/efi/efivars; printf '\\6\\0\\0\\0\\1' >"
            f" {STAND_IN}/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
            "worker1's NVIDIA module is not loaded and Secure Boot is on, which lets only signed"
            f" modules in {UNLOADED}: sign the module and enrol its key (mokutil --import), or"
            " switch Secure Boot off in the firmware, and reboot.",
            id="secure-boot",
        ),
        pytest.param(
            "echo lost > /etc/nvidia-stand-in",
            "nvidia-smi on worker1 fails with status 15 (Unable to determine the device handle for"
            " GPU 0000:05:00.0: GPU is lost. Reboot the system to recover this GPU): look for"
            ' "NVRM" in its kernel log and mend the driver.',
            id="gpu-lost",
        ),
        pytest.param(
            "echo old > /etc/nvidia-stand-in",
            f"worker1 has NVIDIA driver 450.80.02 (CUDA 11.0), and {NEEDED}: install it from"
            f" {SOURCE} and reboot.",
            id="driver-too-old",
        ),
        pytest.param(
            "echo no-cuda > /etc/nvidia-stand-in",
            "worker1 has NVIDIA driver 535.129.03 without CUDA (nvidia-smi shows no CUDA version),"
            f" and {NEEDED}: install the driver's libcuda from {SOURCE}.",
            id="no-cuda",
        ),
        pytest.param(
            "echo low-cuda > /etc/nvidia-stand-in",
            f"worker1 has NVIDIA driver 535.129.03, which offers CUDA 12.0, and {NEEDED}: install"
            f" it from {SOURCE} and reboot.",
            id="cuda-too-old",
        ),
    ],
)
def test_driver_that_cannot_run_the_service_is_refused(
    machines: Machines, worker1: Callable[[str], bytes], fault: str, sentence: str
) -> None:
    worker1(fault)
    done = play(machines, "--limit", "worker1")
    assert done.returncode != 0
    assert sentences(done)[-1] == sentence
    assert "changed=0" in done.stdout


def test_hardening_that_would_take_docker_s_gpus_is_refused(machines: Machines) -> None:
    setting = {"accept-nvidia-visible-devices-envvar-when-unprivileged": False}
    variables = json.dumps({"nvidia_container_toolkit_settings": setting})
    done = play(machines, "--limit", "worker1", "-e", variables)
    assert done.returncode != 0
    assert sentences(done)[-1] == (
        "nvidia_container_toolkit_settings sets"
        " accept-nvidia-visible-devices-envvar-when-unprivileged to false, and Docker asks for"
        " GPUs in that very variable: leave it out on worker1, which runs Docker."
    )


def test_gpus_are_there_after_a_power_cut_and_nothing_is_left_to_do(unplugged: Machines) -> None:
    unplugged.power("off", "worker1")
    unplugged.power("on", "worker1")
    assert gpus_in_container(unplugged, "--gpus", "all") == GPUS
    assert changed(play(unplugged, "--limit", "worker1")) == 0


def test_list_of_the_former_repository_no_longer_stops_apt(machines: Machines) -> None:
    worker1 = machines("worker1")
    old = "/etc/apt/sources.list.d/nvidia-docker.list"
    ours = old.replace("nvidia-docker", "nvidia-container-toolkit")
    worker1.check_output(f"sed 's/ .signed-by[^ ]*//' {ours} > {old}")
    assert "Conflicting values set for option Signed-By" in worker1.run("apt-get update").stderr
    assert changed(play(machines, "--limit", "worker1")) == 1
    worker1.check_output("apt-get update")


def test_newer_driver_is_accepted_and_proved_anew(
    machines: Machines, worker1: Callable[[str], bytes]
) -> None:
    """Drivers from 610 on call their CUDA level otherwise."""
    worker1("echo new > /etc/nvidia-stand-in")
    proof = "cat /var/lib/sanchuang-t2v/gpu-proof"
    before = machines("worker1").check_output(proof)
    assert changed(play(machines, "--limit", "worker1")) > 0
    assert machines("worker1").check_output(proof) != before


@pytest.fixture
def injector(machines: Machines) -> Iterator[Callable[[str], bytes]]:
    """Replace what brings GPUs into containers by a script; forget the last proof."""
    tool = "/usr/bin/nvidia-container-cli"
    machines.ssh("worker1", f"cp -p {tool} {tool}.real")
    proof = "/var/lib/sanchuang-t2v/gpu-proof"
    yield lambda script: machines.ssh(
        "worker1", f"printf '#!/bin/sh\\n%s\\n' {shlex.quote(script)} > {tool}; rm -f {proof}"
    )
    machines.ssh("worker1", f"mv {tool}.real {tool}")


def test_containers_that_do_not_see_the_gpus_are_noticed(
    machines: Machines, injector: Callable[[str], bytes]
) -> None:
    injector("exit 0")
    none = play(machines, "--limit", "worker1")
    injector('exec /usr/bin/nvidia-container-cli.real configure --device=0 "$5" "$6"')
    one = play(machines, "--limit", "worker1")
    for done, inside in (
        (none, "inside (status 127)"),
        (one, f"inside (status 0): GPU 0: Tesla T4 (UUID: {GPUS[0]}). Repeat"),
    ):
        assert done.returncode != 0
        said = sentences(done)[-1]
        assert said.startswith("A container on worker1 does not see its GPUs.")
        assert inside in said
