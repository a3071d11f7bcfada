"""Put together what the controller, the hosts and the cluster have said: one table, one verdict.

JSON in, JSON out: all rows, the table as text, and the sentence about what failed (empty: nothing).
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
Row = dict[str, str]
COLUMNS = ("check", "where", "result", "seen")
WIDTH = 150
# As a reader thinks of them; what begins with none of these comes last.
ORDER = (
    *("name", "edge", "service", "video", "registry", "autoscaler"),
    *("Prometheus", "alerts", "Grafana", "certificate", "clock"),
)


def row(check: str, where: str, result: str, seen: str, look: str = "") -> Row:
    """One line of the table."""
    return {"check": check, "where": where, "result": result, "seen": seen, "look": look}


def of_host(host: str, answer: dict[str, Any]) -> list[Row]:
    """What one host said, or that it said nothing."""
    advice = f"whether {host} is on, and its ansible_host in the inventory"
    if answer.get("unreachable"):
        return [row("host answers", host, FAILED, f"not over SSH: {answer.get('msg', '')}", advice)]
    try:
        rows = json.loads(answer.get("out", ""))
    except ValueError:
        said = str(answer.get("msg", "") or answer.get("out", ""))
        seen = f"its answer cannot be read: {said[-200:]}"
        return [row("host answers", host, FAILED, seen, f"whether Python runs on {host}")]
    return [row("host answers", host, OK, "over SSH"), *({**one, "where": host} for one in rows)]


def of_pods(cluster: dict[str, Any]) -> list[Row]:
    """The service's pods, on the cluster."""
    name, advice = "service healthy, ready", f"`kubectl -n {cluster['namespace']} describe pods`"
    if not cluster["deployment"]:
        return [row(name, "cluster", FAILED, "there is no Deployment", "site.yml --tags deploy")]
    (deployment,) = cluster["deployment"]
    wanted, ready = deployment["spec"]["replicas"], deployment["status"].get("readyReplicas", 0)
    nodes = sorted(
        pod["spec"].get("nodeName", "no node")
        for pod in cluster["pods"]
        if any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in pod["status"].get("conditions", [])
        )
    )
    seen = f"{ready} of {wanted} pods ready{', on ' if nodes else ''}{' and '.join(nodes)}"
    good = ready >= wanted > 0
    return [row(name, "cluster", OK if good else FAILED, seen, "" if good else advice)]


def of_autoscaler(kind: str, cluster: dict[str, Any] | None) -> Row:
    """The HPA, also the one that KEDA makes: bounds, and a metric that is really measured."""
    check = "autoscaler"
    if cluster is None:
        return row(check, "cluster", SKIPPED, "not applicable: t2v_runtime is docker")
    if kind == "none":
        return row(check, "cluster", SKIPPED, "t2v_autoscaler is none")
    advice = f"`kubectl -n {cluster['namespace']} describe hpa`"
    if kind == "keda":
        scaled = {
            one["type"]: one["status"]
            for found in cluster["scaledobject"]
            for one in found.get("status", {}).get("conditions", [])
        }
        if scaled.get("Ready") != "True":
            advice = f"`kubectl -n {cluster['namespace']} describe scaledobject`"
            return row(check, "cluster", FAILED, "the ScaledObject is not ready", advice)
    names = {"hpa": "wan22-hpa"}
    found = [
        one
        for one in cluster["hpa"]
        if one["spec"]["scaleTargetRef"]["name"] == "wan22-t2v-deployment"
        and one["metadata"]["name"] == names.get(kind, one["metadata"]["name"])
    ]
    if not found:
        return row(check, "cluster", FAILED, "there is none", "site.yml --tags deploy")
    spec, status = found[0]["spec"], found[0].get("status", {})
    seen = (
        f"{found[0]['metadata']['name']}: {spec['minReplicas']} to {spec['maxReplicas']}, "
        f"now {status.get('currentReplicas', 0)}"
    )
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    measured = [
        f"{value['averageUtilization']} %"
        if "averageUtilization" in value
        else str(value.get("averageValue", value.get("value", "")))
        for one in status.get("currentMetrics") or []
        for key in ("resource", "external", "pods", "object")
        if (value := (one.get(key) or {}).get("current"))
    ]
    active = conditions.get("ScalingActive", {})
    if active.get("status") != "True" or not measured:
        reason = active.get("message", "no metric has been measured")
        return row(check, "cluster", FAILED, f"{seen}; {reason}", advice)
    return row(check, "cluster", OK, f"{seen}; metric at {', '.join(measured)}")


def collect(told: dict[str, Any]) -> list[Row]:
    """All rows, in the table's order."""
    rows: list[Row] = list(told["rows"])
    for host, answer in told["hosts"].items():
        rows += of_host(host, answer)
    cluster = told["cluster"] or None
    if cluster is not None and "fault" in cluster:
        advice = "the API server on the master, and t2v_kubeconfig"
        rows.append(row("service healthy, ready", "cluster", FAILED, cluster["fault"], advice))
    elif cluster is not None:
        rows += of_pods(cluster)
        rows.append(of_autoscaler(told["autoscaler"], cluster))
    else:
        rows.append(of_autoscaler(told["autoscaler"], None))
    rows.append(told["prometheus"])

    def place(one: Row) -> int:
        return next((at for at, word in enumerate(ORDER) if one["check"].startswith(word)), -1)

    return sorted(rows, key=place)


def merged(rows: list[Row]) -> list[Row]:
    """Rows that say the same of several places, in one; a failure stands for itself."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for number, one in enumerate(rows):
        apart = str(number) if one["result"] == FAILED else ""
        found.setdefault((one["check"], one["result"], one["seen"], apart), []).append(one)
    return [
        {**same[0], "where": _places([one["where"] for one in same])} for same in found.values()
    ]


def _places(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names) if len(names) <= 2 else f"{len(names)} hosts"


def table(rows: list[Row]) -> str:
    """The table as text; below a row that failed stands where to look."""
    shown = merged(rows)
    widths = [max(len(name), *(len(one[name]) for one in shown)) for name in COLUMNS[:-1]]
    margin = " " * (sum(widths) + 2 * len(widths))

    def line(cells: list[str]) -> str:
        start = "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths, strict=False))
        room = max(40, WIDTH - len(margin))
        parts = textwrap.wrap(cells[-1], room, break_long_words=False) or [""]
        return ("\n" + margin).join([start + parts[0], *parts[1:]]).rstrip()

    lines = [line(list(COLUMNS)), line(["-" * width for width in widths] + ["----"])]
    for one in shown:
        lines.append(line([one[name] for name in COLUMNS]))
        if one["look"] and one["result"] == FAILED:
            lines.append(line(["", "", "", f"look at: {one['look']}"]))
    counts = {word: sum(one["result"] == word for one in rows) for word in (OK, FAILED, SKIPPED)}
    lines.append(", ".join(f"{count} {word}" for word, count in counts.items()))
    return "\n".join(lines)


def sentence(rows: list[Row]) -> str:
    """What failed, in one sentence; empty where nothing did."""
    failed = [f"{one['check']} ({one['where']})" for one in rows if one["result"] == FAILED]
    if not failed:
        return ""
    names = ", ".join(failed)
    return f"{len(failed)} of {len(rows)} checks failed, see the table for where to look: {names}."


def main() -> None:
    """Of standard input, to standard output."""
    told = json.load(sys.stdin)
    rows = collect(told)
    print(
        json.dumps(
            {
                "ok": not sentence(rows),
                "asked": told["asked"],
                "at": told["at"],
                "made": told["made"],
                "rows": rows,
                "table": table(rows),
                "failed": sentence(rows),
            }
        )
    )


if __name__ == "__main__":
    main()
