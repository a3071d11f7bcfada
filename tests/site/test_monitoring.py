"""The site's own Prometheus: whom it watches, that every question of ours has an answer, an alert.

What a lab has not stands in NOT_HERE, with the reason; every other panel must show data.
"""

import http.client
import json
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from boards import expressions
from edge import Edge
from lab.hosts import Site
from machines import Machines
from playbooks import changed
from promtool import all_rules

# What in an expression a lab with t2v_runtime docker has no data for, and why.
NOT_HERE = {
    "DCGM_": "no GPU",
    ":dcgm_": "no GPU",
    "kube_": "no cluster",
    "node_timex_": "a container has no clock of its own",
    "node_nfsd_": "no NFS server: the share is one directory of this machine",
    "t2v_nfs_export": "the same",
    'fstype=~"nfs.*"': "the same",
    # Nothing of the kind has happened.
    'outcome="failed"': "no job has failed",
}


@pytest.fixture(scope="session")
def prometheus(site: Site) -> Callable[..., Any]:
    """Ask the Prometheus of the site; returns ``data`` of its answer."""

    def ask(path: str, **parameters: str | float) -> Any:
        query = urllib.parse.urlencode(parameters).encode() or None  # a GET without
        url = f"http://{site.host('prometheus').address}:9090/api/v1/{path}"
        with urllib.request.urlopen(url, query, timeout=30) as answer:
            return json.load(answer)["data"]

    return ask


def wait_for(look: Callable[[], object], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def ask_registry(address: str) -> int:
    context = ssl.create_default_context()
    # Who it is does not matter here: the tests of the registry look at its certificate.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with closing(http.client.HTTPSConnection(address, 5001, timeout=30, context=context)) as it:
        it.request("GET", "/v2/")
        return it.getresponse().status


def test_all_seven_hosts_and_both_workers_are_watched(
    prometheus: Callable[..., Any], site: Site
) -> None:
    active = prometheus("targets?state=active")["activeTargets"]
    found = {(one["labels"]["job"], one["labels"]["instance"]) for one in active}
    assert found == {
        *(("node", host.name) for host in site.hosts),
        *(("wan22-service", name) for name in ("worker1", "worker2")),
        *((job, "prometheus") for job in ("prometheus", "alertmanager")),
        *((job, "master") for job in ("edge", "redis")),
        ("registry", "harbor"),
    }
    assert {one["labels"]["instance"] for one in active if one["health"] != "up"} == set()
    group = {one["labels"]["instance"]: one["labels"]["group"] for one in active}
    assert group["worker1"] == "workers" and group["nfs-server"] == "nfs"


def test_prometheus_forgets_a_gpu_that_is_gone(machines: Machines) -> None:
    """A worker's driver was there when Prometheus was told of it, and is not any more."""
    targets = "/etc/prometheus/targets"
    machines.ssh("prometheus", f"cd {targets} && echo [] | tee dcgm-worker1.yml dcgm-elsewhere.yml")
    try:
        assert changed(machines.run_playbook("playbooks/monitoring.yml")) == 1
        left = machines.ssh("prometheus", f"ls {targets}").decode().split()
        assert "dcgm-worker1.yml" not in left
        assert "dcgm-elsewhere.yml" in left
    finally:
        machines.ssh("prometheus", f"rm -f {targets}/dcgm-worker1.yml {targets}/dcgm-elsewhere.yml")


def test_every_expression_of_rules_and_panels_is_answered(prometheus: Callable[..., Any]) -> None:
    for expr in [*(rule.expr for rule in all_rules()), *(one.expr for one in expressions())]:
        prometheus("query", query=expr)
    groups = prometheus("rules")["groups"]
    assert [
        (one["name"], one["lastError"])
        for group in groups
        for one in group["rules"]
        if one["health"] != "ok"
    ] == []
    loaded = {one["name"] for group in groups for one in group["rules"]}
    assert loaded == {rule.name for rule in all_rules()}


def test_every_panel_that_applies_here_shows_data(
    prometheus: Callable[..., Any], edge: Edge, site: Site
) -> None:
    for number in range(3):  # as many scrapes
        assert edge.generate(f"a dog running {number}").status == 200
        assert edge.get("/v1/videos").status == 200
        assert ask_registry(site.host("harbor").address) == 401  # it knows its own accounts only
        time.sleep(6)
    end = time.time()
    empty = []
    for one in expressions("30s"):
        series = prometheus("query_range", query=one.expr, start=end - 300, end=end, step=5)[
            "result"
        ]
        shows = any(value != "NaN" for line in series for _, value in line["values"])
        if not shows and not any(part in one.expr for part in NOT_HERE):
            empty.append(f"{one.board}: {one.panel}: {one.expr}")
    assert not empty, "\n".join(empty)


def test_a_worker_that_is_off_fires_its_alert_and_one_that_is_back_ends_it(
    site: Site, machines: Machines
) -> None:
    """As Alertmanager has it; the webhook is tests/roles/test_prometheus.py's."""
    url = f"http://{site.host('prometheus').address}:9093/api/v2/alerts?active=true"

    def firing() -> set[tuple[str, str]]:
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = [one["labels"] for one in json.load(answer)]
        return {(one["alertname"], one.get("instance", "")) for one in found}

    expected = {("T2VServerDown", "worker2"), ("HostDown", "worker2")}
    assert not expected & firing()
    machines.power("off", "worker2")
    wait_for(lambda: expected <= firing(), "no alert within its window", 240)
    machines.power("on", "worker2")
    wait_for(lambda: not expected & firing(), "the alerts have not ended", 240)
