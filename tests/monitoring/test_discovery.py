"""What Prometheus discovers through a real API server, with the account that its role gives it.

Real: Prometheus, the API server, and what the roles prometheus and cluster_addons apply and
render. Stand-ins: nodes and kubelets (``control_plane.py``), and the page with metrics that
node_exporter and the pods would answer with.

Skipped with a sentence without the control plane's programs (``KUBEBUILDER_ASSETS``), or without a
Prometheus that knows Kubernetes (``PROMETHEUS``): Debian's package is built without.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import control_plane
from control_plane import CONTROLLERS, NEEDED, NODES, Cluster
from controller import ansible, render
from promtool import RULES
from stack import Stack, ask, free_port

ABSENT = control_plane.missing((*NEEDED, *CONTROLLERS))
pytestmark = pytest.mark.skipif(
    bool(ABSENT),
    reason=f"nothing is discovered through a real API server: {' and '.join(ABSENT)} not in"
    f" {control_plane.assets()}; set KUBEBUILDER_ASSETS to a directory with them",
)

GROUPS = {"master": "masters", "worker1": "workers", "worker2": "workers"}
# Address of a target as Prometheus asks it → its labels.
Targets = dict[str, dict[str, str]]


class Page:
    """Metrics at one port of several addresses; ``tokens`` is who authorised himself there."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.tokens: list[str] = []

    @contextmanager
    def served(self, addresses: list[str]) -> Iterator[None]:
        tokens = self.tokens

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "Authorization" in self.headers:
                    tokens.append(self.headers["Authorization"])
                found = self.path == "/metrics"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(b"stand_in 1\n" if found else b"")

            def log_message(self, *_: object) -> None:
                pass

        with ExitStack() as cleanup:
            for address in addresses:
                server = ThreadingHTTPServer((address, self.port), Handler)
                thread = threading.Thread(target=server.serve_forever, daemon=True)
                thread.start()
                cleanup.callback(thread.join)
                cleanup.callback(server.server_close)
                cleanup.callback(server.shutdown)
            yield


def own_address() -> str | None:
    """One that is not on loopback: an API server asks no pod there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(unsent.getsockname()[0])


OWN_ADDRESS = own_address()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program; Prometheus says itself whether it knows Kubernetes."""
    program = Path(os.environ.get("PROMETHEUS") or control_plane.assets() / "prometheus")
    name_one = "set PROMETHEUS to the one of a release"
    if not os.access(program, os.X_OK):
        pytest.skip(f"nothing is discovered: there is no {program}; {name_one}")
    folder = tmp_path_factory.mktemp("asked")
    config = folder / "prometheus.yml"
    config.write_text(
        "scrape_configs: [{job_name: x, kubernetes_sd_configs: [{role: no such role}]}]"
    )
    done = subprocess.run(
        [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "kubernetes_sd_configs not found" in done.stderr:
        pytest.skip(f"nothing is discovered: {program} is built without Kubernetes; {name_one}")
    assert "no such role" in done.stderr, done.stderr
    return program


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    served = Page(free_port())
    with served.served([*NODES.values(), *([OWN_ADDRESS] if OWN_ADDRESS else [])]):
        yield served


@pytest.fixture(scope="module")
def cluster(prometheus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with the roles' own objects, and pods of ours and of others."""
    directory = tmp_path_factory.mktemp("cluster")
    addresses = {"pod_address": OWN_ADDRESS} if OWN_ADDRESS else {}
    with control_plane.control_plane(directory, **addresses) as running:
        apply(running, directory)
        add_pod(running, "wan22-1", "wan22-t2v", "worker1")
        add_pod(running, "wan22-2", "wan22-t2v", "worker2")
        add_pod(running, "wan22-ended", "wan22-t2v", "worker2", phase="Succeeded")
        add_pod(running, "wan22-redis-0", "wan22-redis", "worker1")
        add_pod(running, "impostor", "wan22-t2v", "worker1", namespace="default")
        yield running


def apply(cluster: Cluster, directory: Path) -> None:
    """The role cluster_addons, with what is for Prometheus alone."""
    settings = {
        "t2v_runtime": "kubernetes",
        "t2v_kubeconfig": str(cluster.kubeconfig),
        "t2v_state_dir": str(directory),
        "ansible_python_interpreter": sys.executable,
        "cluster_addons_network": "none",
        "cluster_addons_metrics_server": False,
        "cluster_addons_device_plugin": False,
        "cluster_addons_runtime_class": "",
        "cluster_addons_ingress": "none",
        "cluster_addons_seconds": 60,
        # Its token is taken out of the cluster here; on a site it is put on that host.
        "cluster_addons_prometheus_host": "",
    }
    done = ansible(
        *("ansible", "-i", "inventory/", "localhost", "-m", "ansible.builtin.include_role"),
        *("-a", "name=cluster_addons", "-e", json.dumps(settings)),
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def add_pod(
    cluster: Cluster,
    name: str,
    app: str,
    node: str,
    namespace: str = "t2v",
    phase: str = "Running",
) -> None:
    """A pod on a node, in this phase."""
    # Pods are refused before a controller has made it.
    assert cluster.wait(lambda: cluster.get("ServiceAccount", "default", namespace) is not None)
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": "main", "image": "stand-in", "ports": [{"containerPort": 8080}]}
            ],
        },
    }
    cluster.ask("POST", cluster.path("Pod", "", namespace), manifest)

    def runs() -> bool:
        pod = cluster.get("Pod", name, namespace)
        return bool(pod and pod["status"]["phase"] == "Running")

    assert cluster.wait(runs)
    if phase != "Running":
        path = cluster.path("Pod", name, namespace)
        cluster.merge(f"{path}/status", {"status": {"phase": phase}})


def account(cluster: Cluster, directory: Path, name: str = "prometheus-token") -> Path:
    """What the role puts on Prometheus' host, in this directory: the Secret's CA and token."""

    def filled() -> bool:
        secret = cluster.get("Secret", name, "t2v-monitoring")
        return bool(secret and "token" in secret.get("data", {}))

    assert cluster.wait(filled)
    secret = cluster.get("Secret", name, "t2v-monitoring")
    assert secret
    for key in ("ca.crt", "token"):
        (directory / key).write_bytes(base64.b64decode(secret["data"][key]))
    return directory


def configured(cluster: Cluster, directory: Path, page: Page) -> Path:
    """The role's own configuration and rules, of a host where that account lies."""
    shutil.copytree(RULES[0].parent, directory / "rules")
    config = directory / "prometheus.yml"
    render(
        "prometheus",
        "prometheus.yml.j2",
        config,
        "prometheus",
        t2v_runtime="kubernetes",
        t2v_node_exporter_port=page.port,
        prometheus_config_dir=str(directory),
        prometheus_scrape_interval="1s",
        prometheus_scrape_timeout="1s",
        prometheus_kubernetes_api=cluster.url.removeprefix("https://"),
        prometheus_kubernetes_ca_file=str(directory / "ca.crt"),
        prometheus_kubernetes_token_file=str(directory / "token"),
        prometheus_kubernetes_pod_port=page.port,
        # No host of the documented inventory is asked.
        prometheus_jobs=[],
        prometheus_alertmanagers=[],
    )
    return config


@contextmanager
def started(program: Path, config: Path) -> Iterator[Stack]:
    """Prometheus with this configuration, beside which its data and log are."""
    stack = Stack(config.parent)
    address = f"127.0.0.1:{free_port()}"
    stack.url = f"http://{address}"
    try:
        stack.start(
            "prometheus",
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={config.parent / 'data'}",
            f"--web.listen-address={address}",
        )
        stack.wait_for(f"{stack.url}/-/ready")
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def discovering(
    prometheus: Path, cluster: Cluster, page: Page, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Prometheus with the account that the role made for it."""
    directory = account(cluster, tmp_path_factory.mktemp("prometheus"))
    with started(prometheus, configured(cluster, directory, page)) as stack:
        yield stack


def known(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(f"{stack.url}/api/v1/targets"))["data"]
    return found


def targets(stack: Stack) -> Targets:
    return {
        f"{one['labels'].pop('job')} {one['scrapeUrl']}": one["labels"]
        for one in known(stack)["activeTargets"]
    }


def expected(cluster: Cluster, page: Page, *pods: tuple[str, str]) -> Targets:
    """All that is to be discovered: nodes, kubelets, the service's pods, kube-state-metrics."""
    found = {}
    for node, address in NODES.items():
        labels = {"instance": node, "group": GROUPS[node]}
        found[f"kubernetes-nodes http://{address}:{page.port}/metrics"] = labels
        found[f"kubernetes-cadvisor https://{address}:10250/metrics/cadvisor"] = labels

    def proxied(job: str, namespace: str, pod: str, node: str, port: int) -> None:
        path = f"api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics"
        labels = {"instance": node, "group": GROUPS[node], "pod": pod, "namespace": namespace}
        found[f"{job} {cluster.url}/{path}"] = labels

    for pod, node in pods:
        proxied("wan22-service", "t2v", pod, node, page.port)
    # The one that the role's Deployment has, wherever it was put.
    (state,) = cluster.items("Pod", "kube-system")
    name, node = state["metadata"]["name"], state["spec"]["nodeName"]
    proxied("kube-state-metrics", "kube-system", name, node, 8080)
    return found


OURS = (("wan22-1", "worker1"), ("wan22-2", "worker2"))


def test_promtool_takes_the_configuration(
    prometheus: Path, cluster: Cluster, page: Page, tmp_path: Path
) -> None:
    promtool = prometheus.with_name("promtool")
    if not promtool.exists():
        pytest.skip(f"there is no promtool beside {prometheus}")
    config = configured(cluster, account(cluster, tmp_path), page)
    done = subprocess.run(
        [promtool, "check", "config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nodes_and_our_pods_are_discovered_and_nothing_else(
    discovering: Stack, cluster: Cluster, page: Page
) -> None:
    wanted = expected(cluster, page, *OURS)
    cluster.wait(lambda: targets(discovering) == wanted)
    assert targets(discovering) == wanted


def test_others_pods_are_not_even_looked_at(discovering: Stack) -> None:
    # The pod that ended is of the service, so it is seen and left out.
    assert {
        one["discoveredLabels"]["__meta_kubernetes_pod_name"]
        for one in known(discovering)["droppedTargets"]
        if one["discoveredLabels"]["job"] == "wan22-service"
    } == {"wan22-ended"}


@pytest.mark.skipif(
    OWN_ADDRESS is None,
    reason="this machine has loopback alone, where an API server asks no pod",
)
def test_what_is_discovered_answers(discovering: Stack, cluster: Cluster, page: Page) -> None:
    def health() -> set[tuple[str, str, str, str]]:
        return {
            (one["labels"]["job"], one["labels"]["instance"], one["health"], one["lastError"])
            for one in known(discovering)["activeTargets"]
            if one["labels"]["job"] in {"kubernetes-nodes", "wan22-service"}
        }

    wanted = {("kubernetes-nodes", node, "up", "") for node in NODES}
    wanted |= {("wan22-service", node, "up", "") for _, node in OURS}
    cluster.wait(lambda: health() == wanted)
    assert health() == wanted
    # The cluster's token is shown to the API server, to nobody behind it.
    assert page.tokens == []


def test_a_pod_that_comes_is_discovered_and_one_that_goes_forgotten(
    discovering: Stack, cluster: Cluster, page: Page
) -> None:
    add_pod(cluster, "wan22-3", "wan22-t2v", "worker1")
    wanted = expected(cluster, page, *OURS, ("wan22-3", "worker1"))
    cluster.wait(lambda: targets(discovering) == wanted)
    assert targets(discovering) == wanted
    cluster.ask("DELETE", cluster.path("Pod", "wan22-3"))
    wanted = expected(cluster, page, *OURS)
    cluster.wait(lambda: targets(discovering) == wanted)
    assert targets(discovering) == wanted


def test_a_token_without_rights_finds_nothing_and_the_log_says_why(
    prometheus: Path, cluster: Cluster, page: Page, tmp_path: Path
) -> None:
    # Made as the role makes its own, and bound to nothing.
    metadata = {"name": "nobody", "namespace": "t2v-monitoring"}
    cluster.ask(
        "POST",
        cluster.path("ServiceAccount", "", "t2v-monitoring"),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
    )
    cluster.ask(
        "POST",
        cluster.path("Secret", "", "t2v-monitoring"),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                **metadata,
                "annotations": {"kubernetes.io/service-account.name": "nobody"},
            },
            "type": "kubernetes.io/service-account-token",
        },
    )
    config = configured(cluster, account(cluster, tmp_path, "nobody"), page)
    user = "system:serviceaccount:t2v-monitoring:nobody"
    reasons = [
        f'User "{user}" cannot list resource "nodes" in API group "" at the cluster scope',
        f'User "{user}" cannot list resource "pods" in API group "" in the namespace "t2v"',
        f'User "{user}" cannot list resource "pods" in API group "" at the cluster scope',
    ]
    finds_nothing(prometheus, config, cluster, reasons)


def test_a_server_that_the_ca_did_not_sign_is_asked_nothing_and_the_log_says_why(
    prometheus: Path, cluster: Cluster, page: Page, tmp_path: Path
) -> None:
    config = configured(cluster, account(cluster, tmp_path), page)
    (tmp_path / "ca.crt").write_bytes(other_authority())
    finds_nothing(prometheus, config, cluster, ["certificate signed by unknown authority"])


def other_authority() -> bytes:
    """A CA that signed nothing of this cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def finds_nothing(program: Path, config: Path, cluster: Cluster, reasons: list[str]) -> None:
    with started(program, config) as stack:

        def log() -> str:
            return (config.parent / "prometheus.log").read_text().replace("\\", "")

        cluster.wait(lambda: all(reason in log() for reason in reasons))
        assert [reason for reason in reasons if reason not in log()] == [], log()
        assert targets(stack) == {}
        assert known(stack)["droppedTargets"] == []
