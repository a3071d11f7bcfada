"""What is to be prepared, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import MANIFEST, is_prepared, read_manifest, verify
from t2v_server.profiles import Profile


@dataclass(frozen=True)
class Wanted:
    """What is to be prepared. ``kind``, ``revision`` and ``token`` as of ``open_source``."""

    source: str
    profile: Profile
    output: Path
    kind: str = "auto"
    revision: str | None = None
    token: str | None = None


def is_there(wanted: Wanted) -> bool:
    """Whether what is wanted is there, whole by its files' sizes.

    Raises:
        CheckpointError: something else is there, or it is damaged.
    """
    target = wanted.output.absolute()
    if not target.parent.is_dir():
        raise CheckpointError(f"{target.parent} is no directory: make it first")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file: name a directory")
    if not is_prepared(target):
        raise CheckpointError(
            f"{target} is not empty and holds no {MANIFEST}, so it is something else's: name "
            "another directory, or empty this one"
        )
    manifest = read_manifest(target)
    if manifest.profile != wanted.profile.name:
        raise CheckpointError(
            f"{target} is prepared for the profile {manifest.profile} and not for "
            f"{wanted.profile.name}: name another directory, or remove this one"
        )
    names = {wanted.source, str(Path(wanted.source).expanduser().absolute())}
    origin = manifest.origin
    if origin.name not in names or wanted.kind not in ("auto", origin.kind):
        raise CheckpointError(
            f"{target} is prepared from {origin.name} ({origin.kind}) and not from "
            f"{wanted.source}: name another directory, or remove this one"
        )
    if wanted.revision is not None and not is_revision(wanted.revision, origin.revision):
        raise CheckpointError(
            f"{target} is prepared from revision {origin.revision} and not from "
            f"{wanted.revision}: name another directory, or remove this one"
        )
    verify(target, manifest.files, quick=True)
    return True


def is_revision(wanted: str, found: str) -> bool:
    """A branch or tag names whatever it was when this was prepared; a commit names itself."""
    is_commit = len(wanted) >= 7 and all(letter in "0123456789abcdef" for letter in wanted)
    return not is_commit or found.startswith(wanted)
