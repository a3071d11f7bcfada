"""The monitoring of three machines, asked over the network as its operators and Grafana ask it."""

import base64
import http.server
import json
import os
import queue
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.settings import Paths
from machines import Machines

PROMETHEUS = "http://192.168.0.33:9090"
ALERTMANAGER = "http://192.168.0.33:9093"
# The same roles from (stand-ins of) upstream's releases.
ARCHIVE = "http://192.168.0.21:9090"
PLAYBOOKS = "molecule/prometheus"
CONFIG = "/etc/prometheus/prometheus.yml"

TARGETS = {
    ("prometheus", "prometheus", "prometheus"),
    ("alertmanager", "prometheus", "prometheus"),
    ("node", "prometheus", "prometheus"),
    ("node", "master", "masters"),
    ("node", "worker1", "workers"),
    ("wan22-service", "worker1", "workers"),
    ("edge", "master", "masters"),
    ("redis", "master", "masters"),
}


def fetch(url: str, context: ssl.SSLContext | None = None, login: str = "") -> str:
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return str(answer.read().decode())


def ask(path: str, base: str = PROMETHEUS) -> Any:
    """The ``data`` of an answer of Prometheus' API."""
    return json.loads(fetch(f"{base}/api/v1/{path}"))["data"]


def value(query: str) -> list[tuple[dict[str, str], float]]:
    found = ask("query?" + urllib.parse.urlencode({"query": query}))["result"]
    return [(one["metric"], float(one["value"][1])) for one in found]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass  # not up yet
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)


def targets(base: str = PROMETHEUS) -> dict[tuple[str, str, str], str]:
    """(job, instance, group) → health."""
    return {
        (one["labels"]["job"], one["labels"]["instance"], one["labels"]["group"]): one["health"]
        for one in ask("targets?state=active", base)["activeTargets"]
    }


def all_up(base: str = PROMETHEUS) -> bool:
    return targets(base) == dict.fromkeys(TARGETS, "up")


def pid(machines: Machines, unit: str, host: str = "prometheus") -> str:
    return machines.ssh(host, f"systemctl show -p MainPID --value {unit}").decode().strip()


def role(machines: Machines, name: str, **variables: object) -> tuple[int, str]:
    """Run a role again with these variables; a status other than 0 is for the test to judge."""
    return machines.play(f"{PLAYBOOKS}/alone.yml", *extra(role=name, **variables))


def extra(**variables: object) -> tuple[str, str]:
    return "-e", json.dumps(variables)


@pytest.fixture(scope="module", autouse=True)
def watched(machines: Machines) -> None:
    wait_for(all_up, "every target is up")


@pytest.fixture(scope="class")
def as_before(machines: Machines) -> Iterator[None]:
    """Whatever the tests of a class have configured is taken back after them."""
    yield
    for name in ("alertmanager", "prometheus"):
        status, said = role(machines, name)
        assert status == 0, said
    wait_for(all_up, "every target is up again")


class Webhook:
    """A receiver of Alertmanager's messages, on the address that its configuration names."""

    def __init__(self) -> None:
        self.alerts: queue.Queue[dict[str, Any]] = queue.Queue()
        alerts = self.alerts

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Authorization"] == "Bearer not-for-everybody"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    alerts.put(alert)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("192.168.0.2", 9999), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait_for(self, status: str, **labels: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            alert = self.alerts.get(timeout=max(0.1, deadline - time.monotonic()))
            if alert["status"] == status and labels.items() <= alert["labels"].items():
                return alert


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    receiver = Webhook()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_every_target_is_up_under_the_name_and_group_of_its_host() -> None:
    assert targets() == dict.fromkeys(TARGETS, "up")


def test_the_releases_watch_the_same_from_opt(machines: Machines) -> None:
    wait_for(lambda: all_up(ARCHIVE), "every target is up")
    for name in ("prometheus", "alertmanager", "node_exporter"):
        shown = machines.ssh("worker1", f"cat /opt/{name}/NOTICE; ps -C {name} -o args=")
        assert b"stand-in" in shown and f"/opt/{name}/{name} --".encode() in shown
    users = machines.ssh("worker1", "ps -C prometheus,alertmanager,node_exporter -o user:20=")
    assert set(users.decode().split()) == {"prometheus", "alertmanager", "node-exporter"}


def test_retention_is_by_time_and_size() -> None:
    flags = ask("status/flags")
    assert flags["storage.tsdb.retention.time"] == "30d"
    assert flags["storage.tsdb.retention.size"] in ("20GB", "20GiB")
    assert flags["web.enable-lifecycle"] == flags["web.enable-admin-api"] == "false"


@pytest.mark.parametrize(
    ("host", "unit", "protected"),
    [
        ("prometheus", "prometheus", "strict"),
        ("prometheus", "prometheus-alertmanager", "strict"),
        ("master", "prometheus-redis-exporter", "strict"),
        ("worker1", "prometheus", "strict"),
        # It looks at the host: nothing is hidden from it or made read-only.
        ("worker1", "prometheus-node-exporter", "no"),
    ],
)
def test_a_unit_has_no_rights(machines: Machines, host: str, unit: str, protected: str) -> None:
    shown = machines.ssh(
        host, f"systemctl show {unit} -p User -p NoNewPrivileges -p ProtectSystem -p Restart"
    )
    found = dict(line.split("=", 1) for line in shown.decode().splitlines())
    assert found.pop("User") != "root"
    assert found == {"NoNewPrivileges": "yes", "ProtectSystem": protected, "Restart": "always"}
    status = machines.ssh(host, f"cat /proc/{pid(machines, unit, host)}/status").decode()
    assert "CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status


def test_exporters_see_what_they_are_for() -> None:
    assert value('nginx_up{job="edge"}')[0][1] == 1
    assert value('redis_up{job="redis"}')[0][1] == 1
    assert value('t2v_queue_capacity{job="wan22-service"}')[0][1] == 100
    # No mount is read-only because of the exporter's own unit.
    readonly = value('node_filesystem_readonly{job="node",mountpoint="/"}')
    assert [one for _, one in readonly] == [0, 0, 0]
    units = value('node_systemd_unit_state{job="node",name="nginx.service",state="active"}')
    assert [one for _, one in units] == [1]


def test_systemd_reads_units_anew_where_one_differs_and_only_there(machines: Machines) -> None:
    def loaded() -> bytes:
        show = "systemctl show --property=UnitsLoadTimestampMonotonic --value"
        return machines.ssh("prometheus", show)

    def read_anew(name: str = "systemd_units") -> bool:
        before = loaded()
        there = machines.ssh("prometheus", f"ls {own} {own}.d/*.conf 2>/dev/null; true")
        status, said = role(machines, name, systemd_units_files=there.decode().split())
        assert status == 0, said
        return loaded() != before

    package, own = "/lib/systemd/system/t2v-test.service", "/etc/systemd/system/t2v-test.service"
    lines = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
    write = f"printf {lines!r} > "
    steps = {
        "in the place of a package's": f"{write}{own}",
        "written again, and the run killed": f"sleep 1; touch {own}",
        "with a drop-in": f"mkdir {own}.d; printf '[Unit]\nOnFailure=\n' > {own}.d/a.conf",
    }
    try:
        start = f"{write}{package}; systemctl daemon-reload; systemctl start t2v-test"
        machines.ssh("prometheus", start)
        for name, step in steps.items():
            machines.ssh("prometheus", step)
            assert read_anew(), name
            assert not read_anew(), name
    finally:
        end = f"systemctl stop t2v-test; rm -rf {package} {own} {own}.d; systemctl daemon-reload"
        machines.ssh("prometheus", end)
    assert not read_anew("node_exporter")


def test_a_certificate_s_end_is_known_and_a_broken_one_is_long_over(machines: Machines) -> None:
    machines.ssh(
        "master",
        "openssl req -x509 -newkey rsa:2048 -nodes -days 7 -subj /CN=test -keyout /dev/null "
        "-out /etc/test.crt 2>&1; echo nothing > /etc/broken.crt; "
        "systemctl start t2v-certificates.service",
    )
    ends = machines.ssh("master", "openssl x509 -noout -enddate -in /etc/test.crt").decode()
    seconds = ssl.cert_time_to_seconds(ends.strip().removeprefix("notAfter="))
    wanted = [("broken", 0.0), ("test", float(seconds))]
    wait_for(
        lambda: (
            sorted(
                (labels["name"], number)
                for labels, number in value('t2v_certificate_not_after_seconds{instance="master"}')
            )
            == wanted
        ),
        "both certificates are reported",
    )


def test_no_secret_is_in_a_process_list_or_journal(machines: Machines) -> None:
    secrets = Paths(os.environ["T2V_LAB"]).state / "controller/secrets"
    password = (secrets / "job-store").read_text().strip()
    assert len(password) == 40
    for host in ("prometheus", "master", "worker1"):
        shown = machines.ssh(host, "ps axww -o args; journalctl -q -o cat").decode()
        assert "prometheus" in shown
        for secret in (password, "not-for-everybody"):
            assert secret not in shown, f"{host} shows a secret"
    modes = "stat -c '%a %U' /etc/sanchuang-t2v/redis-exporter.env"
    assert machines.ssh("master", modes).split() == [b"600", b"root"]
    modes = f"stat -c '%a %U' {CONFIG} /etc/prometheus/web.yml /etc/alertmanager/alertmanager.yml"
    assert machines.ssh("prometheus", modes).split() == [b"640", b"root"] * 3


def test_an_exporter_that_stops_raises_an_alert_and_one_that_starts_ends_it(
    machines: Machines, webhook: Webhook
) -> None:
    name = {"alertname": "ScenarioTargetDown", "job": "node", "instance": "master"}
    machines.ssh("master", "systemctl stop prometheus-node-exporter")
    try:
        alert = webhook.wait_for("firing", **name)
        assert alert["labels"]["group"] == "masters"
        assert alert["labels"]["site"] == "t2v.sanchuang.ai"
        assert alert["annotations"]["summary"] == "node of master is down"
    finally:
        machines.ssh("master", "systemctl start prometheus-node-exporter")
    webhook.wait_for("resolved", **name)


def test_amtool_takes_the_configuration_and_knows_where_an_alert_goes(machines: Machines) -> None:
    config = "/etc/alertmanager/alertmanager.yml"
    shown = machines.ssh(
        "prometheus",
        f"amtool check-config {config} && "
        f"amtool config routes test --config.file={config} alertname=HostDown severity=critical",
    ).decode()
    assert "SUCCESS" in shown and shown.split()[-1] == "site"


def test_broken_rules_and_configurations_are_refused_and_the_old_ones_stay(
    machines: Machines, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text("groups: [{name: broken, rules: [{record: a, expr: 'sum('}]}]\n")
    before = (
        ask("rules")["groups"][0]["file"],
        ask("status/config"),
        pid(machines, "prometheus"),
        machines.ssh("prometheus", f"sha256sum {CONFIG} /etc/alertmanager/alertmanager.yml"),
    )
    status, said = role(machines, "prometheus", prometheus_rule_files=[str(broken)])
    assert status != 0 and "broken.yml" in said and "unclosed left parenthesis" in said, said

    jobs = [{"job_name": "wrong", "scrape_every": "1s"}]
    status, said = role(machines, "prometheus", prometheus_extra_jobs=jobs)
    assert status != 0 and "field scrape_every not found" in said, said

    routes = [{"receiver": "nobody"}]
    status, said = role(machines, "alertmanager", alertmanager_routes=routes)
    assert status != 0 and 'undefined receiver "nobody"' in said, said

    after = (
        ask("rules")["groups"][0]["file"],
        ask("status/config"),
        pid(machines, "prometheus"),
        machines.ssh("prometheus", f"sha256sum {CONFIG} /etc/alertmanager/alertmanager.yml"),
    )
    assert after == before
    assert value("prometheus_config_last_reload_successful")[0][1] == 1


def test_the_check_is_content_or_says_what_is_down_and_why(machines: Machines) -> None:
    status, said = machines.play(
        f"{PLAYBOOKS}/check.yml", *extra(prometheus_idle_rules=["(?!scenario/)"])
    )
    assert status == 0 and "8 targets up, 1 recording rules with data" in said, said
    machines.ssh("master", "systemctl stop prometheus-redis-exporter")
    try:
        wait_for(lambda: not all_up(), "the exporter is missed")
        # A host that Prometheus knows nothing of is missed too.
        expected = ["prometheus", "master", "worker1", "worker2"]
        options = extra(prometheus_check_attempts=1, t2v_monitoring_hosts=expected)
        status, said = machines.play(f"{PLAYBOOKS}/check.yml", *options)
    finally:
        machines.ssh("master", "systemctl start prometheus-redis-exporter")
    assert status != 0
    assert "redis of master (http://192.168.0.20:9121/metrics) is down: " in said, said
    assert "connection refused" in said
    assert "node of worker2 is not scraped." in said


@pytest.mark.usefixtures("as_before")
class TestChanges:
    """One after the other, taken back together."""

    def test_a_new_configuration_is_loaded_without_a_restart(
        self, machines: Machines, tmp_path: Path
    ) -> None:
        idle = tmp_path / "idle.yml"
        idle.write_text("groups: [{name: idle, rules: [{record: a:b:c, expr: nothing_at_all}]}]\n")
        units = ("prometheus", "prometheus-alertmanager")
        before = [pid(machines, unit) for unit in units]
        for name in ("alertmanager", "prometheus"):
            status, said = role(
                machines,
                name,
                prometheus_external_labels={"site": "elsewhere"},
                prometheus_rule_files=[str(idle)],
                alertmanager_repeat_interval="5h",
            )
            assert status == 0, said
        assert "site: elsewhere" in ask("status/config")["yaml"]
        assert [group["name"] for group in ask("rules")["groups"]] == ["idle"]
        assert "repeat_interval: 5h" in fetch(f"{ALERTMANAGER}/api/v2/status")
        assert [pid(machines, unit) for unit in units] == before

    def test_the_check_says_which_rule_has_no_data(self, machines: Machines) -> None:
        status, said = machines.play(f"{PLAYBOOKS}/check.yml", *extra(prometheus_check_attempts=1))
        assert status != 0
        assert "rule a:b:c has no data: nothing matches nothing_at_all" in said, said

    def test_with_tls_and_an_account_nobody_else_is_answered(
        self, machines: Machines, tmp_path: Path
    ) -> None:
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 7 -subj /CN=prometheus"
        command += f" -keyout {tmp_path}/key -out {tmp_path}/crt"
        command += " -addext subjectAltName=IP:192.168.0.33"
        subprocess.run(command.split(), check=True, capture_output=True)
        url = "https://192.168.0.33:9090"
        status, said = role(
            machines,
            "prometheus",
            t2v_prometheus_url=url,
            prometheus_tls_certificate=f"{tmp_path}/crt",
            prometheus_tls_key=f"{tmp_path}/key",
            prometheus_tls_ca=f"{tmp_path}/crt",
            prometheus_web_user="grafana",
            prometheus_web_password="secret of the test",
        )
        assert status == 0, said
        assert "secret of the test" not in said
        trusted = ssl.create_default_context(cafile=f"{tmp_path}/crt")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(f"{url}/api/v1/targets", trusted)
        query = f"{url}/api/v1/query?query=up%7Bjob%3D%22prometheus%22%7D"
        wait_for(
            lambda: '"1"]' in fetch(query, trusted, "grafana:secret of the test"),
            "Prometheus answers itself",
        )


def test_a_package_that_cannot_ask_a_cluster_is_refused_in_a_sentence(machines: Machines) -> None:
    """What is rendered for a cluster is looked at in tests/unit/test_scrape.py."""
    status, said = role(machines, "prometheus", prometheus_kubernetes=True)
    assert status != 0
    assert "built without the discovery of Kubernetes" in said, said


def test_all_of_it_comes_back_after_a_power_cut(machines: Machines, unplugged: Machines) -> None:
    unplugged.power("off", "prometheus")
    unplugged.power("off", "master")
    unplugged.power("on", "master")
    unplugged.power("on", "prometheus")
    wait_for(all_up, "every target is up again", 90)
    assert fetch(f"{ALERTMANAGER}/-/ready")
