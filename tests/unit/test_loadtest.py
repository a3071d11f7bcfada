"""The load test's numbers, its objectives, and the report, without a site."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from controller import ROOT
from t2v_loadtest import ab, figures
from t2v_loadtest.settings import Goals, Settings

TOLD: dict[str, Any] = {
    "url": "http://192.168.0.20",
    "host": "t2v.sanchuang.ai",
    "token": "",
    "prompt": "a dog running",
    "ab_program": "ab",
    # As Ansible hands numbers over.
    "ab_requests": "1000",
    "ab_clients": "50",
    "ab_timeout": "3600",
    "users": "4",
    "jobs": "3",
    "cancel_share": "0.2",
    "think": "1",
    "parameters": {},
    "job_timeout": "3600",
    "seed": "1",
    "keep_videos": "False",
    "engines": "2",
    "prometheus": "",
    "prometheus_user": "",
    "prometheus_password": "",
    "prometheus_ca": "",
    "goals": {
        "ab_failed": "0",
        "error_share": "0.01",
        "submit_p95": "0.5",
        "poll_p95": "0.5",
        "completed_share": "1",
        "wait_turns": "2",
    },
    "environment": {"runtime": "docker"},
}
# What ab 2.3 printed for ten requests, three of which were refused.
SAID = """\
Concurrency Level:      5
Time taken for tests:   4.250 seconds
Complete requests:      10
Failed requests:        3
   (Connect: 0, Receive: 0, Length: 3, Exceptions: 0)
Non-2xx responses:      3
Requests per second:    2.35 [#/sec] (mean)

Percentage of the requests served within a certain time (ms)
  50%   1875
  95%   2250
 100%   2250 (longest request)
"""


def goals() -> Goals:
    return Settings.read(TOLD).goals


def ab_result(**more: Any) -> dict[str, Any]:
    return {
        "command": "ab -n 10 …",
        "status": 0,
        "began": 1000.0,
        "ended": 1010.0,
        "complete": 10,
        "failed": 0,
        "other": 0,
        "files": 10,
        "seconds": 9.5,
        "rate": 1.05,
        "percentiles": {"50%": 4.0, "95%": 5.0},
        "points": [[1001.0, 4.0], [1004.0, 5.0]],
        "said": "",
        "requested": 10,
        "clients": 5,
        **more,
    }


def job(**more: Any) -> dict[str, Any]:
    return {
        "accepted": 1011.0,
        "id": "01",
        "status": "completed",
        "cancelled": False,
        "wait": 1.0,
        "seconds": 2.0,
        "error": "",
        **more,
    }


def mix_result(jobs: list[dict[str, Any]], requests: list[Any] | None = None) -> dict[str, Any]:
    asked = requests or [
        [1011.0, "submit", 0.02, 200, ""],
        [1011.5, "poll", 0.01, 200, ""],
        [1012.0, "download", 0.03, 200, ""],
        [1012.0, "cancel", 0.01, 200, ""],
    ]
    return {"began": 1011.0, "ended": 1020.0, "requests": asked, "jobs": jobs, "wanted": len(jobs)}


def missed(
    of_ab: dict[str, Any] | None, of_mix: dict[str, Any] | None, users: int = 4
) -> list[str]:
    found = figures.objectives(goals(), of_ab, of_mix, users, 2)
    sentence = figures.sentence(found)
    names = [one.name for one in found if one.met is False]
    # The sentence names exactly those, and is empty without.
    assert bool(sentence) == bool(names)
    assert all(name in sentence for name in names)
    return names


GOOD = [job(), job(), job(cancelled=True, status="failed", error="cancelled", wait=None)]


def test_numbers_come_as_text_and_are_numbers_then() -> None:
    read = Settings.read(TOLD)
    assert (read.ab_requests, read.cancel_share, read.keep_videos) == (1000, 0.2, False)
    assert read.goals.completed_share == 1.0


def test_the_article_s_command_is_what_is_run() -> None:
    command = ab.command(Settings.read(TOLD), Path("/tmp/requests.tsv"))
    assert command[-1] == "http://192.168.0.20/generate?prompt=a%20dog%20running"
    words = " ".join(command)
    assert "-n 1000 -c 50 -s 3600" in words
    assert "Host: t2v.sanchuang.ai" in words
    assert "requests.tsv" not in ab.shown(command, "")


def test_the_token_is_not_shown() -> None:
    settings = Settings.read({**TOLD, "token": "sesame"})
    assert "sesame" not in ab.shown(ab.command(settings, Path("x")), "sesame")


def test_what_ab_says_is_read() -> None:
    result = ab.parse(SAID, ab.AbResult("ab", 0))
    assert (result.complete, result.failed, result.other) == (10, 3, 3)
    assert (result.seconds, result.rate) == (4.25, 2.35)
    assert result.percentiles == {"50%": 1.875, "95%": 2.25, "100%": 2.25}
    table = "starttime\tseconds\tctime\tdtime\tttime\twait\nThu\t1002\t0\t9\t9\t8\n"
    assert ab.read_points(table) == [(1002.0, 0.009)]


def test_a_run_in_which_all_is_well_misses_nothing() -> None:
    assert missed(ab_result(), mix_result(GOOD)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"complete": 9}, "ab: requests not answered with a video"),
        ({"failed": 1, "files": 10}, "ab: requests not answered with a video"),
        ({"other": 1}, "ab: requests not answered with a video"),
        ({"status": 22}, "ab: requests not answered with a video"),
        ({"files": 9}, "ab: different files"),
    ],
)
def test_what_is_wrong_with_ab_misses_its_objective(change: dict[str, int], name: str) -> None:
    assert missed(ab_result(**change), None) == [name]


def test_a_refusal_that_says_when_to_come_back_is_no_error_and_a_503_is_one() -> None:
    polls = [[1011.0, "poll", 0.01, 200, ""]] * 95
    refused = [[1011.0, "submit", 0.01, 429, ""]] * 5
    assert missed(None, mix_result(GOOD, polls + refused)) == []
    broken = [[1011.0, "submit", 0.01, 503, "503: the job store is away"]] * 5
    assert missed(None, mix_result(GOOD, polls + broken)) == [
        "mix: share of submit, poll and cancel requests that failed"
    ]


def test_a_slow_answer_misses_the_objective_of_its_kind() -> None:
    slow = [[1011.0, "submit", 0.01, 200, ""], [1011.0, "poll", 0.7, 200, ""]]
    assert missed(None, mix_result(GOOD, slow)) == ["mix: poll, 95 of 100 answered within"]


@pytest.mark.parametrize("change", [{"status": "lost"}, {"status": "failed", "error": "no_space"}])
def test_a_job_that_is_no_video_misses_it_and_one_that_was_cancelled_does_not(
    change: dict[str, str],
) -> None:
    assert missed(None, mix_result([*GOOD, job(**change)])) == ["mix: jobs that became a video"]
    never_accepted = mix_result(GOOD) | {"wanted": len(GOOD) + 1}
    assert missed(None, never_accepted) == ["mix: jobs that became a video"]


def test_a_cancelled_job_that_never_ends_misses_it() -> None:
    endless = job(cancelled=True, status="lost", wait=None, seconds=None)
    assert missed(None, mix_result([*GOOD, endless])) == ["mix: cancelled jobs that ended"]


def test_a_wait_far_beyond_its_turn_misses_it() -> None:
    # Four users on two engines, a second for each job: its turn comes after 1.5 s.
    assert missed(None, mix_result([*GOOD, job(wait=3.9, seconds=4.9)])) == []
    assert missed(None, mix_result([*GOOD, job(wait=9.0, seconds=10.0)])) == [
        "mix: wait for an engine, 95 of 100 jobs within"
    ]


def test_of_nothing_nothing_is_measured_and_nothing_missed_but_the_jobs() -> None:
    found = figures.objectives(goals(), None, mix_result([]) | {"requests": []}, 4, 2)
    assert {one.met for one in found} == {None}


class Page(HTMLParser):
    """What a browser would fetch, and what a screen reader needs."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.fetched += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#")
        ]
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "svg":
            self.images.append(found)


@pytest.fixture(scope="module")
def python() -> Path:
    """The load test's own Python, made where it is not there."""
    subprocess.run(
        ["make", "--no-print-directory", ".venv-loadtest/installed"], cwd=ROOT, check=True
    )
    return ROOT / ".venv-loadtest/bin/python"


WRITE = """
import json, sys
from pathlib import Path
from t2v_loadtest import report
from t2v_loadtest.prom import Recorded
from t2v_loadtest.settings import Settings
told = json.load(sys.stdin)
recorded = Recorded(curves=told["curves"], step=5.0, fault=told["fault"])
result = {"ab": told["ab"], "mix": told["mix"], "environment": {"engines": "2"}}
settings = Settings.read(told["settings"])
print(json.dumps(report.write(Path(sys.argv[1]), settings, result, recorded, 1000.0, 1020.0)))
"""


def written(python: Path, folder: Path, **told: Any) -> tuple[Page, str, dict[str, Any]]:
    curves = {"queue": {"waiting": [[1000.0, 1.0], [1005.0, 3.0]]}}
    data = {"settings": TOLD, "ab": None, "mix": None, "curves": curves, "fault": "", **told}
    done = subprocess.run(
        [python, "-c", WRITE, folder],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT / "roles/loadtest/files"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    html = (folder / "report.html").read_text()
    page = Page()
    page.feed(html)
    return page, html, json.loads(done.stdout)


def test_the_report_is_one_file_with_names_for_who_cannot_see_it(
    python: Path, tmp_path: Path
) -> None:
    nasty = job(status="failed", error="<b>")
    requests = [[1011.0, "submit", 0.02, 500, "500: <script>alert(1)</script>"]]
    page, html, numbers = written(
        python, tmp_path, ab=ab_result(), mix=mix_result([*GOOD, nasty], requests)
    )
    assert page.fetched == []
    assert "script" not in page.tags  # what a server said is text
    assert re.search(r"@import|url\((?!#)", html) is None
    assert len(page.ids) == len(set(page.ids))
    assert len(page.images) == 8
    for image in page.images:
        names = str(image["aria-labelledby"]).split()
        assert image["role"] == "img"
        assert len(names) == 2 and set(names) <= set(page.ids)
    assert numbers["met"] is False
    assert numbers["missed"] in html.replace("&lt;", "<").replace("&#39;", "'")
    assert page.tags.count("caption") >= 4


def test_without_prometheus_and_without_a_part_there_is_still_a_report(
    python: Path, tmp_path: Path
) -> None:
    page, html, numbers = written(
        python, tmp_path, mix=mix_result(GOOD), fault="Prometheus does not answer"
    )
    assert "Prometheus does not answer" in html
    assert len(page.images) == 2
    assert numbers["met"] is True
    assert "objectives were met" in html
