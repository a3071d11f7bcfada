"""What kubeadm and the cluster are given, over versions and settings, without a cluster.

``kubeadm config validate`` says whether kubeadm takes it, where the program is there
(``KUBEBUILDER_ASSETS``); otherwise the fields that it knows are compared with what is written.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate.utils as schemas
import pytest
import yaml

from controller import ROOT, ansible

VERSIONS = ("1.28.15", "1.30.0", "1.31.0", "1.32.13", "1.36.4")
KUBEADM = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin") / "kubeadm"
# Of kubeadm's documentation: what each kind may have, as far as the roles write it.
KNOWN = {
    "InitConfiguration": {"bootstrapTokens", "localAPIEndpoint", "nodeRegistration", "timeouts"},
    "ClusterConfiguration": {
        *("apiServer", "clusterName", "controlPlaneEndpoint", "controllerManager", "dns"),
        *("imageRepository", "kubernetesVersion", "networking", "scheduler"),
    },
    "JoinConfiguration": {"discovery", "nodeRegistration"},
}
INGRESS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: ingress-nginx-controller, namespace: ingress-nginx}
---
apiVersion: v1
kind: Service
metadata: {name: ingress-nginx-controller-admission, namespace: ingress-nginx}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ingress-nginx-controller, namespace: ingress-nginx}
spec:
  strategy: {rollingUpdate: {maxUnavailable: 1}, type: RollingUpdate}
  template:
    spec:
      containers:
        - args: [/nginx-ingress-controller, --ingress-class=nginx, "--validating-webhook=:8443"]
          image: registry.k8s.io/ingress-nginx/controller:v1.12.8@sha256:8f83
          name: controller
          ports: [{containerPort: 80, name: http}, {containerPort: 8443, name: webhook}]
          volumeMounts: [{mountPath: /usr/local/certificates/, name: webhook-cert}]
      nodeSelector: {kubernetes.io/os: linux}
      volumes: [{name: webhook-cert}]
"""


class Rendered:
    """What was written for one set of settings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def documents(self, name: str) -> list[dict[str, Any]]:
        text = (self.directory / name).read_text()
        return [one for one in yaml.safe_load_all(text) if one]

    def kind(self, name: str, kind: str) -> dict[str, Any]:
        (found,) = [one for one in self.documents(name) if one["kind"] == kind]
        return found

    def addons(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.directory.glob("*.yaml")):
            yield from self.documents(path.name)


def render(
    directory: Path, settings: dict[str, Any] | None = None, *more: str, **extra: Any
) -> Rendered:
    directory.mkdir(parents=True, exist_ok=True)
    values = {
        "rendered": str(directory),
        "t2v_runtime": "kubernetes",
        "t2v_state_dir": str(directory),
        **(settings or {}),
        **extra,
    }
    done = ansible(
        "ansible-playbook",
        *("-i", "inventory/", str(ROOT / "tests/kubernetes/render.yml"), "-e", json.dumps(values)),
        *more,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return Rendered(directory)


@pytest.fixture(scope="module", params=VERSIONS)
def versioned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Rendered]:
    version = str(request.param)
    directory = tmp_path_factory.mktemp("rendered") / version
    return version, render(directory, kubernetes_version=version)


def test_the_format_is_the_version_s(versioned: tuple[str, Rendered]) -> None:
    version, rendered = versioned
    wanted = "v1beta4" if int(version.split(".")[1]) > 30 else "v1beta3"
    documents = rendered.documents("kubeadm.yml") + rendered.documents("kubeadm-join.yml")
    ours = [one for one in documents if one["apiVersion"].startswith("kubeadm")]
    assert {one["apiVersion"] for one in ours} == {f"kubeadm.k8s.io/{wanted}"}
    assert len(ours) == 3
    for one in ours:
        assert set(one) - {"apiVersion", "kind"} <= KNOWN[one["kind"]]
        flags = one.get("nodeRegistration", {}).get("kubeletExtraArgs")
        if flags is not None:
            address = {"name": "node-ip", "value": "192.168.0.20"}
            assert flags == ([address] if wanted == "v1beta4" else {"node-ip": "192.168.0.20"})


def test_kubeadm_takes_it(versioned: tuple[str, Rendered], tmp_path: Path) -> None:
    version, rendered = versioned
    rendered = Rendered(Path(shutil.copytree(rendered.directory, tmp_path / "copy")))
    if not os.access(KUBEADM, os.X_OK):
        pytest.skip(f"{KUBEADM} is not there: kubeadm itself is not asked")
    own = subprocess.run([KUBEADM, "version", "-o", "short"], capture_output=True, text=True)
    # It makes control planes of its own version and the one before; the format is what is asked.
    file = rendered.directory / "kubeadm.yml"
    file.write_text(file.read_text().replace(f"v{version}", own.stdout.strip()))
    for name in ("kubeadm.yml", "kubeadm-join.yml"):
        done = subprocess.run(
            [KUBEADM, "config", "validate", f"--config={rendered.directory / name}"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_the_control_plane_is_the_documented_one(versioned: tuple[str, Rendered]) -> None:
    version, rendered = versioned
    cluster = rendered.kind("kubeadm.yml", "ClusterConfiguration")
    assert cluster["kubernetesVersion"] == f"v{version}"
    assert cluster["controlPlaneEndpoint"] == "192.168.0.20:6443"
    assert cluster["imageRepository"] == "registry.k8s.io"
    assert "dns" not in cluster
    assert cluster["networking"]["podSubnet"] == "10.244.0.0/16"
    assert "192.168.0.20" in cluster["apiServer"]["certSANs"]
    kubelet = rendered.kind("kubeadm.yml", "KubeletConfiguration")
    assert kubelet["serverTLSBootstrap"] is True
    assert kubelet["cgroupDriver"] == "systemd"
    first = rendered.kind("kubeadm.yml", "InitConfiguration")
    assert "ignorePreflightErrors" not in first["nodeRegistration"]
    assert first["bootstrapTokens"][0]["ttl"] == "1m0s"


def test_a_worker_checks_whom_it_joins(versioned: tuple[str, Rendered]) -> None:
    discovery = versioned[1].kind("kubeadm-join.yml", "JoinConfiguration")["discovery"]
    assert discovery["bootstrapToken"]["caCertHashes"] == ["sha256:" + "a" * 64]
    assert "unsafeSkipCAVerification" not in discovery["bootstrapToken"]


def test_what_is_ignored_has_a_name_and_a_reason(tmp_path: Path) -> None:
    ignored = {"NumCPU": "the lab has one core"}
    rendered = render(tmp_path / "x", {"kubernetes_control_plane_ignored": ignored})
    first = rendered.kind("kubeadm.yml", "InitConfiguration")
    assert first["nodeRegistration"]["ignorePreflightErrors"] == ["NumCPU"]
    assert "- NumCPU # the lab has one core" in (tmp_path / "x/kubeadm.yml").read_text()


@pytest.mark.parametrize("version", ["1.28", "1.32", "1.36"])
def test_add_ons_are_valid(tmp_path: Path, version: str) -> None:
    rendered = render(tmp_path / "x", {"cluster_addons_gpu_time_slices": 4})
    found = list(rendered.addons())
    kinds = {one["kind"] for one in found}
    assert {"DaemonSet", "Deployment", "RuntimeClass", "Secret"} <= kinds
    for one in found:
        if one["kind"] != "APIService":  # of the aggregator, which the schemas leave out
            schemas.validate(one, version, strict=True)


def test_images_come_from_the_site_s_registry(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    images = {
        "registry.k8s.io/pause:3.10": "images/pause.tar",
        "ghcr.io/flannel-io/flannel:v0.26.1": "images/flannel.tar",
        "nvcr.io/nvidia/k8s-device-plugin:v0.17.0": "images/plugin.tar",
    }
    (bundle / "index.yml").write_text(
        yaml.safe_dump({"kubernetes_version": "1.32.13", "files": {}, "images": images})
    )
    (bundle / "SHA256SUMS").write_text("")
    (tmp_path / "x/addons").mkdir(parents=True)
    (tmp_path / "x/addons/deploy.yaml").write_text(INGRESS)
    rendered = render(tmp_path / "x", t2v_bundle=str(bundle), others=True)
    mirror = "192.168.0.34:5001/ai/mirror"
    cluster = rendered.kind("kubeadm.yml", "ClusterConfiguration")
    assert cluster["kubernetesVersion"] == "v1.32.13"
    assert cluster["imageRepository"] == f"{mirror}/registry.k8s.io"
    assert cluster["dns"]["imageRepository"] == f"{mirror}/registry.k8s.io/coredns"
    pods = [
        one["spec"]["template"]["spec"]
        for one in rendered.addons()
        if one["kind"] in ("DaemonSet", "Deployment")
    ]
    names = [
        container["image"]
        for pod in pods
        for container in pod.get("initContainers", []) + pod["containers"]
    ]
    assert len(names) == 6
    assert all(name.startswith(f"{mirror}/") for name in names), names
    assert f"{mirror}/ghcr.io/flannel-io/flannel:v0.26.1" in names
    ingress = json.loads((tmp_path / "x/ingress_nginx.json").read_text())
    deployment = next(one for one in ingress if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{mirror}/registry.k8s.io/ingress-nginx/controller:v1.12.8"


def test_ingress_nginx_marks_what_is_tried_again_and_has_no_webhook(tmp_path: Path) -> None:
    (tmp_path / "x/addons").mkdir(parents=True)
    (tmp_path / "x/addons/deploy.yaml").write_text(INGRESS)
    render(tmp_path / "x", others=True)
    found = json.loads((tmp_path / "x/ingress_nginx.json").read_text())
    headers = {
        one["metadata"]["name"]: one.get("data") for one in found if one["kind"] == "ConfigMap"
    }
    assert headers["t2v-headers"] == {"X-T2V-Retry-Key": "$req_id"}
    assert headers["ingress-nginx-controller"]["proxy-set-headers"] == "ingress-nginx/t2v-headers"
    assert not [one for one in found if "admission" in one["metadata"]["name"]]
    pod = next(one for one in found if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["/nginx-ingress-controller", "--ingress-class=nginx"]
    assert [port["name"] for port in container["ports"]] == ["http"]
    assert pod["hostNetwork"] and "node-role.kubernetes.io/control-plane" in pod["nodeSelector"]
    # Pulled from where it is made, an image keeps its digest.
    assert container["image"].endswith("@sha256:8f83")
