"""What kube-linter, kube-score and polaris look for, on every cell; exceptions have a reason."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from conftest import Cell

# (rule, object): why it does not have to meet the rule.
WAIVED = {
    ("nodeport", "wan22-service"): "the documented port 31080 of every node",
    ("two-replicas", "wan22-redis"): "one store of the jobs; its file outlives the pod",
    ("pdb", "wan22-redis"): "of one pod a budget would only forbid to drain its node",
    ("spread", "wan22-redis"): "one pod, on the node that has its file",
}


def containers(cell: Cell) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, container)
        for name, pod in cell.pod_specs().items()
        for container in [*pod["containers"], *pod.get("initContainers", [])]
    ]


def selects(selector: dict[str, str], workload: dict[str, Any]) -> bool:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return selector.items() <= labels.items()


def workloads(cell: Cell) -> list[dict[str, Any]]:
    return cell.kinds("Deployment", "StatefulSet")


def test_pods_meet_the_restricted_standard(cell: Cell) -> None:
    for name, pod in cell.pod_specs().items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] >= 10000, name
        assert context["runAsGroup"] >= 10000, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert all(
            set(volume) & {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}
            for volume in pod["volumes"]
        ), name
    assert cell.manifests["namespace"]["metadata"]["labels"][
        "pod-security.kubernetes.io/enforce"
    ] == ("restricted")


def test_containers_can_do_nothing_but_their_work(cell: Cell) -> None:
    for name, container in containers(cell):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_what_is_written_to_has_a_volume(cell: Cell) -> None:
    """The root is read-only; the server writes here (files/server/README.md)."""
    mounts = {
        mount["mountPath"]
        for name, container in containers(cell)
        if name == "wan22-t2v-deployment"
        for mount in container["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert {"/shared/videos", "/var/lib/t2v", "/var/cache/t2v", "/tmp", "/dev/shm"} == mounts


def test_mounts_and_volumes_belong_together(cell: Cell) -> None:
    for name, pod in cell.pod_specs().items():
        mounted = {
            mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in pod["volumes"]}, name
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in {
                    secret["metadata"]["name"] for secret in cell.kinds("Secret")
                }
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], volume


def test_claims_are_bound_to_the_volumes_that_are_for_them(cell: Cell) -> None:
    volumes = {volume["metadata"]["name"]: volume for volume in cell.kinds("PersistentVolume")}
    for claim in cell.kinds("PersistentVolumeClaim"):
        if "volumeName" in claim["spec"]:
            volume = volumes.pop(claim["spec"]["volumeName"])
            assert volume["spec"]["claimRef"] == {
                key: claim["metadata"][key] for key in ("name", "namespace")
            }
            assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
    assert not volumes


def test_images_are_pinned(cell: Cell) -> None:
    for name, container in containers(cell):
        assert re.search(r":(?!latest$)[\w.-]+$|@sha256:[0-9a-f]{64}$", container["image"]), name


def test_no_secret_is_in_the_environment_or_outside_of_secrets(cell: Cell) -> None:
    secrets = {
        base64.b64decode(value).decode().strip()
        for secret in cell.kinds("Secret")
        for value in secret["data"].values()
    } | {"pull-secret", "jobs-secret"}
    for name, text in cell.texts.items():
        if cell.manifests[name]["kind"] != "Secret":
            assert not [secret for secret in secrets if secret in text], name
    for name, container in containers(cell):
        for variable in container.get("env", []):
            assert "secretKeyRef" not in variable.get("valueFrom", {}), name
        assert all("secretRef" not in source for source in container.get("envFrom", [])), name


def test_resources_are_set(cell: Cell) -> None:
    for name, container in containers(cell):
        for side in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][side]), name


def test_probes_are_there_differ_and_ask_real_ports(cell: Cell) -> None:
    for name, container in containers(cell):
        ports = {port["containerPort"] for port in container["ports"]} | {
            port["name"] for port in container["ports"]
        }
        live, ready = container["livenessProbe"], container["readinessProbe"]
        assert container["startupProbe"]
        actions = [
            {key: probe[key] for key in ("httpGet", "tcpSocket", "exec") if key in probe}
            for probe in (live, ready)
        ]
        assert actions[0] != actions[1], name
        for probe in (live, ready, container["startupProbe"]):
            for key in ("httpGet", "tcpSocket"):
                assert key not in probe or probe[key]["port"] in ports, name


def test_selectors_select(cell: Cell) -> None:
    for service in cell.kinds("Service"):
        chosen = [
            workload
            for workload in workloads(cell)
            if selects(service["spec"]["selector"], workload)
        ]
        assert len(chosen) == 1, service["metadata"]["name"]
        ports = {
            key
            for container in chosen[0]["spec"]["template"]["spec"]["containers"]
            for port in container["ports"]
            for key in (port["name"], port["containerPort"])
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for workload in workloads(cell):
        assert selects(workload["spec"]["selector"]["matchLabels"], workload)


def test_every_workload_has_a_network_policy(cell: Cell) -> None:
    policies = cell.kinds("NetworkPolicy")
    assert any(policy["spec"]["podSelector"] == {} for policy in policies)
    for workload in workloads(cell):
        assert any(
            selector and selects(selector, workload)
            for policy in policies
            for selector in [policy["spec"]["podSelector"].get("matchLabels", {})]
        ), workload["metadata"]["name"]
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_every_workload_has_an_account_of_its_own_without_a_token(cell: Cell) -> None:
    accounts = {account["metadata"]["name"]: account for account in cell.kinds("ServiceAccount")}
    for name, pod in cell.pod_specs().items():
        assert accounts.pop(pod["serviceAccountName"])["automountServiceAccountToken"] is False
        assert pod["automountServiceAccountToken"] is False, name
    assert not accounts


@pytest.fixture(scope="module")
def met(cells: dict[str, Cell]) -> set[tuple[str, str]]:
    """The waived things that really occur, so that no waiver outlives its reason."""
    found: set[tuple[str, str]] = set()
    for cell in cells.values():
        for service in cell.kinds("Service"):
            if service["spec"].get("type", "ClusterIP") != "ClusterIP":
                found.add(("nodeport", service["metadata"]["name"]))
        for workload in workloads(cell):
            name = workload["metadata"]["name"]
            if workload["spec"].get("replicas", 2) < 2 and cell.name != "one-pod":
                found.add(("two-replicas", name))
            if not any(
                selects(pdb["spec"]["selector"]["matchLabels"], workload)
                for pdb in cell.kinds("PodDisruptionBudget")
            ):
                found.add(("pdb", name))
            pod = workload["spec"]["template"]["spec"]
            if not {"affinity", "topologySpreadConstraints"} & set(pod):
                found.add(("spread", name))
    return found


def test_only_what_is_waived_is_missing(met: set[tuple[str, str]]) -> None:
    assert met == set(WAIVED)
