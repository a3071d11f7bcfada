"""The table of the role verify: what each side says becomes rows, one verdict, one sentence."""

from __future__ import annotations

import copy
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ask import Row, alerts, grafana, looked, report
from lab import cli
from table import collect, merged, sentence, table

LOOK = Path(__file__).resolve().parents[2] / "roles/verify/files/look"
HPA: dict[str, Any] = {
    "metadata": {"name": "wan22-hpa"},
    "spec": {
        "minReplicas": 2,
        "maxReplicas": 6,
        "scaleTargetRef": {"name": "wan22-t2v-deployment"},
    },
    "status": {
        "currentReplicas": 2,
        "currentMetrics": [{"resource": {"name": "cpu", "current": {"averageUtilization": 12}}}],
        "conditions": [{"type": "ScalingActive", "status": "True"}],
    },
}
CLUSTER: dict[str, Any] = {
    "namespace": "t2v",
    "deployment": [{"spec": {"replicas": 2}, "status": {"readyReplicas": 2}}],
    "pods": [
        {
            "spec": {"nodeName": name},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }
        for name in ("worker2", "worker1")
    ],
    "hpa": [HPA],
    "scaledobject": [],
}


def row(check: str, result: str, seen: str, look: str = "") -> dict[str, str]:
    return {"check": check, "result": result, "seen": seen, "look": look}


def told(**more: Any) -> dict[str, Any]:
    """What the role passes to table.py, of a small site where all is well."""
    return {
        "rows": [row("edge answers", "ok", "200") | {"where": "controller"}],
        "hosts": {
            name: {"out": json.dumps([row("clock", "ok", "synchronised")])}
            for name in ("master", "worker1", "worker2")
        },
        "prometheus": row("Prometheus", "ok", "every target up") | {"where": "controller"},
        "autoscaler": "hpa",
        "cluster": None,
        **more,
    }


def failed(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(one["check"], one["where"]) for one in rows if one["result"] == "FAILED"]


def test_where_all_is_well_nothing_is_said_to_have_failed() -> None:
    rows = collect(told())
    assert failed(rows) == []
    assert sentence(rows) == ""


def test_rows_that_say_the_same_are_one_line_and_a_failure_stands_for_itself() -> None:
    data = told()
    data["hosts"]["worker2"]["out"] = json.dumps(
        [row("clock", "FAILED", "Not synchronised", "`chronyc sources` there")]
    )
    rows = collect(data)
    assert failed(rows) == [("clock", "worker2")]
    lines = table(rows).splitlines()
    (shared,) = [line for line in lines if line.startswith("clock") and "  ok  " in line]
    assert "master, worker1" in shared
    at = next(number for number, line in enumerate(lines) if "FAILED" in line)
    assert "worker2" in lines[at]
    assert "look at: `chronyc sources` there" in lines[at + 1]
    assert lines[-1] == "7 ok, 1 FAILED, 1 skipped"
    assert sentence(rows) == (
        "1 of 9 checks failed, see the table for where to look: clock (worker2)."
    )
    assert len(merged(rows)) < len(rows)


def test_a_host_that_says_nothing_is_a_failure_of_its_own_and_the_others_are_still_told() -> None:
    data = told()
    data["hosts"]["worker1"] = {"unreachable": True, "msg": "No route to host"}
    data["hosts"]["worker2"] = {"out": "", "msg": "sh: python: not found"}
    rows = collect(data)
    assert failed(rows) == [("host answers", "worker1"), ("host answers", "worker2")]
    assert ("clock", "master") in {(one["check"], one["where"]) for one in rows}


def test_a_cluster_is_looked_at_and_its_autoscaler_with_bounds_and_metric() -> None:
    rows = {one["check"]: one for one in collect(told(cluster=CLUSTER))}
    assert rows["service healthy, ready"]["seen"] == "2 of 2 pods ready, on worker1 and worker2"
    assert rows["autoscaler"]["seen"] == "wan22-hpa: 2 to 6, now 2; metric at 12 %"
    assert not [one for one in rows.values() if one["result"] == "FAILED"]


def broken(change: str) -> dict[str, Any]:
    cluster = copy.deepcopy(CLUSTER)
    status = cluster["hpa"][0]["status"]
    if change == "no metric":
        status["currentMetrics"] = None
        status["conditions"][0] = {"type": "ScalingActive", "status": "False", "message": "no API"}
    elif change == "no autoscaler":
        cluster["hpa"] = []
    elif change == "a pod waits":
        cluster["deployment"][0]["status"]["readyReplicas"] = 1
        cluster["pods"][0]["status"]["conditions"][0]["status"] = "False"
    elif change == "no deployment":
        cluster["deployment"] = []
    return cluster


@pytest.mark.parametrize(
    ("change", "check", "seen"),
    [
        ("no metric", "autoscaler", "wan22-hpa: 2 to 6, now 2; no API"),
        ("no autoscaler", "autoscaler", "there is none"),
        ("a pod waits", "service healthy, ready", "1 of 2 pods ready, on worker1"),
        ("no deployment", "service healthy, ready", "there is no Deployment"),
    ],
)
def test_what_is_wrong_with_a_cluster_fails_its_row_alone(
    change: str, check: str, seen: str
) -> None:
    rows = collect(told(cluster=broken(change)))
    assert failed(rows) == [(check, "cluster")]
    assert next(one["seen"] for one in rows if one["result"] == "FAILED") == seen


def test_keda_counts_when_its_scaledobject_is_ready() -> None:
    keda = copy.deepcopy(CLUSTER)
    keda["hpa"][0]["metadata"]["name"] = "keda-hpa-wan22"
    keda["hpa"][0]["status"]["currentMetrics"] = [{"external": {"current": {"averageValue": "1"}}}]
    keda["scaledobject"] = [{"status": {"conditions": [{"type": "Ready", "status": "True"}]}}]
    assert failed(collect(told(cluster=keda, autoscaler="keda"))) == []
    keda["scaledobject"][0]["status"]["conditions"][0]["status"] = "False"
    assert failed(collect(told(cluster=keda, autoscaler="keda"))) == [("autoscaler", "cluster")]


@contextmanager
def answering(pages: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """A web server of this test, in place of Alertmanager and Grafana."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = pages.get(self.path.split("?")[0], (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def alerts_of(*names: str, expected: list[str] | None = None) -> Row:
    active = [{"labels": {"alertname": name, "instance": "worker1"}} for name in names]
    with answering({"/api/v2/alerts": (200, json.dumps(active).encode())}) as url:
        return alerts(
            {"alertmanager": url, "alerts": True, "expected_alerts": expected or []}, patience=0
        )


def test_an_alert_fails_its_row_unless_it_is_expected() -> None:
    assert alerts_of("Watchdog").result == "ok"
    found = alerts_of("Watchdog", "HostDown")
    assert (found.result, found.seen) == ("FAILED", "active: HostDown of worker1")
    assert alerts_of("Watchdog", "HostDown", expected=["Host.*"]).result == "ok"


def test_an_alertmanager_that_prometheus_tells_nothing_is_no_good_sign() -> None:
    found = alerts_of()
    assert found.result == "FAILED"
    assert "Watchdog" in found.seen


def test_a_prometheus_that_has_just_started_gets_the_time_to_tell_its_first() -> None:
    pages = {"/api/v2/alerts": (200, b"[]")}
    told = json.dumps([{"labels": {"alertname": "Watchdog"}}]).encode()
    with answering(pages) as url:
        timer = threading.Timer(0.2, pages.update, [{"/api/v2/alerts": (200, told)}])
        timer.start()
        wanted = {"alertmanager": url, "alerts": True, "expected_alerts": []}
        assert alerts(wanted, patience=20).result == "ok"
        timer.join()


def test_grafana_is_asked_for_its_database() -> None:
    for body, result in ((b'{"database": "ok"}', "ok"), (b'{"database": "failing"}', "FAILED")):
        with answering({"/api/health": (200, body)}) as url:
            assert grafana({"grafana": url}).result == result
    assert grafana({"grafana": ""}).result == "skipped"


def test_who_does_not_answer_is_a_row_too() -> None:
    with answering({}) as url:
        pass
    found = looked("Grafana", lambda: grafana({"grafana": url}), "its log")
    assert (found.result, found.look) == ("FAILED", "its log")
    assert "refused" in found.seen


# What ask.py is told of a site; with a monitoring switched off.
ASKED: dict[str, Any] = {
    "host": "t2v.sanchuang.ai",
    "token": "",
    "front": "edge",
    "health": "/edge/healthz",
    "logs": "/var/log/nginx/error.log on master",
    "max_body": "1m",
    "prompt": "a dog running",
    "seconds": "5",
    "videos_dir": "/shared/videos",
    "ffprobe": "ffprobe",
    "expected": {"codec": "h264", "width": "0", "height": "0", "frames": "0"},
    "alertmanager": "",
    "alerts": True,
    "expected_alerts": [],
    "grafana": "",
}


def test_an_entrance_that_is_away_fails_its_rows_and_what_needs_no_entrance_is_still_asked() -> (
    None
):
    with answering({}) as url:
        pass
    found = report({**ASKED, "url": url})
    assert {one["check"]: one["result"] for one in found["rows"]} == {
        "edge answers": "FAILED",
        "edge other host name": "FAILED",
        "edge headers": "FAILED",
        "edge limits": "FAILED",
        "video made": "FAILED",
        "video probed": "skipped",
        "alerts": "skipped",
        "Grafana": "skipped",
    }
    assert all(one["look"] for one in found["rows"] if one["result"] == "FAILED")
    assert found["made"]["path"] == ""


def test_an_answer_that_is_not_the_documented_sentence_is_no_video() -> None:
    pages = {"/generate": (200, b"Video generated at /elsewhere/1.mp4\n"), "/healthz": (200, b"ok")}
    with answering(pages) as url:
        found = {one["check"]: one for one in report({**ASKED, "url": url})["rows"]}
    assert found["video made"]["result"] == "FAILED"
    assert "/elsewhere/1.mp4" in found["video made"]["seen"]
    # This server serves every name, names no server, and takes bodies of any size.
    assert found["edge other host name"]["seen"] == "stranger.invalid is served: 200"
    assert found["edge headers"]["seen"].startswith("/healthz comes without X-T2V-Instance")
    assert "gets 501 and not 413" in found["edge limits"]["seen"]


def on_this_host(wanted: dict[str, Any]) -> list[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", LOOK.read_text()],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout)
    assert isinstance(rows, list)
    return rows


def certificate(path: Path, days: int) -> Path:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=test", "-days", str(days), "-keyout", "/dev/null"),
            *("-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
    return path


def test_a_certificate_that_ends_soon_fails_and_one_that_is_not_there_is_not_asked_of_a_host(
    tmp_path: Path,
) -> None:
    files = [
        {"name": "long", "path": str(certificate(tmp_path / "long.crt", 90))},
        {"name": "short", "path": str(certificate(tmp_path / "short.crt", 10))},
        {"name": "other", "path": str(tmp_path / "other.crt")},
    ]
    (tmp_path / "none.crt").write_text("no certificate\n")
    files.append({"name": "none", "path": str(tmp_path / "none.crt")})
    rows = on_this_host({"certificates": {"files": files, "days": "28"}})
    assert [(one["check"], one["result"]) for one in rows] == [
        ("certificate long", "ok"),
        ("certificate short", "FAILED"),
        ("certificate none", "FAILED"),
    ]
    assert rows[1]["seen"] in ("9 days left", "10 days left")


def test_a_name_that_is_somewhere_else_fails() -> None:
    (right,) = on_this_host({"name": {"name": "localhost", "address": "127.0.0.1"}})
    assert right["result"] == "ok"
    (wrong,) = on_this_host({"name": {"name": "localhost", "address": "192.168.0.20"}})
    assert (wrong["result"], wrong["seen"]) == ("FAILED", "is 127.0.0.1 and not 192.168.0.20")


def test_a_look_that_breaks_is_a_row_and_does_not_stop_the_others() -> None:
    rows = on_this_host({"name": {}, "certificates": {"files": [], "days": 28}, "video": {}})
    assert [(one["check"], one["result"]) for one in rows] == []
    rows = on_this_host({"service": {"url": 1}, "name": {"name": "localhost", "address": "::1"}})
    assert [one["check"] for one in rows] == ["name localhost", "service"]
    assert rows[1]["result"] == "FAILED"


# The end of a run, as Ansible prints what the role says.
SHOWN = """\
ok: [localhost] =>
    msg: |-
        Video generated at /shared/videos/01M8CT3ST8K9C0MAAGG2G5Z4ZK.mp4
        ffprobe: codec=h264 size=64x64 frames=9 rate=24/1
        Asked: http://t2v.sanchuang.ai:31080/generate?prompt=a%20dog at http://192.168.0.20:31080

        check  where  result  seen
"""


def test_make_up_ends_with_the_video_and_with_where_verify_asked_for_it() -> None:
    found = [shown[1] for line in SHOWN.splitlines() if (shown := cli._RESULT.search(line))]
    assert [cli._hint(line) for line in found] == [
        "Video generated at /shared/videos/01M8CT3ST8K9C0MAAGG2G5Z4ZK.mp4",
        "ffprobe: codec=h264 size=64x64 frames=9 rate=24/1",
        "Ask for another: make ssh HOST=ansible, then "
        "curl 'http://t2v.sanchuang.ai:31080/generate?prompt=a%20dog'",
    ]
