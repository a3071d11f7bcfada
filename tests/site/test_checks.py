"""``verify.yml`` and ``loadtest.yml`` on the site: what is broken fails, and nothing else.

The first file of this folder, as alerts of later tests would count as failures.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge import Edge
from lab.hosts import Site
from lab.settings import REPOSITORY, Paths
from machines import Machines
from playbooks import WHOLE

Rows = dict[tuple[str, str], str]


# This machine may be busy, and all machines of the lab with it.
BUSY = ["Host.*Cpu.*", "Host.*Load.*", "HostOutOfMemory.*"]


@pytest.fixture(scope="module")
def machines(paths: Paths, site: Site) -> Machines:
    """Nobody pulls a plug here: nothing is to be put back."""
    return Machines(paths, "site", site)


def verify(machines: Machines, tmp_path: Path, *options: str) -> tuple[int, Rows, str]:
    """Status, the result of each row by check and host, and the output."""
    report = tmp_path / "verify.json"
    done = machines.run_playbook(
        "playbooks/verify.yml",
        *("-e", f"verify_report={report}", "-e", "verify_monitoring_attempts=1", *options),
        **WHOLE,
    )
    assert report.exists(), done.stdout
    rows = json.loads(report.read_text())["rows"]
    return (
        done.returncode,
        {(one["check"], one["where"]): one["result"] for one in rows},
        done.stdout,
    )


def failed(rows: Rows) -> set[tuple[str, str]]:
    return {one for one, result in rows.items() if result == "FAILED"}


def test_of_a_site_that_is_well_every_row_is_ok_or_says_why_it_does_not_apply(
    machines: Machines, tmp_path: Path
) -> None:
    expected = json.dumps({"verify_alerts_expected": BUSY})
    status, rows, output = verify(machines, tmp_path, "-e", expected)
    assert failed(rows) == set(), output
    assert status == 0
    skipped = {check for (check, _), result in rows.items() if result == "skipped"}
    assert skipped == {"autoscaler", "Grafana", "clock"}
    for host in ("worker1", "worker2"):
        for check in ("service healthy, ready", "video on the share", "registry image by t2v-pull"):
            assert rows[check, host] == "ok"


@pytest.fixture
def broken(machines: Machines) -> Iterator[None]:
    """Four things that are wrong at once; each is put right again."""
    wrong = {
        "worker2": ("docker stop -t 0 wan22-t2v", "docker start wan22-t2v"),
        "harbor": ("systemctl stop docker-registry", "systemctl start docker-registry"),
        "ansible": (
            "sed -i.right 's/^192.168.0.20 t2v/192.168.0.99 t2v/' /etc/hosts",
            "mv /etc/hosts.right /etc/hosts",
        ),
        # What is written there from now on belongs to another group.
        "worker1": ("chgrp root /shared/videos", "chgrp t2v /shared/videos"),
    }

    def on_all(number: int) -> None:
        with ThreadPoolExecutor(len(wrong)) as pool:
            list(pool.map(lambda host: machines.ssh(host, wrong[host][number]), wrong))

    try:
        on_all(0)
        yield
    finally:
        on_all(1)


def test_what_is_broken_fails_its_rows_all_of_them_and_no_other(
    machines: Machines, tmp_path: Path, edge: Edge, broken: None
) -> None:
    time.sleep(6)  # a scrape
    status, rows, output = verify(machines, tmp_path, "-e", "verify_alerts=false")
    assert failed(rows) == {
        ("name t2v.sanchuang.ai", "ansible"),
        ("service healthy, ready", "worker2"),
        ("video on the share", "worker1"),
        ("video on the share", "worker2"),
        ("registry asks who it is", "harbor"),
        ("registry asks who it is", "worker1"),
        ("registry asks who it is", "worker2"),
        ("registry image by t2v-pull", "worker1"),
        ("registry image by t2v-pull", "worker2"),
        ("registry image by t2v-push", "harbor"),
        ("Prometheus", "controller"),
    }, output
    assert status != 0
    assert f"11 of {len(rows)} checks failed, see the table for where to look: name" in output
    assert rows["video made", "controller"] == "ok"  # by the worker that is left


def test_after_they_are_put_right_both_workers_are_ready(machines: Machines, edge: Edge) -> None:
    deadline = time.monotonic() + 60
    seen: set[str] = set()
    while seen != {"worker1", "worker2"} and time.monotonic() < deadline:
        seen.add(edge.get("/ready").worker)
        time.sleep(0.2)
    assert seen == {"worker1", "worker2"}


def loadtest(machines: Machines, folder: Path, **sizes: Any) -> tuple[int, dict[str, Any], str]:
    python = REPOSITORY / ".venv-loadtest/bin/python"
    assert python.exists(), "make .venv-loadtest/installed"
    wanted = {"loadtest_python": str(python), "loadtest_dir": str(folder), **sizes}
    done = machines.run_playbook("playbooks/loadtest.yml", "-e", json.dumps(wanted), **WHOLE)
    (report,) = folder.glob("*/report.json")
    assert report.with_suffix(".html").stat().st_size > 50_000
    return done.returncode, json.loads(report.read_text()), done.stdout


def test_a_small_load_is_carried_and_the_one_objective_that_nobody_can_meet_is_named(
    machines: Machines, tmp_path: Path
) -> None:
    """CI's machine has other things to do: how fast the API really answers is not asked here."""
    status, report, output = loadtest(
        machines,
        tmp_path,
        loadtest_ab_requests=24,
        loadtest_ab_clients=8,
        loadtest_jobs=6,
        loadtest_users=3,
        loadtest_goal_submit_p95=30,
        loadtest_goal_poll_p95=0.000001,
        loadtest_goal_wait_turns=20,
    )
    (missed,) = [one["name"] for one in report["objectives"] if one["met"] is False]
    assert missed == "mix: poll, 95 of 100 answered within"
    assert status != 0
    assert f"1 of 8 objectives was missed: {missed}" in output
    assert (report["ab"]["complete"], report["ab"]["failed"], report["ab"]["other"]) == (24, 0, 0)
    assert report["ab"]["files"] == 24
    assert sum(report["mix"]["jobs"].values()) == 6
    assert "lost" not in report["mix"]["jobs"]
    assert set(report["recorded"]["curves"]["queue"]) == {"waiting", "in flight", "room"}
