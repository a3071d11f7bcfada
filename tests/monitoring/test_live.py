"""A real Prometheus with our rules: everything that we ask it parses, and panels show data.

Some 40 seconds: the programs of ``stack.py`` run on loopback. With ``GRAFANA_URL`` (and
``GRAFANA_TOKEN``, of a service account that may edit) the dashboards go to that Grafana too.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from boards import Expression, boards, expressions, panels
from promtool import all_rules, metrics_in
from stack import Stack

# Alerts that the machine of the test may deserve: its clock, its disk, its boot, its memory.
MACHINE = {
    "HostRebooted",
    "NodeClockNotSynchronising",
    "NodeClockSkewDetected",
    "NodeFilesystemAlmostOutOfSpace",
    "NodeMemoryHighUtilization",
    "NodeOutOfMemoryKill",
}


def test_every_target_is_up(running: Stack) -> None:
    assert running.query("up == 0") == []
    assert len(running.query("up")) == 10


def test_every_rule_parses_and_is_evaluated(running: Stack) -> None:
    for rule in all_rules():
        running.query(rule.expr)
    assert running.query("prometheus_rule_evaluation_failures_total > 0") == []


@pytest.mark.parametrize("name", sorted({rule.name for rule in all_rules() if not rule.alert}))
def test_every_recording_rule_has_data(running: Stack, name: str) -> None:
    if name == "reason:t2v_jobs_failed:increase1h":
        assert running.query('t2v_jobs_total{outcome="failed"}') == [], "nothing failed, so no data"
        return
    assert running.query(name)


@pytest.mark.parametrize("one", expressions(), ids=lambda one: f"{one.board}: {one.panel}")
def test_every_panel_shows_data(
    running: Stack, one: Expression, record_property: Callable[[str, object], None]
) -> None:
    """Those of a GPU, a cluster and so on: a stand-in's, see ``stand_ins.REASONS``."""
    if one.stand_in:
        record_property("stand-in", one.stand_in)
    _until_there_is_data(running, one.expr)


def _until_there_is_data(running: Stack, expr: str) -> None:
    """A rate is there once something was counted twice; NaN is no data."""
    deadline = time.monotonic() + 20
    while True:
        series = running.query_range(expr, 30, 1)
        if any(value != "NaN" for one in series for _, value in one["values"]):
            return
        assert time.monotonic() < deadline, f"no data: {expr}"
        running.work()
        time.sleep(1)


def test_the_programs_under_test_are_no_stand_ins(running: Stack) -> None:
    """Most panels are fed by the real thing."""
    real = {one.panel for one in expressions() if not one.stand_in}
    assert len(real) > len({one.panel for one in expressions() if one.stand_in}) * 1.5


def test_only_the_watchdog_fires_without_a_reason(running: Stack) -> None:
    firing = {one["metric"]["alertname"] for one in running.query('ALERTS{alertstate="firing"}')}
    assert firing - MACHINE == {"Watchdog"}


def test_alerts_reach_alertmanager(running: Stack) -> None:
    assert running.query("prometheus_notifications_alertmanagers_discovered == 1")
    _wait(lambda: running.query('alertmanager_alerts{state="active"} > 0') != [])


def test_alerts_read_metrics_that_the_programs_really_export(running: Stack) -> None:
    """Metrics of the programs that run here and that alerts read are really exported by them."""
    ours = ("t2v_", "node_", "redis_", "nginx_", "registry_", "prometheus_", "alertmanager_")
    # Appear once something has failed, or where the kernel has the thing.
    later = {"prometheus_target_sync_failed_total", "node_nf_conntrack_entries_limit"}
    read = {name for rule in all_rules() for name in metrics_in(rule.expr)} - later
    known = {one["metric"]["__name__"] for one in running.query('{__name__=~".+"}')}
    assert sorted(name for name in read if name.startswith(ours) and name not in known) == []


def test_a_worker_that_is_gone_fires_and_one_that_is_back_resolves(running: Stack) -> None:
    """The alert's expression, at once; what it waits for besides is tested in rules/."""
    expr = next(rule.expr for rule in all_rules() if rule.name == "T2VServerDown")
    assert running.query(expr) == []
    running.pause("server", True)
    try:
        _wait(lambda: running.query(expr) != [])
    finally:
        running.pause("server", False)
    _wait(lambda: running.query(expr) == [])


def _wait(look: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.5)


# A Grafana, where there is one.


def _grafana(path: str, body: object | None = None) -> Any:
    request = urllib.request.Request(
        os.environ["GRAFANA_URL"].rstrip("/") + path,
        None if body is None else json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('GRAFANA_TOKEN', '')}",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.skipif(
    "GRAFANA_URL" not in os.environ,
    reason="no Grafana at hand: set GRAFANA_URL and GRAFANA_TOKEN to load the dashboards there",
)
@pytest.mark.parametrize("board", boards(), ids=lambda board: board["uid"])
def test_a_grafana_loads_the_dashboard_and_gets_data(board: dict[str, Any]) -> None:
    """Its data source ``prometheus`` watches a site, perhaps one without GPU or cluster."""
    _grafana("/api/dashboards/db", {"dashboard": {**board, "id": None}, "overwrite": True})
    loaded = _grafana(f"/api/dashboards/uid/{board['uid']}")["dashboard"]
    assert loaded["schemaVersion"] >= board["schemaVersion"]
    assert len(panels(loaded)) == len(panels(board))
    empty = []
    for one in (one for one in expressions() if one.board == board["uid"]):
        query = {
            "refId": "A",
            "expr": one.expr.replace("4s", "5m"),
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "range": True,
        }
        answer = _grafana("/api/ds/query", {"queries": [query], "from": "now-1h", "to": "now"})
        result = answer["results"]["A"]
        assert "error" not in result, (one.panel, result)
        if not result.get("frames") and not one.stand_in:
            empty.append(one.panel)
    assert empty == []
