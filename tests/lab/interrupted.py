"""site.yml killed at random tasks, again and again: the hosts end as if nothing had happened.

``make interrupted SEED=1`` with the name of a lab that does not stand: it is built, its first run
of site.yml is killed (all of the controller's processes, at once) at a task that the seed names,
and so is the next, and the next. Then one run goes to its end, one more must change nothing, and
every host is compared file by file with one of a lab that was never interrupted.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from host_files import EXCEPTIONS, Files, differences, read
from lab import lab
from lab.errors import LabError
from lab.hosts import Site, read_site
from lab.settings import REPOSITORY, Paths, Scenario, load_scenario
from site_runs import LAST_TASK, finish, kill_at, unchanged


@dataclass
class Build:
    """One lab, from its creation to the comparison."""

    seed: int
    kills: list[str] = field(default_factory=list)
    changed_nothing: bool = False
    different: list[tuple[str, str, str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def converged(self) -> bool:
        """Whether it ended like one that was never interrupted."""
        return self.changed_nothing and not self.different


@dataclass
class Controller:
    """Runs site.yml on one lab."""

    paths: Paths
    scenario: Scenario
    site: Site

    def _command(self) -> list[str]:
        return [*lab.ansible_playbook(self.paths, self.scenario, self.site), "site.yml"]

    def create(self) -> None:
        """Bare machines, from nothing."""
        with lab.locked(self.paths):
            lab.destroy(self.paths)
        with lab.locked(self.paths):
            lab.create(self.paths, self.scenario, self.site)

    def destroy(self) -> None:
        """Leave nothing of it."""
        with lab.locked(self.paths):
            lab.destroy(self.paths)

    def kill_at(self, number: int, after: float) -> str:
        """As ``site_runs.kill_at``."""
        return kill_at(self.paths, self._command(), number, after)

    def finish(self) -> str:
        """As ``site_runs.finish``."""
        return finish(self.paths, self._command(), 2400)

    def files(self) -> dict[str, Files]:
        """What is on every host."""
        return {host.name: read(self.paths, host.name) for host in self.site.hosts}


def say(text: str) -> None:
    """A line that is seen at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def interrupt(
    controller: Controller, seed: int, kills: int, wanted: Callable[[], dict[str, Files]]
) -> Build:
    """Build a lab whose site.yml is killed so often."""
    rng = random.Random(seed)
    build = Build(seed)
    began = time.monotonic()
    controller.create()
    while len(build.kills) < kills:
        where = controller.kill_at(rng.randint(1, LAST_TASK), rng.uniform(0, 2))
        if where:
            build.kills.append(where)
            say(f"seed {seed}, {len(build.kills)} of {kills}: killed at {where}")
        else:
            say(f"seed {seed}: it came to its end before it could be killed")
    controller.finish()
    say(f"seed {seed}: a run to the end")
    try:
        unchanged(controller.finish())
        build.changed_nothing = True
    except AssertionError as error:
        say(f"    BROKEN: the next run has not left all as it was: {str(error)[-3000:]}")
    build.different = differences(wanted(), controller.files())
    for host, path, should, found in build.different:
        say(f"    BROKEN: {host}:{path}: {found or 'is not there'}, not {should or 'absent'}")
    build.seconds = time.monotonic() - began
    say(
        f"seed {seed}: {kills} kills in {build.seconds / 60:.0f} minutes, then "
        f"{'changed=0' if build.changed_nothing else 'CHANGES'}, "
        f"{len(build.different)} files differ"
    )
    return build


def main() -> int:
    """The exit status is 0 when every build ended like one that was never interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--builds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--reference", type=Path, help="what a whole lab has; none: it is built first"
    )
    parser.add_argument("--of", metavar="LAB", help="write --reference from this lab, and end")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(REPOSITORY)
    scenario = load_scenario("site")
    site = read_site(REPOSITORY / "inventory", scenario)
    paths = Paths(options.of or os.environ.get("T2V_LAB") or "interrupted")
    controller = Controller(paths, scenario, site)
    if options.of:
        options.reference.write_text(json.dumps(controller.files()))
        return 0
    if paths.state.exists():
        print(f"ERROR: lab '{paths.name}' stands; name another by T2V_LAB", file=sys.stderr)
        return 1
    whole: dict[str, Files] = {}
    try:
        if not options.reference:
            controller.create()
            controller.finish()
            whole = controller.files()
            say("the lab that was not interrupted is built")

        def wanted() -> dict[str, Files]:
            return json.loads(options.reference.read_text()) if options.reference else whole

        builds = [
            interrupt(controller, options.seed + number, options.kills, wanted)
            for number in range(options.builds)
        ]
    except (AssertionError, LabError) as error:
        print(f"BROKEN: {error}", file=sys.stderr)
        return 1
    finally:
        controller.destroy()
    count = sum(len(files) for files in wanted().values())
    say(
        f"{len(builds)} labs, {sum(len(one.kills) for one in builds)} kills, "
        f"{sum(one.converged for one in builds)} converged; {count} paths of "
        f"{len(site.hosts)} hosts compared, {len(EXCEPTIONS)} kinds of exceptions"
    )
    return 0 if all(one.converged for one in builds) else 1


if __name__ == "__main__":
    sys.exit(main())
