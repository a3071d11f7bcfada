"""The cells that the manifests are rendered for, and the settings that are refused."""

from __future__ import annotations

import itertools
from typing import Any

Settings = dict[str, Any]

# The oldest version that the roles take, one in between, and the newest whose schemas there are.
VERSIONS = ("1.28", "1.32", "1.37")

AUTOSCALERS = ("none", "hpa", "keda")
INGRESSES = ("nginx", "gateway", "none")
# Everything else takes turns: no value of it meets always the same of the two above.
TURNS: tuple[tuple[Settings, ...], ...] = (
    (
        {"t2v_deploy_redis": True},
        {"t2v_deploy_redis": False},
        {"t2v_deploy_redis": True, "t2v_deploy_redis_storage": "none"},
        {
            "t2v_deploy_redis": True,
            "t2v_deploy_redis_storage": "class",
            "t2v_deploy_redis_class": "fast",
        },
    ),
    (
        {"t2v_storage": "nfs"},
        {"t2v_storage": "nfs", "t2v_nfs_article_export": True},
        {"t2v_storage": "mounted"},
    ),
    (
        {"t2v_model": "tiny"},
        {"t2v_model": "/var/cache/t2v/wan-int8", "t2v_deploy_models": "nfs"},
        {"t2v_model": "/var/cache/t2v/wan-int8", "t2v_deploy_models": "claim"},
        {"t2v_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "t2v_gpu_memory_gib": 24},
        {
            "t2v_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            "t2v_gpu_memory_gib": 24,
            "t2v_deploy_models": "nfs",
        },
    ),
    ({"t2v_gpu_time_slices": 1}, {"t2v_gpu_time_slices": 2}, {"t2v_gpu_time_slices": 4}),
    ({"t2v_runtime_class": "nvidia"}, {"t2v_runtime_class": ""}),
    (
        {},
        {"t2v_server_env": {"T2V_API_KEYS_FILE": "/etc/t2v/keys", "T2V_RATE_LIMIT": "6/minute"},
         "t2v_deploy_files": {"keys": "alice sha256:00 t2v:read\n"}},
    ),
    tuple({"kubernetes_version": f"{version}.0"} for version in VERSIONS),
)  # fmt: skip

DIGEST = "192.168.0.34:5001/ai/wan2.2-t2v-5b@sha256:" + "0123456789abcdef" * 4

NAMED: dict[str, Settings] = {
    "documented": {},
    **{f"documented-{version}": {"kubernetes_version": f"{version}.0"} for version in VERSIONS},
    "fixed": {"t2v_autoscaler": "none"},
    "keda": {"t2v_autoscaler": "keda"},
    "gateway": {"ingress_provider": "gateway"},
    "slices": {"t2v_gpu_time_slices": 4},
    "no-gpu": {"t2v_deploy_gpus": 0},
    "one-pod": {
        "t2v_job_store": "sqlite",
        "t2v_autoscaler": "none",
        "t2v_replicas": 1,
    },
    "drain": {"t2v_drain_seconds": 3600},
    "digest": {"t2v_image_record": "{{ cells_dir }}/recorded.json"},
    "other-tag": {"t2v_image_record": "{{ cells_dir }}/recorded.json", "t2v_image_tag": "v2"},
    "master-redis": {"t2v_deploy_redis": False},
    "hub": {"t2v_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "t2v_gpu_memory_gib": 24},
}


def crossed() -> dict[str, Settings]:
    """Every autoscaler with every way in, twice; the rest takes turns."""
    cells: dict[str, Settings] = {}
    for index, (autoscaler, ingress, again) in enumerate(
        itertools.product(AUTOSCALERS, INGRESSES, range(2))
    ):
        settings: Settings = {"t2v_autoscaler": autoscaler, "ingress_provider": ingress}
        for choices in TURNS:
            settings |= choices[(index + again * 5) % len(choices)]
        cells[f"{autoscaler}-{ingress}-{again + 1}"] = settings
    return cells


CELLS = NAMED | crossed()

KUBERNETES_FILE = "inventory/group_vars/all/kubernetes.yml"
SERVICE_FILE = "inventory/group_vars/all/service.yml"

# What is refused, and the sentence.
WRONG: dict[str, tuple[Settings, str]] = {
    "autoscaler-unknown": (
        {"t2v_autoscaler": "vpa"},
        "t2v_autoscaler is 'vpa': set it to one of 'hpa', 'keda' and 'none' in"
        f" {KUBERNETES_FILE}; two at once would fight over the number of pods.",
    ),
    "autoscaler-two": (
        {"t2v_autoscaler": "hpa,keda"},
        "t2v_autoscaler is 'hpa,keda': set it to one of 'hpa', 'keda' and 'none' in"
        f" {KUBERNETES_FILE}; two at once would fight over the number of pods.",
    ),
    "keda-alone": (
        {"t2v_autoscaler": "keda", "t2v_deploy_prometheus": ""},
        "t2v_autoscaler is 'keda', which asks a Prometheus for the number of jobs, and there is"
        " none: add a host to group 'prometheus', set t2v_deploy_prometheus to the URL of one, or"
        f" set t2v_autoscaler to 'hpa' in {KUBERNETES_FILE}.",
    ),
    "max-below-min": (
        {"t2v_replicas_max": 1},
        "t2v_replicas_max is 1 and t2v_replicas is 2: raise the one or lower the other in"
        f" {KUBERNETES_FILE}.",
    ),
    "replicas": (
        {"t2v_replicas": 0},
        f"t2v_replicas is '0': set it to a number from 1 to 9999 in {KUBERNETES_FILE}.",
    ),
    "too-few-gpus": (
        {"t2v_replicas": 3},
        "t2v_replicas is 3 and the workers have GPUs for 2 pods: lower t2v_replicas in"
        f" {KUBERNETES_FILE}, or correct t2v_gpus, or let pods share a GPU by"
        " t2v_gpu_time_slices, in inventory/group_vars/all/gpu.yml.",
    ),
    "ingress": (
        {"ingress_provider": "traefik"},
        "ingress_provider is 'traefik', which is unknown: set it to 'nginx', 'gateway' or 'none'"
        f" in {KUBERNETES_FILE}.",
    ),
    "version-old": (
        {"kubernetes_version": "1.27.9"},
        "kubernetes_version is '1.27.9', and this release knows 1.28 to 1.37: set it to one such"
        f' as "1.28.15", in quotation marks, in {KUBERNETES_FILE}.',
    ),
    "version-number": (
        {"kubernetes_version": 1.3},
        "kubernetes_version is '1.3', and this release knows 1.28 to 1.37: set it to one such as"
        f' "1.28.15", in quotation marks, in {KUBERNETES_FILE}.',
    ),
    "model-gpu": (
        {"t2v_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"},
        "t2v_model is 'Wan-AI/Wan2.2-TI2V-5B-Diffusers', which as published takes a GPU with 24"
        " GiB, and t2v_gpu_memory_gib is 16: set t2v_model to the directory of a smaller,"
        f" prepared checkpoint in {SERVICE_FILE}, or correct t2v_gpu_memory_gib in"
        " inventory/group_vars/all/gpu.yml.",
    ),
    "model-memory": (
        {
            "t2v_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            "t2v_gpu_memory_gib": 24,
            "t2v_memory_gib": 8,
        },
        "t2v_model is 'Wan-AI/Wan2.2-TI2V-5B-Diffusers', which takes 32 GiB of memory while it is"
        f" loaded, and t2v_memory_gib is 8: raise it in {SERVICE_FILE}, or set t2v_model there to"
        " the directory of a smaller, prepared checkpoint.",
    ),
    "model-elsewhere": (
        {"t2v_model": "/srv/wan", "t2v_deploy_models": "nfs"},
        "t2v_model is '/srv/wan', and a pod finds checkpoints below /var/cache/t2v alone: set"
        f" t2v_model to a directory there in {SERVICE_FILE}.",
    ),
    "model-nowhere": (
        {"t2v_model": "/var/cache/t2v/wan"},
        "t2v_model is '/var/cache/t2v/wan', and t2v_deploy_models is 'pod', where no checkpoint is"
        " before the pod: set t2v_deploy_models to 'nfs' or 'claim'.",
    ),
    "sqlite": (
        {"t2v_job_store": "sqlite"},
        "t2v_job_store is 'sqlite', which several pods cannot share: set it to 'redis' in"
        " inventory/group_vars/all/jobs.yml, or t2v_replicas to 1 and t2v_autoscaler to 'none' in"
        f" {KUBERNETES_FILE}.",
    ),
    "store": (
        {"t2v_deploy_store": "redis://user:secret@host/0"},
        "t2v_deploy_store is 'redis://user:secret@host/0': set it to 'sqlite' or to"
        " redis://HOST:PORT/0, without a password in it.",
    ),
    "node-port": (
        {"t2v_service_port": 8080},
        "t2v_service_port is '8080', which a cluster's nodes cannot publish: set it to a number"
        f" from 30000 to 32767 in {SERVICE_FILE}.",
    ),
    "namespace": (
        {"t2v_namespace": "T2V"},
        "t2v_namespace is 'T2V', which is not the name of a namespace: set it to at most 63"
        f" lower-case letters, digits and dashes in {KUBERNETES_FILE}.",
    ),
    "models": (
        {"t2v_deploy_models": "s3"},
        "t2v_deploy_models is 's3', which is unknown: set it to 'pod', 'nfs' or 'claim'.",
    ),
    "redis-class": (
        {"t2v_deploy_redis_storage": "class"},
        "t2v_deploy_redis_storage is 'class' and t2v_deploy_redis_class names none: set it to a"
        " storage class of the cluster.",
    ),
    "claim-size": (
        {"t2v_deploy_claim_size": "80Gi"},
        "t2v_deploy_claim_size is 80 and t2v_deploy_volume_size is 50: set the first to something"
        " above 0 and not above the second.",
    ),
    "drain-by-env": (
        {"t2v_server_env": {"T2V_GRACEFUL_TIMEOUT": "9999"}},
        f"t2v_server_env in {SERVICE_FILE} sets T2V_GRACEFUL_TIMEOUT, which the manifests depend"
        " on: set t2v_drain_seconds instead.",
    ),
    "secret-in-env": (
        {"t2v_server_env": {"HF_TOKEN": "hf_x"}},
        f"t2v_server_env in {SERVICE_FILE} sets HF_TOKEN, which everybody who sees a pod would"
        " read: put it into a file by t2v_deploy_files.",
    ),
}
