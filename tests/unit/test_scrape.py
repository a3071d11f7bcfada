"""What Prometheus' role renders from the inventory, for both runtimes, and its hardened unit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller import render

HOSTS = {"master", "worker1", "worker2", "nfs-server", "harbor", "prometheus", "ansible"}


def scrape(directory: Path, **variables: object) -> dict[str, dict[str, Any]]:
    """job name → job."""
    files = {
        f"prometheus_kubernetes_{name}_file": str(directory / name)
        for name in ("ca", "token", "scrape_token")
    }
    for path in files.values():
        Path(path).write_text("x")
    text = render(
        "prometheus",
        "prometheus.yml.j2",
        directory / "prometheus.yml",
        "prometheus",
        prometheus_config_dir=str(directory),
        **files,
        **variables,
    )
    jobs = yaml.safe_load(text)["scrape_configs"]
    assert len({job["job_name"] for job in jobs}) == len(jobs)
    return {job["job_name"]: job for job in jobs}


def check_with_promtool(config: Path) -> None:
    """``PROMTOOL`` may name another one: Debian's knows no Kubernetes."""
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; PROMTOOL=/path/to/promtool names one")
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", config],
        capture_output=True,
        text=True,
        check=False,
    )
    if "field kubernetes_sd_configs not found" in done.stderr:
        pytest.skip(f"{promtool} is built without Kubernetes; PROMTOOL names a release's")
    assert done.returncode == 0, done.stdout + done.stderr


def instances(job: dict[str, Any]) -> set[str]:
    return {one["labels"]["instance"] for one in job["static_configs"]}


def test_docker_runtime_scrapes_what_the_inventory_has(tmp_path: Path) -> None:
    jobs = scrape(tmp_path, t2v_runtime="docker")
    assert {name: instances(job) for name, job in jobs.items() if name != "dcgm"} == {
        "prometheus": {"prometheus"},
        "alertmanager": {"prometheus"},
        "node": HOSTS,
        "registry": {"harbor"},
        "wan22-service": {"worker1", "worker2"},
        "edge": {"master"},
        "redis": {"master"},
    }
    worker = next(
        one
        for one in jobs["wan22-service"]["static_configs"]
        if one["labels"]["instance"] == "worker1"
    )
    assert worker == {
        "targets": ["192.168.0.21:31080"],
        "labels": {"instance": "worker1", "group": "workers"},
    }
    check_with_promtool(tmp_path / "prometheus.yml")


def test_every_host_is_in_the_group_of_the_documented_table(tmp_path: Path) -> None:
    jobs = scrape(tmp_path, t2v_runtime="docker", prometheus_hosts=["harbor", "ansible", "master"])
    found = {
        one["labels"]["instance"]: one["labels"]["group"] for one in jobs["node"]["static_configs"]
    }
    assert found == {"harbor": "harbor", "ansible": "ansible", "master": "masters"}


def relabelled(job: dict[str, Any], labels: dict[str, str]) -> dict[str, str]:
    """What the job's rules of the action ``replace`` make of the labels of a target."""
    for rule in job["relabel_configs"]:
        if rule.get("action", "replace") != "replace":
            continue
        value = rule.get("separator", ";").join(
            labels.get(name, "") for name in rule.get("source_labels", [])
        )
        found = re.fullmatch(str(rule.get("regex", "(.*)")), value)
        if found:
            text = re.sub(r"\$\{?(\d+)\}?", r"\\\1", str(rule.get("replacement", "$1")))
            text = found.expand(text)
            labels = {**labels, rule["target_label"]: text}
    return labels


def test_kubernetes_runtime_discovers_nodes_and_pods(tmp_path: Path) -> None:
    jobs = scrape(tmp_path, t2v_runtime="kubernetes", prometheus_kubernetes_api="192.168.0.20:6443")
    assert "edge" not in jobs and "redis" not in jobs and instances(jobs["node"]) == HOSTS

    nodes = jobs["kubernetes-nodes"]
    (discovery,) = nodes["kubernetes_sd_configs"]
    assert (discovery["role"], discovery["api_server"]) == ("node", "https://192.168.0.20:6443")
    assert discovery["authorization"] == {"credentials_file": f"{tmp_path}/token"}
    assert discovery["tls_config"] == {"ca_file": f"{tmp_path}/ca"}
    # node_exporter is asked without the token of the discovery.
    assert "authorization" not in nodes and nodes.get("scheme", "http") == "http"
    node = relabelled(
        nodes, {"__address__": "192.168.0.21:10250", "__meta_kubernetes_node_name": "worker1"}
    )
    assert node["__address__"] == "192.168.0.21:9100"
    assert (node["instance"], node["group"]) == ("worker1", "workers")

    service = jobs["wan22-service"]
    (discovery,) = service["kubernetes_sd_configs"]
    assert discovery["role"] == "pod"
    assert discovery["selectors"] == [{"role": "pod", "label": "app=wan22-t2v"}]
    assert discovery["namespaces"] == {"names": ["t2v"]}
    assert service["authorization"] == {"credentials_file": f"{tmp_path}/scrape_token"}
    assert service["tls_config"] == {"ca_file": f"{tmp_path}/ca"}
    pod = relabelled(
        service,
        {
            "__address__": "10.244.1.5:8080",
            "__meta_kubernetes_namespace": "default",
            "__meta_kubernetes_pod_name": "wan22-t2v-1",
            "__meta_kubernetes_pod_node_name": "worker2",
        },
    )
    assert service["scheme"] == "https" and pod["__address__"] == "192.168.0.20:6443"
    path = "/api/v1/namespaces/default/pods/wan22-t2v-1:8080/proxy/metrics"
    assert pod["__metrics_path__"] == path
    assert (pod["instance"], pod["group"]) == ("worker2", "workers")
    assert pod["pod"] == "wan22-t2v-1"


def test_promtool_takes_what_is_rendered_for_a_cluster(tmp_path: Path) -> None:
    scrape(tmp_path, t2v_runtime="kubernetes")
    check_with_promtool(tmp_path / "prometheus.yml")


@pytest.mark.parametrize(("systemd", "strict"), [(219, False), (239, True), (252, True)])
def test_a_unit_says_what_its_systemd_knows(tmp_path: Path, systemd: int, strict: bool) -> None:
    text = render(
        "daemon",
        "etc/systemd/system/daemon.service.j2",
        tmp_path / "unit",
        "worker1",
        daemon_name="x",
        daemon_description="x",
        daemon_program="/opt/x/x",
        daemon_user="x",
        daemon_arguments=[r"--units=.+\.(a|b)$", "--part=50%"],
        daemon_writable=["/var/lib/x"],
        daemon_source="archive",
        _daemon_systemd=systemd,
    )
    assert ("ProtectSystem=strict" in text) is strict
    assert ("ReadWritePaths=/var/lib/x" in text) is strict
    assert ("ReadWriteDirectories=/var/lib/x" in text) is not strict
    assert ("SystemCallFilter=" in text) is strict
    assert "NoNewPrivileges=true" in text and "CapabilityBoundingSet=\n" in text
    # As systemd reads it: a backslash, a dollar and a percent sign stand twice.
    assert "/opt/x/x \\\n  --units=.+\\\\.(a|b)$$ \\\n  --part=50%%\n" in text
