"""``make bench-site``: how long site.yml takes, in one go and on one lab.

First run, a run that changes nothing, and such a run with Ansible's defaults (no ansible.cfg but
the place of the roles); for the documented hosts, and with more workers beside them. Wall clock,
and the processor time of the controller and of the hosts: they share one machine here.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import cgroups, lab
from lab.errors import LabError
from lab.hosts import Site, read_site
from lab.settings import REPOSITORY, Paths, Scenario, load_scenario

# A machine of whose processors others take more than this share is no place to measure on.
_BUSY = 0.2
_SLOWEST = 12
_FIRST_ADDRESS = 100


@dataclass
class Run:
    """One run of site.yml. Seconds; ``others``: processor time of what is not this lab's."""

    name: str
    hosts: int
    seconds: float
    controller: float
    machines: float
    others: float
    changed: int
    tasks: list[dict[str, Any]]


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _check_quiet(anyway: bool) -> float:
    """Share of the processors that others use now. Raises LabError where it is too much."""
    before = _busy_seconds()
    time.sleep(5)
    share = (_busy_seconds() - before) / 5 / (os.cpu_count() or 1)
    if share > _BUSY:
        text = f"others use {share:.0%} of this machine's processors: the figures would be wrong"
        if not anyway:
            raise LabError(f"{text}; end what else runs, or pass ARGS=--busy to measure anyway")
        print(f"WARNING: {text}", flush=True)
    return share


def _with_workers(place: Path, more: int, site: Site) -> Path:
    """A copy of the inventory with ``more`` workers beside those it has."""
    copy = place / "inventory"
    shutil.copytree(REPOSITORY / "inventory", copy)
    workers = [host.name for host in site.hosts if "workers" in host.groups]
    taken = {host.address for host in site.hosts}
    free = [
        str(address)
        for address in list(site.subnet.hosts())[_FIRST_ADDRESS:]
        if str(address) not in taken
    ]
    added = {
        f"worker{len(workers) + number}": {"ansible_host": free[number]}
        for number in range(1, more + 1)
    }
    groups = {"all": {"children": {"workers": {"hosts": added}}}}
    (copy / "more.yml").write_text(yaml.safe_dump(groups))
    return copy


_HEADING = re.compile(r"^(PLAY|TASK|RUNNING HANDLER|PLAY RECAP) (?:\[(.*)\] )?\*+$")
_RESULT = re.compile(r"^(?:ok|changed|skipping|failed|fatal|included)\b")


class _Watch:
    """What a run prints, by which its plays and tasks are timed."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.output = ""
        self._play = ""
        self._since = 0.0

    def line(self, text: str) -> None:
        """Take the next line at the moment when it is printed."""
        self.output += text
        if found := _HEADING.match(text):
            now = time.monotonic()
            if self.tasks and "seconds" not in self.tasks[-1]:
                self.tasks[-1]["seconds"] = round(now - self._since, 3)
            self._since = now
            if found[1] == "PLAY":
                self._play = found[2]
            elif found[2]:
                self.tasks.append({"play": self._play, "task": found[2], "results": 0})
        elif self.tasks and _RESULT.match(text):
            self.tasks[-1]["results"] += 1


class Bench:
    """The lab, and the runs that were made on it."""

    def __init__(self, paths: Paths, scenario: Scenario, place: Path) -> None:
        self._paths = paths
        self._scenario = scenario
        self._place = place
        self.runs: list[Run] = []

    def create(self, inventory: Path) -> Site:
        """Have all hosts of the inventory stand."""
        site = read_site(inventory, self._scenario)
        lab.create(self._paths, self._scenario, site)
        return site

    def run(self, name: str, inventory: Path, site: Site, *, defaults: bool = False) -> Run:
        """Run site.yml. Raises LabError where it fails."""
        print(f"==> {name}: site.yml on {len(site.hosts)} hosts", flush=True)
        # Else the heading of a task that is skipped everywhere would be missing.
        more = {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"}
        if defaults:
            configuration = self._place / "defaults.cfg"
            configuration.write_text(f"[defaults]\nroles_path = {REPOSITORY / 'roles'}\n")
            more["ANSIBLE_CONFIG"] = str(configuration)
        playbook = lab.ansible_playbook(self._paths, self._scenario, site, inventory)
        command = [*playbook, "site.yml"]
        started, before, all_before = time.monotonic(), self._used(site), _busy_seconds()
        process = lab.start_tracked(self._paths, command, output=subprocess.PIPE, more=more)
        watch = _Watch()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                watch.line(line)
            process.wait()
        finally:
            seconds, after = time.monotonic() - started, self._used(site)
            others = _busy_seconds() - all_before - sum(after) + sum(before)
            cgroups.kill(self._paths.name, "run")
        if process.returncode != 0:
            print(watch.output[-6000:])
            raise LabError(f"{name}: site.yml failed (status {process.returncode})")
        done = Run(
            name=name,
            hosts=len(site.hosts),
            seconds=round(seconds, 1),
            controller=round(after[0] - before[0], 1),
            machines=round(after[1] - before[1], 1),
            others=round(max(others, 0), 1),
            changed=sum(int(number) for number in re.findall(r"changed=(\d+)", watch.output)),
            tasks=watch.tasks,
        )
        self.runs.append(done)
        print(f"    {done.seconds} s, changed={done.changed}", flush=True)
        return done

    def _used(self, site: Site) -> tuple[float, float]:
        """Processor time of the controller and of the hosts."""
        name = self._paths.name
        groups = [f"machine-{host.name}" for host in site.hosts]
        machines = sum(cgroups.cpu_seconds(name, group) for group in groups)
        return cgroups.cpu_seconds(name, "run"), machines


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _sums(tasks: list[dict[str, Any]], key: str) -> list[tuple[str, float, int]]:
    """(name, seconds, results) of each play or task, the slowest first."""
    found: dict[str, tuple[float, int]] = {}
    for task in tasks:
        seconds, results = found.get(task[key], (0.0, 0))
        found[task[key]] = (seconds + task["seconds"], results + task["results"])
    return sorted(((name, *rest) for name, rest in found.items()), key=lambda row: -row[1])


def report(runs: list[Run]) -> str:
    """What a person reads."""
    head = ("run", "hosts", "wall s", "controller cpu s", "hosts cpu s", "others cpu s", "changed")
    lines = [
        _table(
            [head]
            + [
                (
                    run.name,
                    str(run.hosts),
                    f"{run.seconds:.1f}",
                    f"{run.controller:.1f}",
                    f"{run.machines:.1f}",
                    f"{run.others:.1f}",
                    str(run.changed),
                )
                for run in runs
            ]
        )
    ]
    again = {run.hosts: run for run in runs if run.name == "no change"}
    plain = {run.hosts: run for run in runs if run.name == "no change, Ansible's defaults"}
    lines.append("")
    for hosts in sorted(set(again) & set(plain)):
        wall = plain[hosts].seconds / again[hosts].seconds
        lines.append(f"{hosts} hosts: {wall:.1f} times faster than with Ansible's defaults")
    if len(again) > 1:
        few, many = min(again), max(again)
        wall = again[many].seconds / again[few].seconds
        lines.append(f"{many} hosts take {wall:.2f} times as long as {few}")
    for title, run in (("First run", runs[0]), ("No change", runs[1])):
        for key in ("play", "task"):
            rows = [
                (name, f"{seconds:.1f} s", f"{results} results")
                for name, seconds, results in _sums(run.tasks, key)[:_SLOWEST]
            ]
            lines += ["", f"{title}, slowest {key}s:", _table(rows)]
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 1 where the machine is busy or a run fails."""
    parser = argparse.ArgumentParser(prog="bench_site", description=__doc__)
    parser.add_argument("--workers", type=int, default=20, help="workers more, 0: none")
    parser.add_argument("--name", default="bench-site", help="the lab's name")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    parser.add_argument("--keep", action="store_true", help="leave the lab standing")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    paths, scenario = Paths(options.name), load_scenario("site")
    runs: list[Run] = []
    try:
        busy = _check_quiet(options.busy)
        with lab.locked(paths), tempfile.TemporaryDirectory(prefix="bench-site-") as temporary:
            place = Path(temporary)
            bench = Bench(paths, scenario, place)
            runs = bench.runs
            try:
                inventory = REPOSITORY / "inventory"
                site = bench.create(inventory)
                bench.run("first run", inventory, site)
                bench.run("no change", inventory, site)
                bench.run("no change, Ansible's defaults", inventory, site, defaults=True)
                if options.workers:
                    inventory = _with_workers(place, options.workers, site)
                    site = bench.create(inventory)
                    bench.run(f"{options.workers} workers more", inventory, site)
                    bench.run("no change", inventory, site)
                    bench.run("no change, Ansible's defaults", inventory, site, defaults=True)
            finally:
                if not options.keep:
                    lab.destroy(paths)
    except (LabError, KeyboardInterrupt) as error:
        if len(runs) > 1:
            print("", report(runs), "", sep="\n")
        print(f"ERROR: {error or 'interrupted'}", file=sys.stderr)
        return 1
    print("", report(runs), sep="\n")
    if options.json:
        figures = {
            "processors": os.cpu_count(),
            "busy": round(busy, 2),
            "runs": [asdict(run) for run in runs],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1))
        print(f"\nFigures: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
