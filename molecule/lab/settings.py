"""Where a lab lives and what its scenario asks for.

A lab is known by its name. Two labs with different names can stand side by side:
their addresses are the same, but each is in a network namespace of its own.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lab.errors import LabError

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ("debian12", "py27", "vm", "py27-vm")
# Those with a kernel of their own: emulated, on a disk of their own.
VIRTUAL = frozenset({"vm", "py27-vm"})

_SETTING_KEYS = {"hosts", "kinds", "shared", "memory_mb", "programs"}


@dataclass(frozen=True)
class Share:
    """A directory of the lab that appears at ``path`` on every machine of ``group``.

    A stand-in for a network mount where the machine's kernel has no NFS.
    """

    group: str
    path: str
    name: str


@dataclass(frozen=True)
class Scenario:
    """What ``molecule/<scenario>/lab.yml`` asks for; every key may be left out.

    hosts: names to build (default: all of the inventory); kinds: host → one of KINDS;
    shared: directories common to groups; memory_mb: memory of a ``vm`` machine, in MiB;
    programs: program of this machine → the Debian package that brings it.
    """

    directory: Path
    hosts: tuple[str, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    shared: tuple[Share, ...] = ()
    memory_mb: int = 1024
    programs: dict[str, str] = field(default_factory=dict)


def load_scenario(name: str) -> Scenario:
    """Read ``molecule/<name>/lab.yml``. Raises LabError for an unknown scenario, key or kind."""
    directory = REPOSITORY / "molecule" / name
    if not (directory / "molecule.yml").is_file():
        raise LabError(
            f"there is no scenario '{name}': molecule/{name}/molecule.yml does not exist; "
            "take one of the folders under molecule/"
        )
    path = directory / "lab.yml"
    where = path.relative_to(REPOSITORY)
    try:
        raw = (yaml.safe_load(path.read_text()) if path.is_file() else None) or {}
    except yaml.YAMLError as error:
        raise LabError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or set(raw) - _SETTING_KEYS:
        unknown = ", ".join(sorted(set(raw) - _SETTING_KEYS)) if isinstance(raw, dict) else "a list"
        raise LabError(
            f"{where} has '{unknown}', which the lab does not know; it knows "
            f"{', '.join(sorted(_SETTING_KEYS))}"
        )
    kinds = dict(raw.get("kinds") or {})
    for host, kind in kinds.items():
        if kind not in KINDS:
            raise LabError(f"{where} makes {host} a '{kind}'; set one of {', '.join(KINDS)}")
    return Scenario(
        directory=directory,
        hosts=tuple(raw.get("hosts") or ()),
        kinds=kinds,
        shared=tuple(Share(**item) for item in raw.get("shared") or ()),
        memory_mb=int(raw.get("memory_mb") or 1024),
        programs=dict(raw.get("programs") or {}),
    )


@dataclass(frozen=True)
class Paths:
    """Every place on this machine that a lab of this name uses."""

    name: str

    def __post_init__(self) -> None:
        """Refuse a name that would not survive as part of file and interface names."""
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", self.name):
            raise LabError(
                f"'{self.name}' cannot be a lab's name; use small letters, digits, "
                "hyphens and underscores, at most 40, starting with a letter"
            )

    @property
    def cache(self) -> Path:
        """Base images; survives ``down``."""
        return Path(os.environ.get("T2V_LAB_CACHE") or "/var/cache/t2v-lab").absolute()

    @property
    def lock(self) -> Path:
        """Held by the run that changes the lab."""
        return Path("/run/t2v-lab") / f"{self.name}.lock"

    @property
    def state(self) -> Path:
        """The machines' disks, the lab's keys and the controller's state; removed by ``down``."""
        top = os.environ.get("T2V_LAB_STATE") or "/var/lib/t2v-lab"
        return Path(top).absolute() / self.name

    @property
    def run(self) -> Path:
        """The network namespace's handle and sockets; removed by ``down``."""
        return Path("/run/t2v-lab") / self.name

    @property
    def netns(self) -> Path:
        """Handle of the lab's network namespace."""
        return self.run / "netns"

    @property
    def tag(self) -> str:
        """Eight characters, for names that the kernel keeps short."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:8]

    @property
    def ssh(self) -> Path:
        """The lab's own keys."""
        return self.state / "ssh"

    @property
    def known_hosts(self) -> Path:
        """The machines' host keys, written before anything connects to them."""
        return self.ssh / "known_hosts"

    @property
    def private_key(self) -> Path:
        """What root of every machine lets in."""
        return self.ssh / "id_ed25519"

    def machine(self, host: str) -> Path:
        """Files of one machine."""
        return self.state / "machines" / host
