"""A real cluster, seen from outside: by kubectl's eyes, from pods, and after a plug was pulled.

It comes from a bundle (docs/bundle.md), whose directory BUNDLE names; without one all tests are
skipped and say so. BUNDLE_NEXT names another, of a newer version, to which the cluster is upgraded.
The last tests take the cluster apart.
"""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import Kubectl, wait
from lab.settings import Paths
from machines import Machines
from playbooks import WHOLE, changed, sentences

BUNDLE = os.environ.get("BUNDLE", "")
BUNDLE_NEXT = os.environ.get("BUNDLE_NEXT", "")
pytestmark = pytest.mark.skipif(
    not BUNDLE, reason="BUNDLE names no directory: no cluster was made, nothing was looked at"
)
PATHS = Paths(os.environ["T2V_LAB"])
STATE = PATHS.state
kubectl = Kubectl(PATHS, BUNDLE)
MIRROR = "192.168.0.34:5001/ai/mirror"


def ready() -> set[str]:
    return {
        node["metadata"]["name"]
        for node in kubectl.items("nodes")
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready" and condition["status"] == "True"
    }


def web(image: str) -> str:
    """Two pods on two nodes, a Service with a NodePort; they answer with their node's name."""
    pod = {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                # The control plane, where no pod may go, is not counted as a node without one.
                "nodeTaintsPolicy": "Honor",
                "labelSelector": {"matchLabels": {"app": "web"}},
            }
        ],
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "web",
                "image": image,
                "command": ["perl", "-e", SERVER],
                "env": [
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
                ],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            }
        ],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 31090}],
        },
    }
    return yaml.safe_dump_all([deployment, service])


# The images of a bundle have no web server that is sure to be there; Debian's have perl.
SERVER = """
use IO::Socket::INET; $| = 1;
my $l = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die;
while (my $c = $l->accept) { while (<$c>) { last if /^\\r?$/ }
  my $b = "$ENV{NODE}\\n";
  print $c "HTTP/1.0 200 OK\\r\\nContent-Length: " . length($b) . "\\r\\n\\r\\n$b"; close $c }
"""
# The same of the client, by a name of the cluster's DNS.
CLIENT = """
use IO::Socket::INET;
my $s = IO::Socket::INET->new(PeerAddr => "web.default.svc.cluster.local", PeerPort => 80,
  Timeout => 5) or die "no answer: $@";
print $s "GET / HTTP/1.0\\r\\n\\r\\n"; print <$s>;
"""


def image_with_perl() -> str:
    """The bundle's kube-proxy image, where it has a shell's worth of programs."""
    index = yaml.safe_load(Path(BUNDLE, "index.yml").read_text())
    return f"{MIRROR}/registry.k8s.io/kube-proxy:v{index['kubernetes_version']}"


@pytest.fixture(scope="module")
def deployed(machines: Machines) -> None:
    """The two pods run."""
    kubectl("apply", "-f", "-", stdin=web(image_with_perl()))
    kubectl("rollout", "status", "deployment/web", "--timeout=100s")


def test_every_node_is_ready_and_of_the_bundle_s_version(machines: Machines) -> None:
    assert ready() == {"master", "worker1", "worker2"}
    version = yaml.safe_load(Path(BUNDLE, "index.yml").read_text())["kubernetes_version"]
    nodes = kubectl.items("nodes")
    assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {f"v{version}"}
    assert {
        node["metadata"]["name"]
        for node in nodes
        if "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"]
    } == {"master"}


def test_all_images_come_out_of_the_site_s_registry(machines: Machines) -> None:
    pods = kubectl.items("pods", "-A")
    images = {one["image"] for pod in pods for one in pod["spec"]["containers"]}
    assert images
    registry = MIRROR.split("/")[0]
    assert all(image.startswith(f"{registry}/") for image in images), images


def test_the_kubeconfig_is_its_owner_s_alone() -> None:
    assert kubectl.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_no_token_is_left(machines: Machines) -> None:
    assert machines.ssh("master", "kubeadm token list -o json").decode().strip() == ""
    left = set(machines.ssh("worker1", "ls /etc/kubernetes").decode().split())
    assert left - {"manifests"} == {"kubelet.conf", "pki"}


def test_kubelets_serve_with_the_cluster_s_certificate(machines: Machines) -> None:
    command = (
        "openssl s_client -connect {}:10250 -CAfile /etc/kubernetes/pki/ca.crt"
        " -verify_return_error </dev/null 2>&1 | grep 'Verify return code'"
    )
    for host in ("master", "worker1", "worker2"):
        said = machines.ssh("master", command.format(machines.address(host))).decode()
        assert "Verify return code: 0 (ok)" in said


def test_pods_spread_over_the_workers(machines: Machines, deployed: None) -> None:
    pods = kubectl.items("pods", "-l", "app=web")
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["worker1", "worker2"]


def test_a_service_is_found_by_name_and_by_the_port_of_every_node(
    machines: Machines, deployed: None
) -> None:
    for pod in kubectl.items("pods", "-l", "app=web"):

        def answer(name: str = pod["metadata"]["name"]) -> str:
            return kubectl("exec", name, "--", "perl", "-e", CLIENT).split()[-1]

        # A node learns of a new service a moment after the API server.
        assert wait(lambda: bool(answer()), 60)
        seen = {answer() for _ in range(12)}
        # Both: the other one is reached over the pods' network.
        assert seen == {"worker1", "worker2"}
    for host in ("master", "worker1", "worker2"):
        done = subprocess.run(
            machines.inside(["curl", "-sS", "-m5", f"http://{machines.address(host)}:31090/"]),
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() in ("worker1", "worker2"), done.stderr


def test_a_second_run_changes_nothing(machines: Machines) -> None:
    assert changed(machines.run_playbook("playbooks/cluster.yml", **WHOLE)) == 0


def test_a_worker_that_loses_its_power_comes_back(machines: Machines, deployed: None) -> None:
    machines.power("off", "worker2")
    machines.power("on", "worker2")
    assert wait(lambda: "worker2" in ready())
    kubectl("rollout", "status", "deployment/web", "--timeout=150s")

    def answered() -> bool:
        done = subprocess.run(
            machines.inside(["curl", "-sS", "-m5", f"http://{machines.address('worker2')}:31090/"]),
            capture_output=True,
            text=True,
        )
        return done.stdout.strip() in ("worker1", "worker2")

    assert wait(answered)


def test_a_worker_that_was_killed_while_joining_is_made_anew(
    machines: Machines, deployed: None
) -> None:
    """As after a run that ended between kubeadm's first step and its last."""
    machines.ssh("worker2", "echo begun > /var/lib/sanchuang-t2v/kubernetes-node")
    assert changed(machines.run_playbook("playbooks/cluster.yml", **WHOLE)) > 0
    assert wait(lambda: ready() == {"master", "worker1", "worker2"})
    # Pods run there again, with addresses of the range that the node has now.
    kubectl("rollout", "restart", "deployment/web")
    kubectl("rollout", "status", "deployment/web", "--timeout=100s")


def test_a_damaged_bundle_is_refused(machines: Machines, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    for path in Path(BUNDLE).rglob("*"):
        target = copy / path.relative_to(BUNDLE)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.symlink_to(path)
    (copy / "bin/kubectl").unlink()
    (copy / "bin/kubectl").write_text("cut off")
    done = machines.run_playbook("playbooks/cluster.yml", "-e", f"t2v_bundle={copy}", **WHOLE)
    assert done.returncode != 0
    assert sentences(done)[-1].startswith(f"{copy} is not whole: bin/kubectl: FAILED")


def test_a_backup_brings_back_what_was_removed(machines: Machines) -> None:
    kubectl("create", "configmap", "kept", "--from-literal=word=dog")
    file = STATE / "controller/backups/test.tgz"
    done = machines.run_playbook(
        "playbooks/backup.yml", "-e", f"kubernetes_control_plane_backup_file={file}", **WHOLE
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert file.stat().st_mode & 0o777 == 0o600
    kubectl("delete", "configmap", "kept")
    done = machines.run_playbook("playbooks/restore.yml", "-e", f"backup={file}", **WHOLE)
    assert done.returncode == 0, done.stdout[-3000:]
    assert wait(lambda: kubectl("get", "configmap", "kept", "-o", "name") != "")
    assert wait(lambda: ready() == {"master", "worker1", "worker2"})


def live() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        kubectl("-n", "t2v", "get", "deployment", "wan22-t2v-deployment", "-o", "json")
    )
    return found


def test_the_service_is_deployed_by_digest_with_a_pod_on_each_worker(machines: Machines) -> None:
    """STAND-IN: its image is busybox' web server (molecule/kubernetes/service.yml)."""
    recorded = json.loads((STATE / "controller/image.json").read_text())
    (container,) = live()["spec"]["template"]["spec"]["containers"]
    assert container["image"] == recorded["image"]
    pods = kubectl.items("pods", "-n", "t2v", "-l", "app=wan22-t2v")
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["worker1", "worker2"]
    (claim,) = [
        one
        for one in kubectl.items("pvc", "-n", "t2v")
        if one["metadata"]["name"] == "pvc-video-output"
    ]
    assert claim["status"]["phase"] == "Bound"
    for host in ("master", "worker1", "worker2"):
        done = subprocess.run(
            machines.inside(["curl", "-sS", "-m5", f"http://{machines.address(host)}:31080/"]),
            capture_output=True,
            text=True,
        )
        assert done.stdout == "stand-in\n", done.stderr


def test_its_jobs_redis_answers(machines: Machines) -> None:
    asked = 'REDISCLI_AUTH="$(cat /etc/redis/password)" redis-cli ping'
    said = kubectl("-n", "t2v", "exec", "wan22-redis-0", "--", "sh", "-c", asked)
    assert said.strip() == "PONG"


def test_an_image_that_a_node_cannot_pull_stops_no_pod(machines: Machines, tmp_path: Path) -> None:
    """The registry knows nothing of this digest; two minutes later that is said."""
    before = live()["metadata"]["generation"]
    known = json.loads((STATE / "controller/image.json").read_text())
    digest = "sha256:" + "0" * 64
    record = {**known, "digest": digest, "image": f"{known['image'].split('@')[0]}@{digest}"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    done = machines.run_playbook(
        "playbooks/deploy.yml", "-e", f"t2v_deploy_image_record={tmp_path}/record.json", **WHOLE
    )
    assert done.returncode != 0
    said = sentences(done)[-1]
    assert said.startswith(f"Not every node could pull {record['image']} (wan22-pull-")
    assert "and nothing was rolled out" in said
    assert live()["metadata"]["generation"] == before
    assert wait(lambda: not kubectl.items("jobs", "-n", "t2v"))


def test_a_rollout_that_fails_is_taken_back(machines: Machines) -> None:
    before = live()["spec"]["template"]["spec"]["containers"][0]["image"]
    done = machines.run_playbook(
        "playbooks/deploy.yml",
        *("-e", f"t2v_deploy_image_record={STATE}/controller/broken.json"),
        *("-e", "t2v_deploy_rollout_seconds=45"),
        **WHOLE,
    )
    assert done.returncode != 0
    assert sentences(done)[-1].endswith("What rolled out last was applied again.")
    # This one was on every node before a pod was stopped for it.
    assert "TASK [t2v_deploy : Pull the new image on every node]" in done.stdout
    assert live()["spec"]["template"]["spec"]["containers"][0]["image"] == before
    assert wait(lambda: live()["status"].get("availableReplicas") == 2)


def as_account(machines: Machines, directory: Path, token: str, *arguments: str) -> str:
    """What kubectl says to somebody who has nothing but this token."""
    authority = directory / "ca.crt"
    (secret,) = [
        one
        for one in kubectl.items("secrets", "-n", "t2v-monitoring")
        if one["metadata"]["name"] == "prometheus-token"
    ]
    authority.write_bytes(base64.b64decode(secret["data"]["ca.crt"]))
    done = subprocess.run(
        machines.inside(
            [
                *(
                    str(kubectl.program),
                    "--kubeconfig=/dev/null",
                    "--server=https://192.168.0.20:6443",
                ),
                *(f"--certificate-authority={authority}", f"--token={token}", *arguments),
            ]
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_prometheus_account_reads_metrics_and_nothing_else(
    machines: Machines, tmp_path: Path
) -> None:
    secret = json.loads(
        kubectl("-n", "t2v-monitoring", "get", "secret", "prometheus-token", "-o", "json")
    )
    token = base64.b64decode(secret["data"]["token"]).decode()

    def ask(path: str) -> str:
        return as_account(machines, tmp_path, token, "get", "--raw", path)

    assert {one["metadata"]["name"] for one in json.loads(ask("/api/v1/nodes"))["items"]} == {
        *("master", "worker1", "worker2")
    }
    path = "/api/v1/namespaces/t2v/pods?labelSelector=app=wan22-t2v"
    # A pod of the rollout that was taken back may be there for a while.
    assert wait(lambda: len(json.loads(ask(path))["items"]) == 2)
    pods = json.loads(ask(path))["items"]
    # As Prometheus scrapes it: through the API server's proxy.
    name = pods[0]["metadata"]["name"]
    assert ask(f"/api/v1/namespaces/t2v/pods/{name}:8080/proxy/ready") == "stand-in\n"
    assert "forbidden" in ask("/api/v1/namespaces/t2v/secrets").lower()
    assert "forbidden" in ask("/api/v1/namespaces/kube-flannel/pods/x:8080/proxy/").lower()
    # The kubelet itself, its certificate checked against the cluster's CA; from a host that the
    # firewall lets ask.
    question = [
        *("curl", "-sS", "-m10", "--cacert", str(tmp_path / "ca.crt")),
        *("-H", f"Authorization: Bearer {token}"),
        "https://192.168.0.21:10250/metrics/cadvisor",
    ]
    inside = machines.in_network_of("master", question)
    done = subprocess.run(inside, capture_output=True, text=True)
    assert "container_cpu_usage_seconds_total" in done.stdout, done.stderr
    assert subprocess.run(machines.inside(question), capture_output=True).returncode != 0


def test_an_account_without_rights_sees_nothing(machines: Machines, tmp_path: Path) -> None:
    token = kubectl("create", "token", "default", "-n", "default").strip()
    said = as_account(machines, tmp_path, token, "get", "--raw", "/api/v1/nodes")
    assert "forbidden" in said.lower()


def test_metrics_server_checks_the_kubelets_and_has_figures(machines: Machines) -> None:
    if not [one for one in kubectl.items("pods", "-A") if "metrics-server" in str(one)]:
        pytest.skip("the bundle has no image of metrics-server")
    assert wait(lambda: "worker2" in kubectl("top", "nodes"))
    (deployment,) = [
        one
        for one in kubectl.items("deployments", "-n", "kube-system")
        if one["metadata"]["name"] == "metrics-server"
    ]
    assert "insecure" not in str(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


def test_an_add_on_that_is_switched_off_is_removed_and_comes_back(machines: Machines) -> None:
    def server(*options: str) -> set[str]:
        assert changed(machines.run_playbook("playbooks/cluster.yml", *options, **WHOLE)) > 0
        return {
            f"{one['kind']} {one['metadata']['name']}"
            for kind in ("deployments", "services", "serviceaccounts", "rolebindings")
            for one in kubectl.items(kind, "-n", "kube-system")
            if "metrics-server" in one["metadata"]["name"]
        }

    off = ("-e", "cluster_addons_metrics_server=false")
    assert server(*off) == set()
    assert "metrics" not in kubectl("get", "apiservices", "-o", "name")
    assert changed(machines.run_playbook("playbooks/cluster.yml", *off, **WHOLE)) == 0
    assert ready() == {"master", "worker1", "worker2"}
    assert "Deployment metrics-server" in server()


def serves(machines: Machines, host: str) -> bool:
    """Whether the service answers at that node's port."""
    done = subprocess.run(
        machines.inside(["curl", "-sS", "-m5", f"http://{machines.address(host)}:31080/"]),
        capture_output=True,
        text=True,
    )
    return done.stdout == "stand-in\n"


def serial(machines: Machines) -> str:
    """Serial number of the certificate that the API server shows."""
    asked = "openssl s_client -connect 127.0.0.1:6443 </dev/null 2>/dev/null"
    return machines.ssh("master", f"{asked} | openssl x509 -noout -serial").decode().strip()


def test_certificates_are_renewed_before_their_end_and_not_long_before(machines: Machines) -> None:
    before = serial(machines)
    done = machines.run_playbook("playbooks/certificates.yml", **WHOLE)
    assert changed(done) == 0
    assert "ends in 36" in " ".join(sentences(done))
    assert serial(machines) == before
    days = ("-e", "kubernetes_control_plane_certificate_days=3650")
    assert changed(machines.run_playbook("playbooks/certificates.yml", *days, **WHOLE)) > 0
    assert wait(lambda: serial(machines) not in ("", before))
    # The file on the controller is the new account's.
    assert wait(lambda: ready() == {"master", "worker1", "worker2"})


def test_a_worker_is_removed_and_added_again(machines: Machines) -> None:
    """Its pod stays where it is possible: the other worker goes on serving."""
    refused = machines.run_playbook("playbooks/remove_worker.yml", "-e", "worker=master", **WHOLE)
    assert refused.returncode != 0
    assert "worker is 'master': name one of worker1, worker2" in sentences(refused)[-1]
    done = machines.run_playbook("playbooks/remove_worker.yml", "-e", "worker=worker2", **WHOLE)
    assert changed(done) > 0
    assert ready() == {"master", "worker1"}
    assert serves(machines, "worker1")
    assert not traces(machines, "worker2")
    again = machines.run_playbook("playbooks/remove_worker.yml", "-e", "worker=worker2", **WHOLE)
    assert changed(again) == 0
    # Not add_worker.yml, which goes over hosts that this scenario has not; its last step.
    assert changed(machines.run_playbook("playbooks/cluster.yml", **WHOLE)) > 0
    assert wait(lambda: ready() == {"master", "worker1", "worker2"})
    assert wait(lambda: live()["status"].get("availableReplicas") == 2)
    assert wait(lambda: serves(machines, "worker2"))


def test_the_cluster_is_upgraded_one_node_after_the_other(machines: Machines) -> None:
    if not BUNDLE_NEXT:
        pytest.skip("BUNDLE_NEXT names no directory: there is no newer version to go to")
    version = yaml.safe_load(Path(BUNDLE_NEXT, "index.yml").read_text())["kubernetes_version"]
    chosen = ("-e", f"t2v_bundle={BUNDLE_NEXT}")
    assert changed(machines.run_playbook("playbooks/upgrade.yml", *chosen, **WHOLE)) > 0
    nodes = kubectl.items("nodes")
    assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {f"v{version}"}
    assert not [node for node in nodes if node["spec"].get("unschedulable")]
    images = {
        one["image"].rsplit("/", 1)[-1]
        for pod in kubectl.items("pods", "-n", "kube-system")
        for one in pod["spec"]["containers"]
    }
    assert {f"{name}:v{version}" for name in ("kube-apiserver", "kube-proxy")} <= images
    assert wait(lambda: live()["status"].get("availableReplicas") == 2)
    assert changed(machines.run_playbook("playbooks/upgrade.yml", *chosen, **WHOLE)) == 0
    refused = machines.run_playbook("playbooks/upgrade.yml", **WHOLE)
    assert refused.returncode != 0
    assert "kubeadm goes up" in sentences(refused)[-1]


# What a cluster leaves on a node, by its names. The rest of a host is the base's and the engine's.
TRACES = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /var/lib/containerd -o -path /var/lib/docker
  -o -path /run/containerd -o -path /var/log -o -path /usr/share -o -path /usr/lib
  -o -path /root/.ansible -o -path /var/lib/sanchuang-t2v/artifacts \) -prune
  -o \( -iname '*kube*' -o -iname '*etcd*' -o -iname '*flannel*' -o -iname 'cni*'
  -o -name 'crictl*' \) -print
awk '{ print $2 }' /proc/mounts | grep -e kubelet -e '/netns/' -e rootfs || true
ls /sys/class/net | grep -v -x -e lo -e 'host0' -e 'ens33' -e docker0 -e bonding_masters || true
(iptables-save; ip6tables-save) 2>/dev/null | grep -e KUBE -e CNI -e FLANNEL -e flanneld || true
ip route | grep -e 10[.]244 -e cni || true
ps -eo comm | grep -e kubelet -e etcd -e '^kube-' -e containerd-shim || true
find /var/lib/etcd /var/lib/kubelet -mindepth 1 2>/dev/null || true
"""


def traces(machines: Machines, host: str) -> list[str]:
    """Files, mounts, interfaces, rules, routes and processes of a cluster on the host."""
    script = TRACES.replace("\n  ", " ")
    found = machines.ssh(host, script).decode().splitlines()
    # What stays: the base's settings, the engine's, an empty directory that it watches, downloads;
    # and two directories that are volumes of the lab's machine, whose content is looked for apart.
    kept = ("/etc/sysctl.d", "/etc/modules-load.d", "/etc/crictl.yaml", "/var/cache/sanchuang-t2v")
    stays = {"/etc/cni", "/var/lib/etcd", "/var/lib/kubelet"}
    return [line for line in found if not line.startswith(kept) and line not in stays]


def test_a_reset_leaves_bare_hosts_also_the_second_time(machines: Machines) -> None:
    refused = machines.run_playbook("playbooks/reset.yml", **WHOLE)
    assert refused.returncode != 0
    assert "repeat with -e reset_cluster=yes" in sentences(refused)[-1]
    hosts = ("master", "worker1", "worker2")
    # The look finds something where there is a cluster.
    assert all(len(traces(machines, host)) > 20 for host in hosts)
    meant = ("-e", "reset_cluster=yes")
    assert changed(machines.run_playbook("playbooks/reset.yml", *meant, **WHOLE)) > 0
    assert {host: traces(machines, host) for host in hosts} == {host: [] for host in hosts}
    assert not kubectl.kubeconfig.exists()
    assert changed(machines.run_playbook("playbooks/reset.yml", *meant, **WHOLE)) == 0
    bundle = ("-e", f"t2v_bundle={BUNDLE_NEXT or BUNDLE}")
    assert changed(machines.run_playbook("playbooks/cluster.yml", *bundle, **WHOLE)) > 0
    assert wait(lambda: ready() == set(hosts))
    assert changed(machines.run_playbook("playbooks/deploy.yml", *bundle, **WHOLE)) > 0
    assert wait(lambda: serves(machines, "worker2"))
    assert changed(machines.run_playbook("playbooks/reset.yml", *meant, **WHOLE)) > 0
    assert {host: traces(machines, host) for host in hosts} == {host: [] for host in hosts}
