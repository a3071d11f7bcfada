"""The dashboards: written from their module, readable, and asking for metrics that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stack
import stand_ins
from boards import FILES, Expression, boards, expressions, panels, sent
from promtool import ROOT, all_rules, metrics_in, parse_errors
from stack import Stack

UNITS = {
    "none", "short", "s", "bytes", "mbytes", "Bps", "ops", "reqps", "percent", "percentunit",
    "celsius", "watt", "hertz",
}  # fmt: skip
KINDS = {"timeseries", "stat"}  # of Grafana 9.1, without a plugin
UIDS = ["t2v-cluster", "t2v-gpu", "t2v-hosts", "t2v-service", "t2v-storage"]
BOARDS = pytest.mark.parametrize("board", boards(), ids=lambda board: board["uid"])


def test_the_files_are_what_the_module_writes(tmp_path: Path) -> None:
    module = tmp_path / "dashboards.py"
    module.write_text((ROOT / "roles/grafana/files/dashboards.py").read_text())
    subprocess.run([sys.executable, module], check=True, timeout=60)
    written = {path.name: path.read_text() for path in (tmp_path / "dashboards").iterdir()}
    assert written == {path.name: path.read_text() for path in FILES}, "run `make dashboards`"


def test_there_is_one_for_each_subject() -> None:
    assert [board["uid"] for board in boards()] == UIDS
    assert [path.stem for path in FILES] == UIDS


@BOARDS
def test_grafana_9_1_2_can_import_it(board: dict[str, Any]) -> None:
    assert board["schemaVersion"] == 37
    assert board["title"]
    assert board["description"]
    assert "id" not in board  # it is the database's
    assert {panel["type"] for panel in panels(board)} <= KINDS
    for panel in panels(board):
        assert panel["options"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)), panel["title"]


@BOARDS
def test_panels_have_numbers_and_places_of_their_own(board: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = set[tuple[int, int]]()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells
        assert not cells & taken, panel["title"]
        taken |= cells


@BOARDS
def test_panels_say_what_they_show(board: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(board)]
    assert [title for title in titles if not title] == []
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        for target in panel["targets"]:
            several = len(panel["targets"]) > 1 or " by (" in target["expr"]
            named = target["legendFormat"] != "__auto" or panel["type"] == "stat"
            assert named or not several, panel["title"]


@BOARDS
def test_data_come_from_the_chosen_source(board: dict[str, Any]) -> None:
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    (source,) = (one for one in board["templating"]["list"] if one["type"] == "datasource")
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    # Name and uid of the one that the role provisions.
    assert source["current"] == {"selected": True, "text": "Prometheus", "value": "prometheus"}
    for panel in panels(board):
        assert panel["datasource"] == wanted, panel["title"]
        assert all(target["datasource"] == wanted for target in panel["targets"])


@BOARDS
def test_variables_are_used_and_the_used_ones_are_there(board: dict[str, Any]) -> None:
    declared = {one["name"] for one in board["templating"]["list"]}
    text = str(board["panels"]) + str(
        [one.get("datasource") for one in board["templating"]["list"]]
    )
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
    assert used == declared


@BOARDS
def test_rates_follow_the_scrape_interval(board: dict[str, Any]) -> None:
    """Every window is $__rate_interval, or the hour that the panel says."""
    for panel in panels(board):
        for target in panel["targets"]:
            for window in re.findall(r"\[([^]]+)\]", target["expr"]):
                said = "hour" in panel["description"] and window == "1h"
                assert window == "$__rate_interval" or said, (panel["title"], window)


def test_every_expression_parses(tmp_path: Path) -> None:
    assert parse_errors([one.expr for one in expressions()], tmp_path) == ""


def test_a_broken_expression_would_be_seen(tmp_path: Path) -> None:
    assert "parse" in parse_errors([sent("sum(rate(up[$__rate_interval])")], tmp_path)


@pytest.fixture(scope="session")
def known(running: Stack) -> set[str]:
    """Names of metrics: of the programs that run, of stand-ins, of our own rules."""
    pages = [stack.ask(f"http://{address}/metrics") for address in running.addresses.values()]
    pages += [stand_ins.nfs_server()]
    names = {
        re.split(r"[ {]", line)[0]
        for page in pages
        for line in page.splitlines()
        if not line.startswith("#")
    }
    return names | {rule.name for rule in all_rules() if not rule.alert} | {"up", "ALERTS"}


@pytest.mark.parametrize("one", expressions(), ids=lambda one: f"{one.board}: {one.panel}")
def test_every_metric_of_a_panel_exists(known: set[str], one: Expression) -> None:
    names = metrics_in(one.expr)
    assert names
    assert names <= known


@BOARDS
def test_a_picture_of_it_is_in_the_docs(board: dict[str, Any]) -> None:
    picture = ROOT / "docs/dashboards" / f"{board['uid']}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"dashboards/{picture.name}" in (ROOT / "docs/dashboards.md").read_text()
