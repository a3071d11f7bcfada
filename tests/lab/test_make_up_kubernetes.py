"""``make up RUNTIME=kubernetes BUNDLE=…``: from bare hosts to a video out of a pod; in this order.

BUNDLE names a bundle without an ingress (docs/bundle.md); without one all is skipped and says so.
The GPUs are stand-ins, which `make up` names.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import Kubectl, wait
from commands import Commands
from host_state import snapshot
from lab.settings import Paths
from site_runs import HOSTS, unchanged

NAME = "test-cluster"
BUNDLE = os.environ.get("BUNDLE", "")
LAB = Commands(NAME, make_seconds=2400)
make, lab = LAB.make, LAB.lab
PATHS = Paths(NAME)
kubectl = Kubectl(PATHS, BUNDLE, "t2v")
URL = "http://t2v.sanchuang.ai:31080"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(not BUNDLE, reason="BUNDLE names no directory: no cluster was made"),
]


def on(host: str, command: str) -> str:
    """What the command prints on the host."""
    return lab("ssh", host, command)


def ask_all(
    requests: list[tuple[str, dict[str, Any] | None]], seconds: int = 60
) -> list[dict[str, Any]]:
    """The service's answers to a user on the ansible host: paths, and what is sent there."""
    commands = []
    for path, body in requests:
        data = f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'" if body else ""
        commands.append(f"curl -sS -m {seconds} -w '\\n' {data} '{URL}{path}'")
    said = on("ansible", " && ".join(commands))
    return [json.loads(line) for line in said.splitlines() if line]


def ask(path: str, seconds: int = 60) -> dict[str, Any]:
    """One such answer."""
    return ask_all([(path, None)], seconds)[0]


def available() -> bool:
    deployment = kubectl.get("deployment", "wan22-t2v-deployment")
    return bool(deployment["status"].get("availableReplicas") == 2)


@pytest.fixture(scope="module")
def before() -> Iterator[dict[str, list[str]]]:
    make("down")
    yield snapshot()
    make("down")


@pytest.fixture(scope="module")
def first(before: dict[str, list[str]]) -> subprocess.CompletedProcess[str]:
    return make("up", "RUNTIME=kubernetes", f"BUNDLE={BUNDLE}")


def test_without_a_bundle_it_is_refused(before: dict[str, list[str]]) -> None:
    refused = make("up", "RUNTIME=kubernetes")
    assert refused.returncode != 0
    assert "RUNTIME=kubernetes needs BUNDLE=<directory>" in refused.stderr


def test_it_ends_with_a_video_that_a_pod_made(first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0
    assert "STAND-IN: worker1 announces one nvidia.com/gpu, which is none" in first.stdout
    end = first.stdout[first.stdout.index("Time per stage:") :]
    assert "Video generated at /shared/videos/" in end
    assert "ffprobe: codec=h264 size=64x64 frames=9" in end
    said = on("ansible", f"curl -sS -m 120 '{URL}/generate?prompt=a%20dog%20running'")
    assert said.startswith("Video generated at /shared/videos/")


def test_each_gpu_has_one_pod_and_there_can_be_no_more(
    first: subprocess.CompletedProcess[str],
) -> None:
    slots = {
        node["metadata"]["name"]: node["status"]["allocatable"].get("nvidia.com/gpu")
        for node in kubectl.get("nodes")["items"]
    }
    assert slots == {"master": None, "worker1": "1", "worker2": "1"}
    pods = kubectl.get("pods", "-l", "app=wan22-t2v")["items"]
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["worker1", "worker2"]
    assert {
        pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods
    } == {"1"}
    (scaler,) = kubectl.get("hpa")["items"]
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 2)


def test_the_same_again_changes_nothing_and_another_runtime_is_refused(
    first: subprocess.CompletedProcess[str],
) -> None:
    again = make("up")
    assert again.returncode == 0
    assert unchanged(again.stdout) >= HOSTS
    refused = make("up", "RUNTIME=docker")
    assert refused.returncode != 0
    assert "stands with kubernetes, and docker is asked for; `make down` first" in refused.stderr


def test_a_pod_killed_while_it_generates_loses_no_job(
    first: subprocess.CompletedProcess[str],
) -> None:
    (victim, *_) = kubectl.get("pods", "-l", "app=wan22-t2v")["items"]
    # Longer than a look at them, and than the two seconds that a kubelet leaves even to a pod that
    # is killed, where two pods and the cluster share two processors.
    wanted = {
        "model": "tiny",
        "num_inference_steps": 1000,
        "num_frames": 121,
        "size": "192x192",
    }
    prompts = [{**wanted, "prompt": f"a dog, {number}"} for number in range(4)]
    jobs = [job["id"] for job in ask_all([("/v1/videos", prompt) for prompt in prompts])]

    def states() -> list[dict[str, Any]]:
        return ask_all([(f"/v1/videos/{job}", None) for job in jobs])

    seen: list[list[int]] = []

    def both_have_just_begun() -> bool:
        progress = [job["progress"] for job in states() if job["status"] == "in_progress"]
        seen.append(progress)
        return len(progress) == 2 and max(progress) < 50

    assert wait(both_have_just_begun, 120), (seen, states())
    kubectl("delete", "pod", victim["metadata"]["name"], "--grace-period=0", "--force")
    assert wait(lambda: {job["status"] for job in states()} == {"completed"}, 480), states()
    done = states()
    # One of them was taken a second time, and none was made twice.
    assert max(job["attempts"] for job in done) == 2, done
    files = [job["file_name"] for job in done]
    assert len(set(files)) == len(jobs)
    there = set(on("worker1", "ls /shared/videos").split())
    assert set(files) <= there
    assert wait(available)


def test_a_node_that_loses_its_power_comes_back(first: subprocess.CompletedProcess[str]) -> None:
    lab("power", "off", "worker2")
    # Until the cluster takes it for dead, every second request goes there; then none does.
    assert wait(lambda: all(ask("/v1/models", seconds=5)["data"] for _ in range(6)))
    lab("power", "on", "worker2")
    assert wait(available)
    said = on("ansible", f"curl -sS -m 120 '{URL}/generate?prompt=back%20again'")
    assert said.startswith("Video generated at /shared/videos/")


def test_add_worker_goes_over_a_site_that_has_all_of_them(
    first: subprocess.CompletedProcess[str],
) -> None:
    done = make("playbook", "PLAYBOOK=playbooks/add_worker.yml")
    assert done.returncode == 0
    assert unchanged(done.stdout) >= HOSTS


def test_down_leaves_the_machine_as_it_was(
    before: dict[str, list[str]], first: subprocess.CompletedProcess[str]
) -> None:
    assert make("down").returncode == 0
    after = snapshot()
    for what, entries in before.items():
        assert after[what] == entries, what
    assert not Path("/var/lib/t2v-lab", NAME).exists()
