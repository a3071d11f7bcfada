"""The documented site's objects, field by field, as the specification's table has them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

import matrix
from conftest import Cell


@pytest.fixture
def deployment(documented: Cell) -> dict[str, Any]:
    return documented.manifests["deployment-wan22"]


@pytest.fixture
def pod(documented: Cell) -> dict[str, Any]:
    return documented.pod_specs()["wan22-t2v-deployment"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    assert len(pod["containers"]) == 1
    found: dict[str, Any] = pod["containers"][0]
    return found


def test_templates_have_the_article_s_names(documented: Cell) -> None:
    assert {
        "pv-video",
        "pvc-video",
        "deployment-wan22",
        "service-wan22",
        "ingress-wan22",
        "hpa-wan22",
    } <= set(documented.texts)


def test_volume(documented: Cell) -> None:
    volume = documented.manifests["pv-video"]
    assert volume["metadata"]["name"] == "pv-video-output"
    assert volume["spec"] == {
        "capacity": {"storage": "50Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "nfs",
        "nfs": {"server": "192.168.0.36", "path": "/nfs/videos"},
        "mountOptions": [
            *("nfsvers=4.1", "hard", "lookupcache=positive", "nosuid", "nodev", "noexec")
        ],
        "claimRef": {"namespace": "t2v", "name": "pvc-video-output"},
    }


def test_claim(documented: Cell) -> None:
    claim = documented.manifests["pvc-video"]
    assert claim["metadata"]["name"] == "pvc-video-output"
    assert claim["metadata"]["namespace"] == "t2v"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "20Gi"}},
        "storageClassName": "nfs",
        "volumeName": "pv-video-output",
    }


def test_deployment(deployment: dict[str, Any]) -> None:
    assert deployment["metadata"]["name"] == "wan22-t2v-deployment"
    assert deployment["spec"]["selector"] == {"matchLabels": {"app": "wan22-t2v"}}
    assert deployment["spec"]["template"]["metadata"]["labels"]["app"] == "wan22-t2v"


def test_image_is_the_documented_one(container: dict[str, Any]) -> None:
    assert container["name"] == "wan22-t2v"
    assert container["image"] == "192.168.0.34:5001/ai/wan2.2-t2v-5b:v1"


def test_image_goes_by_its_recorded_digest(cells: dict[str, Cell]) -> None:
    def image(cell: str) -> str:
        pod = cells[cell].pod_specs()["wan22-t2v-deployment"]
        return str(pod["containers"][0]["image"])

    assert image("digest") == matrix.DIGEST
    # The record is of v1.
    assert image("other-tag") == "192.168.0.34:5001/ai/wan2.2-t2v-5b:v2"


def test_resources(container: dict[str, Any]) -> None:
    assert container["resources"] == {
        "limits": {
            "nvidia.com/gpu": 1,
            "cpu": "4",
            "memory": "8Gi",
            "ephemeral-storage": "4Gi",
        },
        "requests": {
            "nvidia.com/gpu": 1,
            "cpu": "2",
            "memory": "6Gi",
            "ephemeral-storage": "2Gi",
        },
    }


def test_port_and_probes(container: dict[str, Any]) -> None:
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    get = {name: container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert get == {
        "livenessProbe": {"path": "/healthz", "port": 8080},
        "readinessProbe": {"path": "/ready", "port": 8080},
    }
    assert (
        container["livenessProbe"]["periodSeconds"],
        container["livenessProbe"]["timeoutSeconds"],
        container["readinessProbe"]["periodSeconds"],
        container["readinessProbe"]["timeoutSeconds"],
    ) == (30, 5, 10, 3)


def test_startup_probe_waits_for_the_model(cells: dict[str, Cell]) -> None:
    """As long as t2v_load_seconds: ten minutes for the tiny one, two hours for a download."""
    for name, seconds in (("documented", 600), ("hub", 7200)):
        probe = cells[name].pod_specs()["wan22-t2v-deployment"]["containers"][0]["startupProbe"]
        assert probe["httpGet"] == {"path": "/ready", "port": 8080}
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds


def test_videos_are_at_the_documented_path(pod: dict[str, Any], container: dict[str, Any]) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["video-storage"] == "/shared/videos"
    assert {
        "name": "video-storage",
        "persistentVolumeClaim": {"claimName": "pvc-video-output"},
    } in (pod["volumes"])
    assert mounts["shm"] == "/dev/shm"
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}} in (
        pod["volumes"]
    )


def test_pod_runs_as_the_owner_of_the_videos(pod: dict[str, Any]) -> None:
    """In-tree NFS ignores fsGroup; supplementalGroups is what the server sees."""
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)
    assert context["supplementalGroups"] == [10001]


def test_replicas_land_on_different_workers(pod: dict[str, Any]) -> None:
    assert pod["topologySpreadConstraints"] == [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            # The control plane's taint would else make it a third place without a pod.
            "nodeTaintsPolicy": "Honor",
            "labelSelector": {"matchLabels": {"app": "wan22-t2v"}},
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]


def test_rollout_needs_no_spare_gpu(deployment: dict[str, Any]) -> None:
    assert deployment["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }


@pytest.mark.parametrize("name", ["documented", "drain", "hub"])
def test_a_generation_may_finish_and_a_rollout_may_take_it(
    cells: dict[str, Cell], name: str
) -> None:
    manifests = cells[name].manifests
    drain = int(manifests["configmap-wan22"]["data"]["T2V_GRACEFUL_TIMEOUT"])
    spec = manifests["deployment-wan22"]["spec"]
    pod = spec["template"]["spec"]
    leave = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    startup = pod["containers"][0]["startupProbe"]
    assert pod["terminationGracePeriodSeconds"] > leave + drain
    assert spec["progressDeadlineSeconds"] > (
        pod["terminationGracePeriodSeconds"]
        + startup["periodSeconds"] * startup["failureThreshold"]
    )
    assert drain == {"drain": 3600}.get(name, 600)


def test_replicas_are_left_to_an_autoscaler(cell: Cell) -> None:
    owned = bool(cell.kinds("HorizontalPodAutoscaler", "ScaledObject"))
    assert ("replicas" in cell.manifests["deployment-wan22"]["spec"]) is not owned
    assert len(cell.kinds("HorizontalPodAutoscaler", "ScaledObject")) <= 1


def test_replicas_are_two_without_an_autoscaler(cells: dict[str, Cell]) -> None:
    assert cells["fixed"].manifests["deployment-wan22"]["spec"]["replicas"] == 2


def test_service(documented: Cell) -> None:
    service = documented.manifests["service-wan22"]
    assert service["metadata"]["name"] == "wan22-service"
    assert service["spec"] == {
        "type": "NodePort",
        "selector": {"app": "wan22-t2v"},
        "ports": [
            {
                "name": "http",
                "protocol": "TCP",
                "port": 8080,
                "targetPort": 8080,
                "nodePort": 31080,
            }
        ],
    }


def test_ingress(documented: Cell) -> None:
    ingress = documented.manifests["ingress-wan22"]
    assert ingress["metadata"]["name"] == "wan22-ingress"
    assert ingress["spec"] == {
        "ingressClassName": "nginx",
        "rules": [
            {
                "host": "t2v.sanchuang.ai",
                "http": {
                    "paths": [
                        {
                            "path": "/",
                            "pathType": "Prefix",
                            "backend": {
                                "service": {"name": "wan22-service", "port": {"number": 8080}}
                            },
                        }
                    ]
                },
            }
        ],
    }
    annotations = ingress["metadata"]["annotations"]
    assert "kubernetes.io/ingress.class" not in annotations
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) == 3600


def test_route_is_the_ingress_for_gateway_api(cells: dict[str, Cell]) -> None:
    cell = cells["gateway"]
    assert not cell.kinds("Ingress")
    route, gateway = cell.manifests["httproute-wan22"], cell.manifests["gateway-wan22"]
    assert route["spec"]["parentRefs"][0]["name"] == gateway["metadata"]["name"]
    assert route["spec"]["parentRefs"][0]["sectionName"] == gateway["spec"]["listeners"][0]["name"]
    assert route["spec"]["hostnames"] == ["t2v.sanchuang.ai"]
    assert route["spec"]["rules"] == [
        {
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "timeouts": {"request": "3600s", "backendRequest": "3600s"},
            "backendRefs": [{"name": "wan22-service", "port": 8080}],
        }
    ]


def test_no_way_in_but_the_node_port(cells: dict[str, Cell]) -> None:
    for name in ("none-none-1", "hpa-none-1", "keda-none-2"):
        assert not cells[name].kinds("Ingress", "Gateway", "HTTPRoute")
        # Whoever reaches the port may say what they like in X-Forwarded-For.
        assert cells[name].manifests["configmap-wan22"]["data"]["T2V_TRUSTED_PROXIES"] == "0"


@pytest.mark.parametrize(("name", "maximum"), [("documented", 2), ("slices", 6), ("no-gpu", 6)])
def test_hpa_and_its_effective_maximum(cells: dict[str, Cell], name: str, maximum: int) -> None:
    """Two workers with one GPU each have room for two pods, in four slices for eight."""
    hpa = cells[name].manifests["hpa-wan22"]
    assert hpa["apiVersion"] == "autoscaling/v2"
    assert hpa["metadata"]["name"] == "wan22-hpa"
    assert hpa["spec"]["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "wan22-t2v-deployment",
    }
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, maximum)
    assert hpa["spec"]["metrics"] == [
        {
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 60},
            },
        }
    ]


def test_keda_scales_on_the_jobs(cells: dict[str, Cell]) -> None:
    spec = cells["keda"].manifests["scaledobject-wan22"]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 2)
    assert spec["triggers"] == [
        {
            "type": "prometheus",
            "metadata": {
                "serverAddress": "http://192.168.0.33:9090",
                "query": "max(t2v_jobs_active)",
                "threshold": "2",
                "ignoreNullValues": "false",
            },
        }
    ]


def test_gpu_pods_ask_for_the_runtime_class(cells: dict[str, Cell]) -> None:
    def runtime_class(cell: str) -> object:
        return cells[cell].pod_specs()["wan22-t2v-deployment"].get("runtimeClassName")

    assert runtime_class("documented") == "nvidia"
    assert runtime_class("no-gpu") is None
    resources = cells["no-gpu"].pod_specs()["wan22-t2v-deployment"]["containers"][0]["resources"]
    assert "nvidia.com/gpu" not in resources["limits"] | resources["requests"]


def test_pull_secret_is_the_pull_account(documented: Cell, pod: dict[str, Any]) -> None:
    secret = documented.manifests["secret-registry"]
    assert pod["imagePullSecrets"] == [{"name": secret["metadata"]["name"]}]
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
    assert config["auths"] == {
        "192.168.0.34:5001": {
            "username": "t2v-pull",
            "password": "pull-secret",
            "auth": base64.b64encode(b"t2v-pull:pull-secret").decode(),
        }
    }


def test_redis_and_server_have_one_password(documented: Cell) -> None:
    def value(name: str, key: str) -> str:
        return base64.b64decode(documented.manifests[name]["data"][key]).decode().strip()

    assert value("secret-wan22", "job-store-password") == "jobs-secret"
    assert value("secret-redis", "password") == "jobs-secret"
    conf = value("secret-redis", "redis.conf")
    assert "\nrequirepass jobs-secret\n" in conf
    assert "\nappendonly yes\n" in conf
    assert "\nmaxmemory-policy noeviction" in conf


def test_a_redis_elsewhere_is_reached_and_none_is_made(cells: dict[str, Cell]) -> None:
    cell = cells["master-redis"]
    assert not [name for name in cell.texts if "redis" in name]
    assert cell.manifests["configmap-wan22"]["data"]["T2V_STORE"] == "redis://192.168.0.20:6379/0"
    egress = cell.manifests["networkpolicy-wan22"]["spec"]["egress"]
    assert {
        "to": [{"ipBlock": {"cidr": "192.168.0.20/32"}}],
        "ports": [{"protocol": "TCP", "port": 6379}],
    } in egress


def test_the_internet_is_reached_only_for_a_hub_s_model(cells: dict[str, Cell]) -> None:
    def https(cell: str) -> bool:
        egress = cells[cell].manifests["networkpolicy-wan22"]["spec"]["egress"]
        return any(port["port"] == 443 for rule in egress for port in rule["ports"])

    assert https("hub")
    assert not https("documented")


@pytest.mark.parametrize("name", matrix.WRONG)
def test_wrong_settings_are_refused_in_one_sentence(cells: dict[str, Cell], name: str) -> None:
    assert cells[name].faults == [matrix.WRONG[name][1]]


def test_right_settings_are_not_refused(cell: Cell) -> None:
    assert cell.faults == []
