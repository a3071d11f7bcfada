"""The role against a real API server: applied, applied again, changed, refused, pruned, taken back.

The tests tell one story, in their order. Without the programs (``KUBEBUILDER_ASSETS``) all of them
are skipped and say so.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import control_plane
from conftest import ansible_playbook
from control_plane import Cluster

ABSENT = control_plane.missing(control_plane.NEEDED)
pytestmark = pytest.mark.skipif(
    bool(ABSENT),
    reason=f"nothing is applied to a real API server: {' and '.join(ABSENT)} not in"
    f" {control_plane.assets()}; set KUBEBUILDER_ASSETS to a directory with them",
)

REFERENCE = "192.168.0.34:5001/ai/wan2.2-t2v-5b:v1"


class Site:
    """The deploy playbook, with settings that stay as they are until a test changes them."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.settings: dict[str, Any] = {
            "t2v_runtime": "kubernetes",
            "t2v_kubeconfig": str(cluster.kubeconfig),
            "t2v_state_dir": str(directory),
            "t2v_deploy_redis_dir": str(directory / "redis"),
            "t2v_deploy_wait": cluster.controllers,
            "t2v_deploy_rollout_seconds": 60,
            # The directory of the jobs is made on worker1.
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
        }
        self.publish("0")

    def publish(self, digit: str) -> None:
        """Record an image as the role t2v_image does."""
        digest = "sha256:" + digit.ljust(64, "0")
        (self.directory / "image.json").write_text(
            json.dumps(
                {
                    "reference": REFERENCE,
                    "digest": digest,
                    "image": f"{REFERENCE.rsplit(':', 1)[0]}@{digest}",
                }
            )
        )

    def deploy(self, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        self.settings |= changes
        return ansible_playbook(
            *("-i", "inventory/", "playbooks/deploy.yml", "--diff", *arguments),
            *("-e", json.dumps(self.settings)),
        )

    def deployed(self, *arguments: str, **changes: Any) -> int:
        """Deploy, which must work; returns how many tasks changed something."""
        done = self.deploy(*arguments, **changes)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        found = re.search(r"localhost\s+: ok=\d+\s+changed=(\d+)", done.stdout)
        assert found
        return int(found[1])

    def refused(self, **changes: Any) -> str:
        """Deploy with changes for once, which must fail; returns the last message."""
        kept = dict(self.settings)
        done = self.deploy(**changes)
        self.settings = kept
        assert done.returncode != 0, done.stdout[-3000:]
        messages = re.findall(r'"msg": "((?:[^"\\]|\\.)*)"', done.stdout)
        return str(json.loads(f'"{messages[-1]}"'))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with control_plane.control_plane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(cluster, tmp_path_factory.mktemp("state"))


@pytest.fixture
def controlled(cluster: Cluster) -> Cluster:
    if not cluster.controllers:
        pytest.skip(
            "kube-controller-manager and kube-scheduler do not lie beside kube-apiserver:"
            " nothing acts on what was applied"
        )
    return cluster


def deployment(cluster: Cluster) -> dict[str, Any]:
    found = cluster.get("Deployment", "wan22-t2v-deployment")
    assert found
    return found


def test_check_mode_makes_nothing(site: Site, cluster: Cluster) -> None:
    site.deployed("--check")
    assert cluster.get("Namespace", "t2v") is None


def test_a_refused_value_leaves_nothing(site: Site, cluster: Cluster) -> None:
    sentence = site.refused(t2v_deploy_redis_size="lots")
    assert sentence.startswith("The API server refuses the manifests, and nothing was applied.")
    assert "PersistentVolume pv-redis" in sentence
    namespace = cluster.get("Namespace", "t2v")
    assert namespace is None or "deletionTimestamp" in namespace["metadata"]
    assert cluster.get("PersistentVolume", "pv-video-output") is None
    if not cluster.controllers and namespace:
        # Nobody finishes the deletion.
        cluster.ask("PUT", "api/v1/namespaces/t2v/finalize", {**namespace, "spec": {}})
    assert cluster.wait(lambda: cluster.get("Namespace", "t2v") is None)


def test_everything_is_applied(site: Site, cluster: Cluster) -> None:
    assert site.deployed() > 0
    assert set(cluster.versions()) >= {
        "ConfigMap wan22-t2v",
        "Deployment wan22-t2v-deployment",
        "HorizontalPodAutoscaler wan22-hpa",
        "Ingress wan22-ingress",
        "NetworkPolicy default-deny",
        "PersistentVolume pv-video-output",
        "PersistentVolumeClaim pvc-video-output",
        "PodDisruptionBudget wan22-t2v",
        "Secret wan22-registry",
        "Secret wan22-t2v",
        "Service wan22-service",
        "ServiceAccount wan22-t2v",
        "StatefulSet wan22-redis",
    }
    service = cluster.get("Service", "wan22-service")
    assert service and service["spec"]["ports"][0]["nodePort"] == 31080


def test_hpa_s_maximum_is_what_the_cluster_has_room_for(cluster: Cluster) -> None:
    hpa = cluster.get("HorizontalPodAutoscaler", "wan22-hpa")
    assert hpa and (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 2)


def test_claim_is_bound_to_the_volume_that_is_for_it(controlled: Cluster) -> None:
    def bound() -> bool:
        claim = controlled.get("PersistentVolumeClaim", "pvc-video-output")
        assert claim
        return bool(claim["status"].get("phase") == "Bound")

    assert controlled.wait(bound)
    claim = controlled.get("PersistentVolumeClaim", "pvc-video-output")
    assert claim and claim["spec"]["volumeName"] == "pv-video-output"


def test_two_workers_have_one_pod_each(controlled: Cluster) -> None:
    def nodes() -> list[str]:
        return sorted(
            pod["spec"].get("nodeName", "")
            for pod in controlled.items("Pod")
            if pod["metadata"]["labels"]["app"] == "wan22-t2v"
        )

    assert controlled.wait(lambda: nodes() == ["worker1", "worker2"]), nodes()


def steady(cluster: Cluster) -> dict[str, str]:
    """The versions of objects whose status no controller writes."""
    return {
        name: version
        for name, version in cluster.versions().items()
        if not name.startswith(("PodDisruptionBudget", "HorizontalPodAutoscaler"))
    }


def test_applied_again_nothing_changes(site: Site, cluster: Cluster) -> None:
    before = steady(cluster)
    assert site.deployed() == 0
    assert steady(cluster) == before


def test_a_changed_value_changes_only_what_has_it(site: Site, cluster: Cluster) -> None:
    before = cluster.versions()
    assert site.deployed(t2v_server_env={"T2V_LOG_FORMAT": "json"}) > 0
    after = cluster.versions()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    # The controllers write the status of what they look after.
    changed -= {"PodDisruptionBudget wan22-t2v", "HorizontalPodAutoscaler wan22-hpa"}
    assert changed == {"ConfigMap wan22-t2v", "Deployment wan22-t2v-deployment"}
    configuration = cluster.get("ConfigMap", "wan22-t2v")
    assert configuration and configuration["data"]["T2V_LOG_FORMAT"] == "json"


def test_a_refused_value_changes_nothing(site: Site, cluster: Cluster) -> None:
    before = steady(cluster)
    sentence = site.refused(t2v_deploy_ingress_class="Not a class", t2v_deploy_hpa_cpu=50)
    assert "Ingress wan22-ingress" in sentence
    assert steady(cluster) == before
    hpa = cluster.get("HorizontalPodAutoscaler", "wan22-hpa")
    assert hpa and hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 60


def test_check_mode_changes_nothing_and_shows_what_would(site: Site, cluster: Cluster) -> None:
    kept = dict(site.settings)
    done = site.deploy("--check", t2v_deploy_hpa_cpu=70)
    site.settings = kept
    assert done.returncode == 0, done.stdout[-3000:]
    assert "HorizontalPodAutoscaler wan22-hpa" in done.stdout
    assert '"averageUtilization": 70' in done.stdout
    hpa = cluster.get("HorizontalPodAutoscaler", "wan22-hpa")
    assert hpa and hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 60


def test_no_password_is_shown(site: Site) -> None:
    secrets = [path.read_text().strip() for path in (site.directory / "secrets").iterdir()]
    assert len(secrets) == 2
    done = site.deploy("-vv")
    assert done.returncode == 0
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]


def test_an_autoscaler_that_is_not_there_is_refused(site: Site) -> None:
    sentence = site.refused(t2v_autoscaler="keda")
    assert "ScaledObject wan22-t2v" in sentence
    assert "keda.sh/v1alpha1" in sentence


def test_pods_that_an_autoscaler_asked_for_are_left(site: Site, cluster: Cluster) -> None:
    path = cluster.path("Deployment", "wan22-t2v-deployment")
    if not cluster.controllers:
        cluster.merge(f"{path}/scale", {"spec": {"replicas": 5}})
        assert site.deployed(t2v_deploy_hpa_cpu=55) > 0
        assert deployment(cluster)["spec"]["replicas"] == 5
        cluster.merge(f"{path}/scale", {"spec": {"replicas": 2}})
    else:
        # The one autoscaler that there is goes on to ask for two of them.
        assert site.deployed(t2v_deploy_hpa_cpu=55) > 0
        assert deployment(cluster)["spec"]["replicas"] == 2


def test_an_autoscaler_switched_off_is_removed_and_on_again_takes_over(
    site: Site, cluster: Cluster
) -> None:
    assert site.deployed(t2v_autoscaler="none") > 0
    assert cluster.get("HorizontalPodAutoscaler", "wan22-hpa") is None
    assert deployment(cluster)["spec"]["replicas"] == 2
    generation = deployment(cluster)["metadata"]["generation"]
    assert site.deployed(t2v_autoscaler="hpa") > 0
    assert cluster.get("HorizontalPodAutoscaler", "wan22-hpa")
    # Not one moment with another number of pods: that would be a generation more.
    assert deployment(cluster)["metadata"]["generation"] == generation
    assert deployment(cluster)["spec"]["replicas"] == 2


def test_what_is_switched_off_is_removed_and_data_is_not(site: Site, cluster: Cluster) -> None:
    assert site.deployed(ingress_provider="none", t2v_deploy_redis=False) > 0
    assert cluster.get("Ingress", "wan22-ingress") is None
    assert cluster.get("StatefulSet", "wan22-redis") is None
    assert cluster.get("Secret", "wan22-redis") is None
    assert cluster.get("PersistentVolumeClaim", "pvc-redis")
    assert site.deployed() == 0
    assert site.deployed(ingress_provider="nginx", t2v_deploy_redis=True) > 0
    assert cluster.get("Ingress", "wan22-ingress")


def test_a_rollout_that_fails_is_taken_back(site: Site, controlled: Cluster) -> None:
    good = deployment(controlled)["spec"]["template"]["spec"]["containers"][0]["image"]
    site.publish("dead")
    sentence = site.refused(
        t2v_deploy_rollout_seconds=15, t2v_server_env={"T2V_LOG_FORMAT": "text"}
    )
    assert sentence.startswith("wan22-t2v-deployment did not roll out in 15 seconds (")
    assert "CrashLoopBackOff (exit status 2)" in sentence
    assert sentence.endswith("What rolled out last was applied again.")
    now = deployment(controlled)["spec"]["template"]["spec"]["containers"][0]["image"]
    assert now == good
    configuration = controlled.get("ConfigMap", "wan22-t2v")
    assert configuration and configuration["data"]["T2V_LOG_FORMAT"] == "json"

    def healthy() -> bool:
        status = deployment(controlled)["status"]
        return bool(
            status.get("availableReplicas") == 2 and status.get("unavailableReplicas", 0) == 0
        )

    assert controlled.wait(healthy)
    site.publish("0")
    assert site.deployed() == 0


def test_an_image_that_was_never_published_is_refused(site: Site) -> None:
    (site.directory / "image.json").rename(site.directory / "kept.json")
    sentence = site.refused()
    (site.directory / "kept.json").rename(site.directory / "image.json")
    assert sentence == (
        f"There is no record of {REFERENCE} in {site.directory}/image.json on the controller: run"
        " playbooks/image.yml first."
    )


def test_too_few_gpus_in_the_cluster_are_refused(site: Site, cluster: Cluster) -> None:
    """The cluster's own word counts, not the inventory's."""
    sentence = site.refused(t2v_replicas=3, t2v_gpu_time_slices=4)
    assert "t2v_replicas is 3 and the cluster has GPUs for 2 pods" in sentence


def test_a_cluster_that_does_not_answer_is_refused(site: Site, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kubeconfig"
    text = site.cluster.kubeconfig.read_text()
    elsewhere.write_text(text.replace(site.cluster.url, "https://127.0.0.1:1"))
    sentence = site.refused(t2v_kubeconfig=str(elsewhere))
    assert sentence.startswith(f"The cluster of {elsewhere} does not answer (")
