"""Stand-ins: metrics of what this machine has not, as their exporters' documentation names them.

A GPU (dcgm-exporter's default counters), a cluster (kube-state-metrics), the kernel's NFS server
and systemd (node_exporter). None of these numbers was measured; whoever shows them says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

# What in an expression comes from here, and why.
REASONS = {
    "DCGM_": "no GPU",
    ":dcgm_": "no GPU",
    "kube_": "no cluster",
    "node_nfsd_": "no NFS server in this kernel",
    'fstype=~"nfs.*"': "no NFS mount",
    "node_systemd_": "systemd does not run here",
    "t2v_certificate_": "no certificates of a site",
}
STARTED = time.time()


def _wave(low: float, high: float, seconds: float = 120, shift: float = 0) -> float:
    """Something that moves."""
    turn = math.sin(2 * math.pi * (time.time() - STARTED) / seconds + shift)
    return round(low + (high - low) * (turn + 1) / 2, 2)


def _since(rate: float) -> float:
    return round((time.time() - STARTED) * rate, 2)


def _page(samples: Iterable[tuple[str, dict[str, str], float]]) -> str:
    lines = []
    for name, labels, value in samples:
        inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "\n".join(lines) + "\n"


def dcgm() -> str:
    """One T4, as dcgm-exporter 3.x tells it."""
    card = {
        "gpu": "0",
        "UUID": "GPU-00000000-0000-0000-0000-000000000000",
        "device": "nvidia0",
        "modelName": "Tesla T4",
        "Hostname": "worker1",
    }
    busy = _wave(5, 99)
    values = {
        "DCGM_FI_DEV_SM_CLOCK": 585 + 10 * busy,
        "DCGM_FI_DEV_MEM_CLOCK": 5000,
        "DCGM_FI_DEV_MEMORY_TEMP": 0,
        "DCGM_FI_DEV_GPU_TEMP": round(45 + busy / 3),
        "DCGM_FI_DEV_POWER_USAGE": 27 + busy / 2.4,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": _since(50_000),
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 0,
        "DCGM_FI_DEV_GPU_UTIL": round(busy),
        "DCGM_FI_DEV_MEM_COPY_UTIL": round(busy / 2),
        "DCGM_FI_DEV_ENC_UTIL": 0,
        "DCGM_FI_DEV_DEC_UTIL": 0,
        "DCGM_FI_DEV_XID_ERRORS": 0,
        "DCGM_FI_DEV_FB_FREE": 15109 - 11000 - busy * 20,
        "DCGM_FI_DEV_FB_USED": 11000 + busy * 20,
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 0,
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 0,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
        "DCGM_FI_DEV_VGPU_LICENSE_STATUS": 0,
    }
    return _page((name, card, value) for name, value in values.items())


def kube_state_metrics() -> str:
    """The documented cluster, as kube-state-metrics 2.x tells it: a third pod waits for a GPU."""
    samples: list[tuple[str, dict[str, str], float]] = [
        ("kube_namespace_created", {"namespace": "default"}, STARTED)
    ]
    for node in ("master", "worker1", "worker2"):
        for condition in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"):
            labels = {"node": node, "condition": condition, "status": "true"}
            samples.append(("kube_node_status_condition", labels, float(condition == "Ready")))
        gpus = {"node": node, "resource": "nvidia_com_gpu", "unit": "integer"}
        samples.append(("kube_node_status_allocatable", gpus, float(node != "master")))
    for number in range(3):
        pod = {"namespace": "default", "pod": f"wan22-t2v-deployment-{number}"}
        asked = {"container": "t2v", "resource": "nvidia_com_gpu", "unit": "integer"}
        samples.append(("kube_pod_container_resource_requests", {**pod, **asked}, 1))
        for phase in ("Pending", "Running", "Succeeded", "Failed", "Unknown"):
            here = phase == ("Pending" if number == 2 else "Running")
            samples.append(("kube_pod_status_phase", {**pod, "phase": phase}, float(here)))
        restarts = {**pod, "container": "t2v"}
        samples.append(("kube_pod_container_status_restarts_total", restarts, 0))
        waiting = {**pod, "container": "t2v", "reason": "ContainerCreating"}
        if number == 2:
            samples.append(("kube_pod_container_status_waiting_reason", waiting, 1))
    deployment = {"namespace": "default", "deployment": "wan22-t2v-deployment"}
    for name, value in (
        ("kube_deployment_spec_replicas", 3),
        ("kube_deployment_status_replicas_available", 2),
        ("kube_deployment_status_replicas_updated", 3),
    ):
        samples.append((name, deployment, value))
    daemons = {"namespace": "kube-system", "daemonset": "nvidia-device-plugin-daemonset"}
    for name in ("desired_number_scheduled", "number_available"):
        samples.append((f"kube_daemonset_status_{name}", daemons, 2))
    autoscaler = {"namespace": "default", "horizontalpodautoscaler": "wan22-hpa"}
    for name, value in (
        ("status_current_replicas", 3),
        ("status_desired_replicas", 3),
        ("spec_max_replicas", 6),
        ("spec_min_replicas", 2),
    ):
        samples.append((f"kube_horizontalpodautoscaler_{name}", autoscaler, value))
    for phase in ("Pending", "Available", "Bound", "Released", "Failed"):
        volume = {"persistentvolume": "pv-video-output", "phase": phase}
        samples.append(("kube_persistentvolume_status_phase", volume, float(phase == "Bound")))
    return _page(samples)


def nfs_server() -> str:
    """What node_exporter tells of the kernel's NFS server, of systemd, and of a worker's mount."""
    mount = {
        "device": "192.168.0.36:/nfs/videos",
        "fstype": "nfs4",
        "mountpoint": "/shared/videos",
    }
    samples: list[tuple[str, dict[str, str], float]] = [
        ("node_nfsd_server_threads", {}, 16),
        ("node_nfsd_disk_bytes_read_total", {}, _since(2e5)),
        ("node_nfsd_disk_bytes_written_total", {}, _since(4e5)),
        ("node_filesystem_device_error", mount, 0),
    ]
    for rate, method in enumerate(("Compound", "GetAttr", "Lookup", "Write", "Commit"), start=1):
        labels = {"proto": "4", "method": method}
        samples.append(("node_nfsd_requests_total", labels, _since(rate)))
    for state in ("active", "failed"):
        unit = {"name": "nfs-server.service", "state": state, "type": "oneshot"}
        samples.append(("node_systemd_unit_state", unit, float(state == "active")))
    return _page(samples)


def certificates() -> str:
    """Ends of two certificates, a year from now."""
    end = time.time() + 390 * 24 * 3600
    return _page(
        ("t2v_certificate_not_after_seconds", {"name": name, "path": path}, round(end))
        for name, path in (
            ("registry", "/etc/docker/registry/tls.crt"),
            ("ca", "/etc/docker/registry/ca.crt"),
        )
    )
