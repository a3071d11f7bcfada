"""The inventory is the documented site, and a wrong one is refused with a clear sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller import ROOT, ansible

DOCUMENTED = {
    "master": ("masters", "192.168.0.20"),
    "worker1": ("workers", "192.168.0.21"),
    "worker2": ("workers", "192.168.0.22"),
    "nfs-server": ("nfs", "192.168.0.36"),
    "harbor": ("harbor", "192.168.0.34"),
    "prometheus": ("prometheus", "192.168.0.33"),
    "ansible": ("ansible", "192.168.0.30"),
}


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    """What ``ansible-inventory --list`` says about inventory/."""
    listed = ansible("ansible-inventory", "-i", "inventory/", "--list")
    assert listed.returncode == 0, listed.stderr
    content = json.loads(listed.stdout)
    assert isinstance(content, dict)
    return content


def test_hosts_and_groups_are_the_documented_ones(site: dict[str, Any]) -> None:
    hosts = {
        host: (group, site["_meta"]["hostvars"][host]["ansible_host"])
        for group, content in site.items()
        if group != "_meta"
        for host in content.get("hosts", [])
    }
    assert hosts == DOCUMENTED
    assert set(site["_meta"]["hostvars"]) == set(DOCUMENTED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ansible_user", "root"),
        ("t2v_domain", "t2v.sanchuang.ai"),
        ("t2v_runtime", "kubernetes"),
        ("t2v_subnet", "192.168.0.0/24"),
        ("t2v_gateway", "192.168.0.2"),
        ("t2v_dns_servers", ["8.8.8.8", "114.114.114.114"]),
        ("t2v_interface", "ens33"),
        ("t2v_videos_dir", "/shared/videos"),
        ("t2v_storage", "nfs"),
        ("t2v_nfs_export", "/nfs/videos"),
        ("t2v_nfs_article_export", False),
        ("t2v_registry_port", 5001),
        ("t2v_image_repository", "ai/wan2.2-t2v-5b"),
        ("t2v_image_tag", "v1"),
        ("t2v_model", "tiny"),
        ("t2v_service_port", 31080),
        ("ingress_provider", "nginx"),
        ("t2v_autoscaler", "hpa"),
        ("t2v_replicas", 2),
        ("t2v_replicas_max", 6),
        ("t2v_gpus", 1),
        ("t2v_gpu_memory_gib", 16),
    ],
)
def test_values_are_the_documented_ones(site: dict[str, Any], name: str, value: object) -> None:
    assert site["_meta"]["hostvars"]["worker1"][name] == value


def test_registry_is_the_documented_address() -> None:
    answer = ansible(
        "ansible", "-i", "inventory/", "worker1", "-m", "debug", "-a", "var=t2v_registry"
    )
    assert '"t2v_registry": "192.168.0.34:5001"' in answer.stdout


def test_the_share_is_the_documented_one_and_for_the_cluster_s_nodes_alone() -> None:
    shown = {"msg": "{{ t2v_nfs_server }}:{{ t2v_nfs_export }} {{ t2v_nfs_clients | join(' ') }}"}
    answer = ansible(
        *("ansible", "-i", "inventory/", "worker1", "-m", "debug", "-a", json.dumps(shown))
    )
    assert "192.168.0.36:/nfs/videos 192.168.0.20 192.168.0.21 192.168.0.22" in answer.stdout


def test_every_variable_is_explained_where_it_is_defined() -> None:
    for path in (ROOT / "inventory/group_vars/all").glob("*.yml"):
        for paragraph in re.split(r"\n\s*\n", path.read_text().removeprefix("---\n")):
            if re.search(r"^[a-z]", paragraph, re.MULTILINE):
                assert paragraph.startswith("#"), paragraph


@pytest.mark.parametrize(
    ("host", "published", "needed"),
    [
        ("harbor", False, 40960),
        ("worker1", False, 20480),
        ("master", False, 0),
        ("harbor", True, 2048),
        ("worker1", True, 2048),
        ("master", True, 0),
    ],
)
def test_space_is_demanded_until_the_images_are_there(
    tmp_path: Path, host: str, published: bool, needed: int
) -> None:
    record = tmp_path / "image.json"
    if published:
        record.write_text("{}")
    answer = ansible(
        *("ansible", "-i", "inventory/", host, "-m", "debug", "-a", "var=_preflight_needed_mib"),
        *("-e", "@roles/preflight/defaults/main.yml", "-e", "@roles/preflight/vars/main.yml"),
        *("-e", json.dumps({"t2v_image_record": str(record)})),
    )
    assert re.search(rf'"_preflight_needed_mib": "?{needed}"?\n', answer.stdout), answer.stdout


class Preflight:
    """The inventory's checks, run on a copy of inventory/ that a test has edited."""

    def __init__(self, directory: Path) -> None:
        self.inventory = directory / "inventory"
        shutil.copytree(ROOT / "inventory", self.inventory)
        self.hosts = self.inventory / "hosts.yml"

    def replace(self, old: str, new: str) -> None:
        text = self.hosts.read_text()
        assert old in text
        self.hosts.write_text(text.replace(old, new))

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        settings = {"t2v_runtime": "docker"} | variables
        return ansible(
            "ansible-playbook",
            *("-i", str(self.inventory), "playbooks/preflight.yml"),
            *("--tags", "preflight_inventory", "-e", json.dumps(settings)),
        )

    def sentence(self, **variables: str) -> str:
        """What it refuses the inventory with."""
        done = self.run(**variables)
        assert done.returncode != 0, done.stdout
        found = re.search(r'"msg": "(.*)"', done.stdout)
        assert found, done.stdout + done.stderr
        return str(json.loads(f'"{found[1]}"')).replace(str(self.hosts), "hosts.yml")


@pytest.fixture
def preflight(tmp_path: Path) -> Preflight:
    return Preflight(tmp_path)


@pytest.mark.parametrize("runtime", ["docker", "kubernetes"])
def test_documented_site_is_accepted(preflight: Preflight, runtime: str) -> None:
    done = preflight.run(t2v_runtime=runtime)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        (
            "kubernetes_version",
            "1.27.9",
            "kubernetes_version is '1.27.9': set it to one from 1.28 up, such as 1.28.15, in"
            " inventory/group_vars/all/kubernetes.yml.",
        ),
        (
            "kubernetes_version",
            "1.30.2",
            "There is no SHA-256 of Kubernetes 1.30.2: write those of kubeadm, kubelet and kubectl"
            " into t2v_kubernetes_checksums in inventory/group_vars/all/artifacts.yml, or set"
            " kubernetes_version to one of 1.28.15, 1.32.13, 1.36.4 in"
            " inventory/group_vars/all/kubernetes.yml.",
        ),
        (
            "t2v_pod_network_provider",
            "weave",
            "t2v_pod_network_provider is 'weave', which is unknown: set it to 'flannel', 'calico'"
            " or 'none' in inventory/group_vars/all/kubernetes.yml.",
        ),
    ],
)
def test_a_cluster_that_cannot_be_made_is_refused(
    preflight: Preflight, variable: str, value: str, sentence: str
) -> None:
    assert preflight.sentence(t2v_runtime="kubernetes", **{variable: value}) == sentence


def test_a_second_control_plane_is_refused(preflight: Preflight) -> None:
    preflight.replace(
        "          ansible_host: 192.168.0.20\n",
        "          ansible_host: 192.168.0.20\n        master2:\n"
        "          ansible_host: 192.168.0.19\n",
    )
    assert preflight.sentence(t2v_runtime="kubernetes") == (
        "Group 'masters' has master and master2 in hosts.yml, and one control plane is all that can"
        " be made: keep one of them."
    )


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        pytest.param(
            lambda p: p.replace("192.168.0.22", "192.168.0.21"),
            "Address 192.168.0.21 is given to worker1 and worker2: give each host an ansible_host"
            " of its own in hosts.yml.",
            id="address-twice",
        ),
        pytest.param(
            lambda p: p.replace("192.168.0.22", "192.168.0.2"),
            "Host 'worker2' has the address 192.168.0.2, which is the gateway's: change its"
            " ansible_host in hosts.yml, or t2v_gateway in inventory/group_vars/all/site.yml.",
            id="gateway",
        ),
        pytest.param(
            lambda p: p.replace("192.168.0.22", "192.168.1.22"),
            "Host 'worker2' has the address 192.168.1.22, which is not a host address of"
            " t2v_subnet 192.168.0.0/24: change its ansible_host in hosts.yml, or t2v_subnet in"
            " inventory/group_vars/all/site.yml.",
            id="outside",
        ),
        pytest.param(
            lambda p: p.replace("192.168.0.22", "192.168.0.255"),
            "Host 'worker2' has the address 192.168.0.255, which is not a host address of"
            " t2v_subnet 192.168.0.0/24: change its ansible_host in hosts.yml, or t2v_subnet in"
            " inventory/group_vars/all/site.yml.",
            id="broadcast",
        ),
        pytest.param(
            lambda p: p.replace("192.168.0.22", "192.168.0.222.1"),
            "Host 'worker2' has ansible_host '192.168.0.222.1', which is not an IPv4 address:"
            " correct it in hosts.yml.",
            id="no-address",
        ),
        pytest.param(
            lambda p: p.replace("worker2:\n          ansible_host: 192.168.0.22", "worker2:"),
            "Host 'worker2' has no address: set its ansible_host in hosts.yml.",
            id="address-missing",
        ),
        pytest.param(
            lambda p: p.replace(
                "prometheus:\n          ansible_host: 192.168.0.33",
                "worker1:\n          ansible_host: 192.168.0.33",
            ),
            "Host 'worker1' is defined 2 times in hosts.yml (ansible_host 192.168.0.21 and"
            " 192.168.0.33): keep one of them, or give the other machine a name of its own.",
            id="name-twice",
        ),
        pytest.param(
            lambda p: p.replace("        harbor:\n          ansible_host: 192.168.0.34\n", ""),
            "Group 'harbor' has no host in hosts.yml: add at least one host to it.",
            id="group-empty",
        ),
        pytest.param(
            lambda p: p.replace("    masters:\n", "    controllers:\n"),
            "Group 'masters' has no host in hosts.yml: add at least one host to it.",
            id="group-missing",
        ),
        pytest.param(
            lambda p: p.replace("        nfs-server:\n          ansible_host: 192.168.0.36\n", ""),
            "t2v_storage is 'nfs' and group 'nfs' has no host in hosts.yml: add one to it, or mount"
            " a share at t2v_videos_dir of every worker yourself and set t2v_storage to 'mounted'"
            " in inventory/group_vars/all/storage.yml.",
            id="nfs-empty",
        ),
    ],
)
def test_wrong_hosts_are_refused(
    preflight: Preflight, edit: Callable[[Preflight], None], sentence: str
) -> None:
    edit(preflight)
    assert preflight.sentence() == sentence


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        (
            "t2v_runtime",
            "podman",
            "t2v_runtime is 'podman', which is unknown: set it to 'docker' or 'kubernetes' in"
            " inventory/group_vars/all/site.yml.",
        ),
        (
            "t2v_grafana",
            True,
            "t2v_grafana is true, whose package has no SHA-256: set that of"
            " t2v_artifacts.grafana_deb or grafana_rpm in inventory/group_vars/all/artifacts.yml.",
        ),
        (
            "t2v_registry_flavour",
            "quay",
            "t2v_registry_flavour is 'quay', which is unknown: set it to 'distribution' or"
            " 'harbor' in inventory/group_vars/all/registry.yml.",
        ),
        (
            "t2v_registry_flavour",
            "harbor",
            "t2v_registry_flavour is 'harbor', whose installer has no SHA-256: set"
            " t2v_artifacts.harbor.sha256 in inventory/group_vars/all/artifacts.yml.",
        ),
        (
            "t2v_gpu",
            "yes",
            "t2v_gpu is 'yes' for worker1 and worker2, which is unknown: set it to 'auto',"
            " 'required' or 'none' in inventory/group_vars/all/gpu.yml.",
        ),
        (
            "t2v_gpu_driver_min",
            "535",
            "t2v_gpu_driver_min is '535', which is not a version: set it to one such as 530.30.02"
            ' (a driver) or "12.1" (CUDA) in inventory/group_vars/all/gpu.yml.',
        ),
        (
            "t2v_registry_port",
            "70000",
            "t2v_registry_port is '70000', which is not a port: set it to a number from 1 to 65535"
            " in inventory/group_vars/all/registry.yml.",
        ),
        (
            "t2v_monitoring_source",
            "snap",
            "t2v_monitoring_source is 'snap' for ansible, harbor, master, nfs-server, prometheus,"
            " worker1, worker2, which is unknown: set it to 'archive' or 'distribution' in"
            " inventory/group_vars/all/monitoring.yml.",
        ),
        (
            "t2v_monitoring",
            "maybe",
            "t2v_monitoring is 'maybe': set it to true or false in"
            " inventory/group_vars/all/monitoring.yml, or with -e '{\"t2v_monitoring\": false}'.",
        ),
        (
            "t2v_alertmanager_port",
            "0",
            "t2v_alertmanager_port is '0', which is not a port: set it to a number from 1 to 65535"
            " in inventory/group_vars/all/monitoring.yml.",
        ),
        (
            "t2v_service_port",
            "http",
            "t2v_service_port is 'http', which is not a port: set it to a number from 1 to 65535"
            " in inventory/group_vars/all/service.yml.",
        ),
        (
            "t2v_image_tag",
            "v1:latest",
            "t2v_image_tag is 'v1:latest', which is not an image tag: use up to 128 letters,"
            " digits, '_', '.' and '-' in inventory/group_vars/all/image.yml.",
        ),
        (
            "t2v_image_repository",
            "AI/wan",
            "t2v_image_repository is 'AI/wan', which no registry accepts: set it to lower-case"
            " words joined by '/', such as ai/wan2.2-t2v-5b, in"
            " inventory/group_vars/all/image.yml.",
        ),
        (
            "t2v_subnet",
            "192.168.0.0",
            "t2v_subnet is '192.168.0.0', which is not an IPv4 network such as 192.168.0.0/24:"
            " correct it in inventory/group_vars/all/site.yml.",
        ),
        (
            "t2v_gateway",
            "router",
            "t2v_gateway is 'router', which is not an IPv4 address: correct it in"
            " inventory/group_vars/all/site.yml.",
        ),
        (
            "t2v_domain",
            "T2V sanchuang",
            "t2v_domain is 'T2V sanchuang', which is not a host name: set it to a name in lower"
            " case such as t2v.example.org in inventory/group_vars/all/site.yml.",
        ),
        (
            "t2v_videos_dir",
            "videos",
            "t2v_videos_dir is 'videos': set it to an absolute path without spaces in"
            " inventory/group_vars/all/site.yml.",
        ),
        (
            "t2v_videos_uid",
            "0",
            "t2v_videos_uid is '0': set it to a number above 0 in"
            " inventory/group_vars/all/site.yml.",
        ),
        (
            "t2v_storage",
            "ceph",
            "t2v_storage is 'ceph', which is unknown: set it to 'nfs' or 'mounted' in"
            " inventory/group_vars/all/storage.yml.",
        ),
        (
            "t2v_nfs_export",
            "videos",
            "t2v_nfs_export is 'videos': set it to an absolute path without spaces in"
            " inventory/group_vars/all/storage.yml.",
        ),
    ],
)
def test_wrong_settings_are_refused(
    preflight: Preflight, variable: str, value: str, sentence: str
) -> None:
    assert preflight.sentence(**{variable: value}) == sentence


def test_missing_archive_is_refused(preflight: Preflight) -> None:
    assert preflight.sentence(t2v_image_base_archive="/nowhere/base.tar") == (
        "t2v_image_base_archive is '/nowhere/base.tar', and there is no such file on the"
        " controller: set it to a `docker save` archive that holds"
        " docker.io/pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime, or to an empty string in"
        " inventory/group_vars/all/image.yml."
    )


def test_every_fault_is_named_at_once(preflight: Preflight) -> None:
    preflight.replace("192.168.0.22", "192.168.0.21")
    sentence = preflight.sentence(t2v_image_tag="a b")
    assert "Address 192.168.0.21 is given to worker1 and worker2" in sentence
    assert "t2v_image_tag is 'a b'" in sentence


def test_no_host_is_touched_while_the_inventory_is_wrong(preflight: Preflight) -> None:
    preflight.replace("192.168.0.22", "192.168.0.21")
    done = ansible(
        "ansible-playbook", "-i", str(preflight.inventory), "site.yml", "-e", "t2v_runtime=docker"
    )
    assert done.returncode != 0
    assert "Probe the host" not in done.stdout
    assert "unreachable=1" not in done.stdout
