"""The role grafana, asked over the network; the server is a stand-in (molecule/grafana)."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.settings import Paths
from machines import Machines

GRAFANA = "http://192.168.0.33:3000"
PLAYBOOK = "molecule/grafana/converge.yml"
SECRETS = Paths(os.environ["T2V_LAB"]).state / "controller/secrets"


def password() -> str:
    return (SECRETS / "grafana-admin").read_text().strip()


def fetch(path: str, login: str = "") -> Any:
    request = urllib.request.Request(GRAFANA + path)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def as_admin(path: str) -> Any:
    return fetch(path, f"admin:{password()}")


def play(machines: Machines, *options: str) -> str:
    status, said = machines.play(PLAYBOOK, *options)
    assert status == 0, said
    return said


def test_it_is_healthy_and_nobody_looks_without_an_account() -> None:
    assert fetch("/api/health")["database"] == "ok"
    assert as_admin("/api/user")
    for login in ("", "admin:admin"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch("/api/datasources", login)


def test_the_datasource_is_prometheus_under_its_fixed_uid() -> None:
    (source,) = as_admin("/api/datasources")
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    assert source["isDefault"] is True
    assert source["url"] == "http://192.168.0.33:9090"
    assert source["basicAuthUser"] == "reader"
    assert source["editable"] is False


def test_every_dashboard_of_the_repository_is_there(machines: Machines) -> None:
    found = as_admin("/api/search")
    assert {one["folderTitle"] for one in found} == {"sanchuang.t2v"}
    files = [*Path("roles/grafana/files/dashboards").glob("*.json")]
    files += Path("molecule/grafana/files/dashboards").glob("*.json")
    wanted = {json.loads(path.read_text())["uid"] for path in files}
    assert {one["uid"] for one in found} == wanted


def test_provisioning_files_are_yaml_and_belong_to_grafana_alone(machines: Machines) -> None:
    shown = machines.ssh(
        "prometheus", "find /etc/grafana -type f -not -name '*.applied' -printf '%m %u %g %p\\n'"
    )
    modes = {line.split()[3]: line.split()[:3] for line in shown.decode().splitlines()}
    assert "/etc/grafana/grafana.ini" in modes
    assert {tuple(one) for one in modes.values()} == {("640", "root", "grafana")}
    for path in modes:
        if path.endswith(".yml"):
            text = machines.ssh("prometheus", f"cat {path}").decode()
            assert yaml.safe_load(text)["apiVersion"] == 1
    text = machines.ssh("prometheus", "cat /etc/grafana/grafana.ini").decode()
    assert password() not in text and "[auth.anonymous]\nenabled = false" in text


def test_no_secret_is_in_a_process_list_or_journal(machines: Machines) -> None:
    shown = machines.ssh("prometheus", "ps axww -o args; journalctl -q -o cat").decode()
    assert "stand-in: this is not Grafana" in shown
    for name in ("grafana-admin", "grafana-key"):
        secret = (SECRETS / name).read_text().strip()
        assert len(secret) == 40 and secret not in shown
    assert "not-for-everybody" not in shown


def test_a_dashboard_that_is_removed_goes_and_nothing_restarts(machines: Machines) -> None:
    pid = "systemctl show -p MainPID --value grafana-server"
    before = machines.ssh("prometheus", pid)
    play(machines, "-e", '{"grafana_dashboards": []}')
    assert as_admin("/api/search") == []
    play(machines)
    assert as_admin("/api/search")
    assert machines.ssh("prometheus", pid) == before


def test_a_new_password_of_the_administrator_replaces_the_old_one(machines: Machines) -> None:
    old = password()
    (SECRETS / "grafana-admin").unlink()
    said = play(machines, "--diff")
    assert password() != old
    assert password() not in said and old not in said
    assert as_admin("/api/user")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch("/api/user", f"admin:{old}")
    assert "changed=0" in play(machines)


def test_it_comes_back_after_a_power_cut(unplugged: Machines) -> None:
    unplugged.power("off", "prometheus")
    unplugged.power("on", "prometheus")
    deadline = time.monotonic() + 60
    while True:
        try:
            assert fetch("/api/health")["database"] == "ok"
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
