"""A bundle that is made is accepted; one that lacks something is refused, and told what.

STAND-INS: the files are a few bytes each, and `docker` is a script that pulls and saves nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller import ROOT, ansible

VERSION = "1.32.13"
KUBEADM_IMAGES = [
    f"registry.k8s.io/{name}"
    for name in (
        f"kube-apiserver:v{VERSION}",
        f"kube-controller-manager:v{VERSION}",
        f"kube-scheduler:v{VERSION}",
        f"kube-proxy:v{VERSION}",
        "coredns/coredns:v1.11.3",
        "pause:3.10",
        "etcd:3.5.24-0",
    )
]
REDIS = "docker.io/library/redis:7.2.11"
FLANNEL = "ghcr.io/flannel-io/flannel:v0.26.1"
PLUGIN = "nvcr.io/nvidia/k8s-device-plugin:v0.17.0"
# What the documented site's add-ons and its store of the jobs are made of, ingress-nginx aside.
IMAGES = [
    *KUBEADM_IMAGES,
    REDIS,
    FLANNEL,
    PLUGIN,
    "ghcr.io/flannel-io/flannel-cni-plugin:v1.6.0-flannel1",
    "registry.k8s.io/metrics-server/metrics-server:v0.7.2",
    "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.10.1",
]


def play(playbook: Path, **variables: Any) -> subprocess.CompletedProcess[str]:
    values = {"ansible_python_interpreter": "{{ ansible_playbook_python }}", **variables}
    return ansible("ansible-playbook", "-i", "inventory/", str(playbook), "-e", json.dumps(values))


class Bundle:
    """A bundle that was put together by hand, and whole until a test changes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index: dict[str, Any] = {
            "kubernetes_version": VERSION,
            "files": {
                "kubeadm": "bin/kubeadm",
                "kubelet": "bin/kubelet",
                "kubectl": "bin/kubectl",
                "cni_plugins": "bin/cni.tgz",
            },
            "images": {image: f"images/{number}.tar" for number, image in enumerate(IMAGES)},
        }
        for path in [*self.index["files"].values(), *self.index["images"].values()]:
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path)
        self.sum()

    def sum(self) -> None:
        (self.directory / "index.yml").write_text(yaml.safe_dump(self.index))
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(self.directory)}\n"
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and path.name != "SHA256SUMS"
        ]
        (self.directory / "SHA256SUMS").write_text("".join(lines))

    def check(self, **variables: Any) -> subprocess.CompletedProcess[str]:
        playbook = ROOT / "playbooks/check_bundle.yml"
        return play(playbook, t2v_bundle=str(self.directory), **variables)

    def sentence(self) -> str:
        done = self.check()
        assert done.returncode != 0, done.stdout
        found = re.findall(r'"msg": "(.*)"', done.stdout)
        assert found, done.stdout + done.stderr
        return str(json.loads(f'"{found[-1]}"')).replace(str(self.directory), "BUNDLE")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "bundle")


def test_one_that_was_put_together_by_hand_is_accepted(bundle: Bundle) -> None:
    done = bundle.check()
    assert done.returncode == 0, done.stdout


def no_sums(bundle: Bundle) -> None:
    (bundle.directory / "SHA256SUMS").unlink()


def no_version(bundle: Bundle) -> None:
    del bundle.index["kubernetes_version"]
    bundle.sum()


def no_kubectl(bundle: Bundle) -> None:
    del bundle.index["files"]["kubectl"]
    bundle.sum()


def no_etcd(bundle: Bundle) -> None:
    del bundle.index["images"][KUBEADM_IMAGES[-1]]
    bundle.sum()


def no_redis(bundle: Bundle) -> None:
    del bundle.index["images"][REDIS]
    bundle.sum()


def no_addons(bundle: Bundle) -> None:
    del bundle.index["images"][FLANNEL]
    del bundle.index["images"][PLUGIN]
    bundle.sum()


def no_line(bundle: Bundle) -> None:
    sums = bundle.directory / "SHA256SUMS"
    kept = [line for line in sums.read_text().splitlines(True) if "kubelet" not in line]
    sums.write_text("".join(kept))


def damaged(bundle: Bundle) -> None:
    (bundle.directory / "bin/kubelet").write_text("cut")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            no_sums,
            "t2v_bundle is 'BUNDLE' and there is no BUNDLE/SHA256SUMS on the controller: name a"
            " directory that playbooks/bundle.yml made, or one in the layout of docs/bundle.md.",
        ),
        (
            no_version,
            "BUNDLE/index.yml names no kubernetes_version such as 1.28.15: write the one of its"
            " binaries there.",
        ),
        (no_kubectl, "BUNDLE/index.yml names no file for kubectl: add it below files."),
        (
            no_etcd,
            "BUNDLE/index.yml names no archive of registry.k8s.io/etcd:*: add it below images.",
        ),
        (
            no_redis,
            f"BUNDLE/index.yml names no archive of {REDIS}: add it below images, or name one that"
            " it has or that 192.168.0.34:5001 has in t2v_deploy_redis_image.",
        ),
        (
            no_addons,
            f"BUNDLE/index.yml names no archive of {FLANNEL}, {PLUGIN}: add it below images, name"
            " one that it has or that 192.168.0.34:5001 has in cluster_addons_*_image, or switch"
            " the add-on off.",
        ),
        (
            no_line,
            "BUNDLE/SHA256SUMS does not have bin/kubelet: add its line, as sha256sum prints it.",
        ),
        (
            damaged,
            "BUNDLE is not whole: bin/kubelet: FAILED; sha256sum: WARNING: 1 computed checksum did"
            " NOT match. Copy the bundle again.",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_that_lacks_something_is_refused(
    bundle: Bundle, damage: Callable[[Bundle], None], sentence: str
) -> None:
    damage(bundle)
    assert bundle.sentence() == sentence


def test_what_is_off_or_in_the_site_s_registry_need_not_be_in_it(bundle: Bundle) -> None:
    no_redis(bundle)
    no_addons(bundle)
    own = "192.168.0.34:5001/ai/redis:7.2"
    off = {"t2v_pod_network_provider": "none", "cluster_addons_device_plugin": False}
    assert bundle.check(**off, t2v_deploy_redis_image=own).returncode == 0
    assert bundle.check(**off, t2v_job_store="sqlite", t2v_replicas=1).returncode == 0
    mirrored = "192.168.0.34:5001/ai/mirror/docker.io/library/redis:7.2.11"
    assert bundle.check(**off, t2v_deploy_redis_image=mirrored).returncode != 0


@pytest.mark.parametrize("playbook", ["cluster", "upgrade"])
def test_it_is_asked_before_any_host_is_touched(bundle: Bundle, playbook: str) -> None:
    no_redis(bundle)
    done = play(
        ROOT / f"playbooks/{playbook}.yml",
        t2v_bundle=str(bundle.directory),
        t2v_runtime="kubernetes",
    )
    assert done.returncode != 0
    assert f"index.yml names no archive of {REDIS}" in done.stdout
    assert re.findall(r"^(\S+) +: ok=", done.stdout, flags=re.MULTILINE) == ["localhost"]


def test_one_that_is_made_is_accepted(tmp_path: Path) -> None:
    """From files that lie here, as of a profile `offline`."""
    offline = tmp_path / "offline"
    offline.mkdir()
    listed = "\n".join(KUBEADM_IMAGES)
    table = {}
    for name in ("kubeadm", "kubelet", "kubectl", "cni_plugins"):
        text = f"#!/bin/sh\ncat <<'E'\n{listed}\nE\n" if name == "kubeadm" else name
        (offline / name).write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        table[name] = {"version": VERSION, "mirror": "x", "path": f"a/{name}", "sha256": digest}
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = save ] && echo "$4" > "$3"; exit 0\n')
    docker.chmod(0o755)
    made = tmp_path / "made"
    settings: dict[str, Any] = {
        "t2v_mirror": "offline",
        "t2v_offline_dir": str(offline),
        "t2v_artifacts": table,
        "kubernetes_version": VERSION,
        "t2v_state_dir": str(tmp_path),
        "bundle_make_dir": str(made),
        "bundle_make_files": list(table),
        "bundle_make_engine": str(docker),
    }
    first = play(ROOT / "playbooks/bundle.yml", **settings)
    assert first.returncode == 0, first.stdout[-3000:]
    again = play(ROOT / "playbooks/bundle.yml", **settings)
    assert "changed=0" in again.stdout, again.stdout[-3000:]
    index = yaml.safe_load((made / "index.yml").read_text())
    assert set(IMAGES) < set(index["images"])
    # Those of the add-ons that are on.
    assert any("flannel" in image for image in index["images"])
    done = play(ROOT / "playbooks/check_bundle.yml", t2v_bundle=str(made))
    assert done.returncode == 0, done.stdout
