"""Run it: settings as JSON on standard input, the report into a folder.

Ends with 0 when all objectives were met, with 3 when one was missed, and says where the report is.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2v_loadtest import ab, prom, report
from t2v_loadtest.settings import Settings

MISSED = 3


def run_mix(told: dict[str, Any]) -> dict[str, Any]:
    """The mix, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "t2v_loadtest.mix"],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the mix did not run: {done.stderr[-2000:]}")
    records = json.loads(done.stdout)
    assert isinstance(records, dict)
    return records


def engines_of(settings: Settings) -> int:
    """How many engines are ready, as Prometheus has it; else what the role says."""
    if not settings.prometheus:
        return settings.engines
    try:
        expr = f"sum(t2v_engines_ready{{{prom.JOB}}})"
        found = prom.Prometheus(settings).value(expr)
        return int(float(found[0]["value"][1])) if found else settings.engines
    except prom.PrometheusError:
        return settings.engines


def main() -> int:
    """Both parts, one after the other, then what was recorded."""
    told, folder = json.load(sys.stdin), Path(sys.argv[1])
    told["engines"] = engines_of(Settings.read(told))
    settings = Settings.read(told)
    loads = [os.getloadavg()[0]]
    began = time.time()
    result: dict[str, Any] = {"ab": None, "mix": None}
    if settings.ab_requests > 0:
        result["ab"] = asdict(ab.run(settings)) | {
            "requested": settings.ab_requests,
            "clients": settings.ab_clients,
        }
        loads.append(os.getloadavg()[0])
    if settings.jobs > 0:
        result["mix"] = run_mix(told) | {"wanted": settings.jobs}
        loads.append(os.getloadavg()[0])
    # So that the last scrape has seen the end.
    if settings.prometheus:
        time.sleep(min(20.0, prom.pause(settings)))
    ended = time.time()
    result["environment"] = {
        "engines": str(settings.engines),
        "asked from": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load of the asking machine": ", ".join(f"{one:.1f}" for one in loads)
        + " (average of a minute: before, and after each part)",
    }
    hosts = told["hosts"]
    recorded = prom.record(settings, began, ended, hosts)
    numbers = report.write(folder, settings, result, recorded, began, ended)
    (folder / "report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps({"met": numbers["met"], "missed": numbers["missed"], "folder": str(folder)}))
    return 0 if numbers["met"] else MISSED


if __name__ == "__main__":
    sys.exit(main())
