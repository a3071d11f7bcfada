"""A real API server for the tests, and stand-ins for what a node does.

``etcd`` and ``kube-apiserver`` come from ``KUBEBUILDER_ASSETS``, as in the tests of other projects
for Kubernetes; ``kube-controller-manager`` and ``kube-scheduler`` too where they lie beside them.
There is no kubelet: a thread says of scheduled pods what one would. Nodes have addresses on
loopback, so that whoever asks them asks this machine alone.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

NEEDED = ("etcd", "kube-apiserver")
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
# The documented addresses' last numbers.
NODES = {"master": "127.0.0.20", "worker1": "127.0.0.21", "worker2": "127.0.0.22"}
TOKEN = "tests-only"
# A pod whose image has this in its digest never becomes ready.
BROKEN = "sha256:dead"
GROUPS = {
    "Namespace": "api/v1/namespaces",
    "Node": "api/v1/nodes",
    "PersistentVolume": "api/v1/persistentvolumes",
    "RuntimeClass": "apis/node.k8s.io/v1/runtimeclasses",
}
NAMESPACED = {
    "ConfigMap": "api/v1",
    "PersistentVolumeClaim": "api/v1",
    "Pod": "api/v1",
    "Secret": "api/v1",
    "Service": "api/v1",
    "ServiceAccount": "api/v1",
    "Deployment": "apis/apps/v1",
    "StatefulSet": "apis/apps/v1",
    "HorizontalPodAutoscaler": "apis/autoscaling/v2",
    "Ingress": "apis/networking.k8s.io/v1",
    "NetworkPolicy": "apis/networking.k8s.io/v1",
    "PodDisruptionBudget": "apis/policy/v1",
}


def assets() -> Path:
    """Where the programs are looked for."""
    return Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin")


def missing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not os.access(assets() / name, os.X_OK)]


def plural(kind: str) -> str:
    return {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}.get(
        kind, f"{kind.lower()}s"
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Cluster:
    """The API server, asked over HTTP by nothing but the standard library."""

    url: str
    kubeconfig: Path
    controllers: bool
    # What signed the API server's certificate.
    authority: Path
    # Which every pod is said to have.
    pod_address: str
    context: ssl.SSLContext = field(default_factory=ssl._create_unverified_context)

    def ask(
        self, method: str, path: str, body: object = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": kind},
        )
        with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def path(self, kind: str, name: str = "", namespace: str = "t2v") -> str:
        base = GROUPS.get(kind) or f"{NAMESPACED[kind]}/namespaces/{namespace}/{plural(kind)}"
        return f"{base}/{name}" if name else base

    def get(self, kind: str, name: str, namespace: str = "t2v") -> dict[str, Any] | None:
        try:
            return self.ask("GET", self.path(kind, name, namespace))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def items(self, kind: str, namespace: str = "t2v") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", self.path(kind, "", namespace))["items"]
        return found

    def create(self, kind: str, manifest: dict[str, Any]) -> None:
        self.ask("POST", self.path(kind), manifest)

    def merge(self, path: str, patch: dict[str, Any]) -> None:
        self.ask("PATCH", path, patch, "application/merge-patch+json")

    def versions(self) -> dict[str, str]:
        """Every object of ours and its resourceVersion, which any change changes."""
        found = {
            f"{kind} {item['metadata']['name']}": str(item["metadata"]["resourceVersion"])
            for kind in (*NAMESPACED, "PersistentVolume")
            if kind != "Pod"
            for item in self.items(kind)
            if item["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") == "t2v"
        }
        found.pop("ConfigMap wan22-inventory", None)
        return found

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if what():
                return True
            time.sleep(0.3)
        return False


def add_node(cluster: Cluster, name: str, address: str, gpus: int) -> None:
    """A node without a kubelet; one with no GPU is the control plane."""
    path = cluster.path("Node", name)
    taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    cluster.create(
        "Node",
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
        },
    )
    room = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "110"}
    if gpus:
        room["nvidia.com/gpu"] = str(gpus)
    # What the API server adds to a new node goes when its kubelet has reported.
    cluster.merge(path, {"spec": {"taints": [] if gpus else [taint]}})
    cluster.merge(
        f"{path}/status",
        {
            "status": {
                "capacity": room,
                "allocatable": room,
                "conditions": [{"type": "Ready", "status": "True", "reason": "StandIn"}],
                "addresses": [
                    {"type": "InternalIP", "address": address},
                    {"type": "Hostname", "address": name},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            }
        },
    )


def tend_pods(cluster: Cluster, stop: threading.Event) -> None:
    """What kubelets would say: scheduled pods are ready, stopped ones gone."""
    while not stop.wait(0.3):
        try:
            for pod in cluster.ask("GET", "api/v1/pods")["items"]:
                metadata, spec = pod["metadata"], pod["spec"]
                path = cluster.path("Pod", metadata["name"], metadata["namespace"])
                if "deletionTimestamp" in metadata:
                    cluster.ask("DELETE", path, {"gracePeriodSeconds": 0})
                elif spec.get("nodeName") and pod["status"].get("phase") == "Pending":
                    # A job's is done at once: its image is there, and runs what it is told.
                    ends = spec["restartPolicy"] == "Never"
                    ready = not ends and BROKEN not in spec["containers"][0]["image"]
                    state: dict[str, object] = (
                        {"terminated": {"exitCode": 0, "reason": "Completed"}}
                        if ends
                        else {"running": {}}
                        if ready
                        else {"waiting": {"reason": "CrashLoopBackOff", "message": "exit status 2"}}
                    )
                    status = {
                        "phase": "Succeeded" if ends else "Running",
                        "podIP": cluster.pod_address,
                        "podIPs": [{"ip": cluster.pod_address}],
                        "conditions": [
                            {"type": kind, "status": str(ready)}
                            for kind in ("Ready", "ContainersReady")
                        ],
                        "containerStatuses": [
                            {
                                "name": container["name"],
                                "image": container["image"],
                                "imageID": container["image"],
                                "ready": ready,
                                "restartCount": 0,
                                "state": state,
                            }
                            for container in spec["containers"]
                        ],
                    }
                    cluster.merge(f"{path}/status", {"status": status})
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            continue


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    # A test that is killed ends nothing: its programs end with it.
    command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def write_files(directory: Path, url: str) -> Path:
    """Keys, the token and a kubeconfig; returns the latter."""
    key = rsa.generate_private_key(65537, 2048)
    (directory / "sa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    (directory / "sa.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (directory / "tokens.csv").write_text(f'{TOKEN},tests,tests,"system:masters"\n')
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": "tests",
                        "cluster": {"server": url, "insecure-skip-tls-verify": True},
                    }
                ],
                "users": [{"name": "tests", "user": {"token": TOKEN}}],
                "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
                "current-context": "tests",
            }
        )
    )
    return kubeconfig


@contextmanager
def control_plane(directory: Path, pod_address: str = "10.244.0.2") -> Iterator[Cluster]:
    """Start it, with three nodes: master, and two workers with one GPU each."""
    client, peer, port = free_port(), free_port(), free_port()
    etcd = f"http://127.0.0.1:{client}"
    url = f"https://127.0.0.1:{port}"
    kubeconfig = write_files(directory, url)
    programs = assets()
    controllers = not missing(CONTROLLERS)
    # What signed it stands in the same file, which the API server writes itself.
    authority = directory / "certs/apiserver.crt"
    cluster = Cluster(url, kubeconfig, controllers, authority, pod_address)
    with (
        running(
            [
                str(programs / "etcd"),
                f"--data-dir={directory / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                "--unsafe-no-fsync",
            ],
            directory / "etcd.log",
        ),
        running(
            [
                str(programs / "kube-apiserver"),
                f"--etcd-servers={etcd}",
                f"--cert-dir={directory / 'certs'}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                "--service-cluster-ip-range=10.96.0.0/16",
                f"--token-auth-file={directory / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={directory / 'sa.pub'}",
                f"--service-account-signing-key-file={directory / 'sa.key'}",
            ],
            directory / "kube-apiserver.log",
        ),
    ):

        def up() -> bool:
            try:
                return bool(cluster.ask("GET", "api/v1/namespaces/default"))
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        if not cluster.wait(up, 180):
            log = (directory / "kube-apiserver.log").read_text()[-2000:]
            raise RuntimeError(f"kube-apiserver does not answer: {log}")
        for name, address in NODES.items():
            add_node(cluster, name, address, 0 if name == "master" else 1)
        # What cluster_addons brings; a pod that names it is refused without.
        cluster.create(
            "RuntimeClass",
            {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": "nvidia"},
                "handler": "nvidia",
            },
        )
        if not controllers:
            yield cluster
            return
        with (
            running(
                [
                    str(programs / "kube-controller-manager"),
                    f"--kubeconfig={kubeconfig}",
                    f"--service-account-private-key-file={directory / 'sa.key'}",
                    f"--root-ca-file={authority}",
                    "--leader-elect=false",
                    "--bind-address=127.0.0.1",
                    f"--secure-port={free_port()}",
                    # No kubelet renews its lease here.
                    "--controllers=*,-node-lifecycle-controller",
                ],
                directory / "kube-controller-manager.log",
            ),
            running(
                [
                    str(programs / "kube-scheduler"),
                    f"--kubeconfig={kubeconfig}",
                    "--leader-elect=false",
                    "--bind-address=127.0.0.1",
                    f"--secure-port={free_port()}",
                ],
                directory / "kube-scheduler.log",
            ),
        ):
            stop = threading.Event()
            kubelets = threading.Thread(target=tend_pods, args=(cluster, stop), daemon=True)
            kubelets.start()
            try:
                yield cluster
            finally:
                stop.set()
                kubelets.join(60)
