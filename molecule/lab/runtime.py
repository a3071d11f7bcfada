"""Which of the site's runtimes a lab stands with: chosen by the first `up`, kept until `down`."""

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from lab.errors import LabError
from lab.settings import Paths, Scenario
from lab.steps import say

RUNTIMES = ("docker", "kubernetes")


@dataclass(frozen=True)
class Runtime:
    """A runtime, and for kubernetes the absolute path of the bundle that the cluster is made of."""

    name: str
    bundle: str = ""

    @property
    def directory(self) -> str:
        """Folder in the scenario's with what this runtime adds: ``vars.yml``, ``prepare.yml``."""
        return "" if self.name == "docker" else self.name


def load(paths: Paths) -> Runtime | None:
    """What the lab stands with; None for one that was never brought up."""
    written = _file(paths)
    return Runtime(**yaml.safe_load(written.read_text())) if written.is_file() else None


def choose(paths: Paths, name: str | None, bundle: str | None) -> Runtime:
    """What the lab stands with, or is to stand with; nothing is written.

    Raises LabError for a bundle that is none, and where the lab stands with something else:
    the traces of the one runtime would be in the way of the other.
    """
    present = load(paths)
    if name is None:
        name = present.name if present else "docker"
    if name not in RUNTIMES:
        raise LabError(f"RUNTIME is '{name}', which is unknown; take one of {', '.join(RUNTIMES)}")
    if present and present.name != name:
        raise LabError(
            f"lab '{paths.name}' stands with {present.name}, and {name} is asked for; "
            "`make down` first"
        )
    if name == "docker":
        if bundle:
            say("    BUNDLE is for a cluster: it is used with RUNTIME=kubernetes, and not here")
        return Runtime(name)
    place = str(Path(bundle).absolute()) if bundle else present.bundle if present else ""
    if not place:
        raise LabError(
            "RUNTIME=kubernetes needs BUNDLE=<directory> with what the cluster is made of: "
            "docs/bundle.md says how to make one"
        )
    if not Path(place, "index.yml").is_file():
        raise LabError(f"BUNDLE is {place}, without index.yml: docs/bundle.md says what it holds")
    return Runtime(name, place)


def keep(paths: Paths, runtime: Runtime) -> None:
    """Remember it for the commands that come later."""
    _file(paths).write_text(yaml.safe_dump(asdict(runtime)))


def files(scenario: Scenario, runtime: Runtime | None, name: str) -> list[Path]:
    """The files of this name: the scenario's own, then the runtime's; those that exist."""
    places = [scenario.directory]
    if runtime and runtime.directory:
        places.append(scenario.directory / runtime.directory)
    return [place / name for place in places if (place / name).is_file()]


def _file(paths: Paths) -> Path:
    return paths.state / "runtime.yml"
