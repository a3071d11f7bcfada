"""Recording rules and alerts: promtool is content, and every alert is tested and explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from promtool import ROOT, RULE_TESTS, RULES, Rule, all_rules, load, metrics_in, promtool

ALERTS = [rule for rule in all_rules() if rule.alert]
NAMES = sorted({rule.name for rule in ALERTS})
RECORDED = [rule for rule in all_rules() if not rule.alert]
RUNBOOKS = ROOT / "docs/runbooks.md"
# What fires where there is nothing at all, and should.
WITHOUT_ANYTHING = {"Watchdog", "T2VMetricsAbsent", "JobMissing"}


def test_promtool_accepts_the_rules() -> None:
    good, said = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert good, said


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent_as_written(path: Path) -> None:
    good, said = promtool("test", "rules", path)
    assert good, said


def test_every_file_of_rules_has_one_of_tests() -> None:
    assert [path.stem for path in RULES] == [path.stem.removesuffix("_test") for path in RULE_TESTS]


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_is_seen_to_fire_and_to_be_silent(name: str) -> None:
    """Each rule of that name (a warning and a critical one, say), not only one of them."""
    fired, silent = set[str](), False
    for path in RULE_TESTS:
        for test in load(path)["tests"]:
            for one in test["alert_rule_test"]:
                if one["alertname"] == name:
                    silent |= not one["exp_alerts"]
                    fired |= {json.dumps(_own(alert["exp_labels"])) for alert in one["exp_alerts"]}
    wanted = {json.dumps(_own(rule.labels)) for rule in ALERTS if rule.name == name}
    assert fired == wanted
    assert silent or name == "Watchdog", f"no test sees {name} silent"


def _own(labels: dict[str, str]) -> dict[str, str]:
    """The labels that tell rules of one name apart."""
    return {key: labels[key] for key in ("severity", "long", "short") if key in labels}


def test_what_is_not_there_is_silent(tmp_path: Path) -> None:
    """No cluster, no GPU, no NFS, no edge: their rules neither fire nor fail."""
    tests = [
        {
            "interval": "1m",
            "input_series": [],
            "alert_rule_test": [
                {"eval_time": "4h", "alertname": name, "exp_alerts": []}
                for name in NAMES
                if name not in WITHOUT_ANYTHING
            ],
        }
    ]
    path = tmp_path / "nothing.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rule) for rule in RULES], "tests": tests}))
    good, said = promtool("test", "rules", path)
    assert good, said


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule.name}-{rule.labels['severity']}")
def test_an_alert_says_what_how_bad_and_what_to_do(rule: Rule) -> None:
    assert rule.labels["severity"] in {"critical", "warning", "info", "none"}
    assert set(rule.annotations) == {"summary", "description", "runbook_url"}
    assert rule.annotations["summary"].endswith(".")
    assert rule.annotations["description"].endswith(".")
    repository = load(ROOT / "galaxy.yml")["repository"]
    page, _, anchor = rule.annotations["runbook_url"].partition("#")
    assert page == f"{repository}/blob/main/docs/runbooks.md"
    assert anchor == rule.name.lower()


def sections() -> dict[str, str]:
    """The runbooks: heading to text."""
    parts = re.split(r"^### (.+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert sorted(sections()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_runbook_has_its_four_parts(name: str) -> None:
    for part in ("Meaning", "Impact", "Look", "Do"):
        assert re.search(rf"^\*\*{part}\.\*\* \S", sections()[name], re.MULTILINE), part


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: rule.name)
def test_every_recording_rule_is_named_well_and_used(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z_]+:[a-z0-9_]+:[a-z0-9_]+", rule.name)
    used = [other.expr for other in all_rules() if other.name != rule.name] + [
        target["expr"]
        for path in (ROOT / "roles/grafana/files/dashboards").glob("*.json")
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    assert any(rule.name in metrics_in(expr) for expr in used), f"nobody reads {rule.name}"


def test_rules_read_only_recordings_that_exist() -> None:
    read = {name for rule in all_rules() for name in metrics_in(rule.expr) if ":" in name}
    assert read <= {rule.name for rule in RECORDED}
