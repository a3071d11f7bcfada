"""The manifest of a prepared checkpoint, and whether its files are what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2v_server.checkpoint.errors import CheckpointError

# Raised when an older server could not read what a newer one prepared, or the other way round.
FORMAT = 1
MANIFEST = "manifest.json"
PIPELINE = "pipeline.json"
# Of a preparation that has not ended, beside the directory that it is to become.
_UNFINISHED = ".preparing"

_BLOCK = 8 << 20  # bytes
_HASHING_THREADS = 4  # a CPU without SHA instructions hashes more slowly than a disk reads


@dataclass(frozen=True)
class Seal:
    """What a file must be: ``size`` in bytes, and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """Where the weights came from.

    ``kind`` is directory, huggingface or modelscope; ``revision`` is a commit, or of a directory
    the SHA-256 over its files. ``files`` are those that were read, as they were there.
    """

    kind: str
    name: str
    revision: str
    files: Mapping[str, Seal]


@dataclass(frozen=True)
class Network:
    """One network of the pipeline: its class, how its weights are kept, and what it computes in."""

    class_name: str
    precision: str
    compute: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a prepared checkpoint. ``created_at``: ISO 8601, UTC."""

    profile: str
    origin: Origin
    networks: Mapping[str, Network]
    libraries: Mapping[str, str]
    files: Mapping[str, Seal]
    created_at: str

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(seal.size for seal in self.files.values())

    @property
    def digest(self) -> str:
        """Names its content."""
        return _digest({"format": FORMAT, **asdict(self)})

    def text(self) -> str:
        """As it is written: JSON, with a digest of itself against changes by hand."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps({**content, "digest": self.digest}, indent=1, sort_keys=True) + "\n"


def work_directory(target: Path) -> Path:
    """Where a preparation of ``target`` works until it is whole."""
    return target.with_name(f".{target.name}{_UNFINISHED}")


def is_prepared(directory: Path) -> bool:
    """Whether it holds a manifest, whatever the state of the rest."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a prepared checkpoint.

    Raises:
        CheckpointError: there is none, it is not whole, or it is another format's.
    """
    path = directory / MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise CheckpointError(_missing(directory)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    damaged = f"{path} is damaged: remove {directory} and prepare it again"
    try:
        content = json.loads(text)
        version = content.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(damaged) from None
    if version != FORMAT:
        raise CheckpointError(
            f"{directory} was prepared in format {version}, and this server reads format {FORMAT}: "
            "prepare it again with the server that is to load it"
        )
    try:
        manifest = _manifest(content)
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(damaged) from None
    if manifest.text() != text:
        raise CheckpointError(damaged)
    return manifest


def _missing(directory: Path) -> str:
    if directory.name.endswith(_UNFINISHED):
        return f"{directory} is half prepared: run 'model prepare' to its end"
    if work_directory(directory).is_dir():
        return (
            f"{directory} is not there yet: its preparation was interrupted or still runs in "
            f"{work_directory(directory)}: run 'model prepare' to its end"
        )
    if not directory.is_dir():
        return f"{directory} is no directory: name one that 'model prepare' wrote"
    return f"{directory} holds no {MANIFEST}: name a directory that 'model prepare' wrote"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(content: Mapping[str, Any]) -> Manifest:
    origin = content["origin"]
    return Manifest(
        profile=content["profile"],
        origin=Origin(
            origin["kind"], origin["name"], origin["revision"], seals_from(origin["files"])
        ),
        networks={name: Network(**network) for name, network in content["networks"].items()},
        libraries=dict(content["libraries"]),
        files=seals_from(content["files"]),
        created_at=content["created_at"],
    )


def seals_from(content: Mapping[str, Any]) -> dict[str, Seal]:
    """The seals of a JSON object, by path."""
    return {path: Seal(seal["size"], seal["sha256"]) for path, seal in content.items()}


def seal_of(path: Path) -> Seal:
    """Read all of a file. Raises ``OSError``."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return Seal(size, digest.hexdigest())


def verify(
    directory: Path,
    files: Mapping[str, Seal],
    *,
    quick: bool = False,
    told: Callable[[str], None] = lambda _path: None,
) -> None:
    """See that every file is what its seal says; ``quick``: by its size alone.

    ``told`` hears of each file that is.

    Raises:
        CheckpointError: names the first file, in the order of names, that is not.
    """

    def look(path: str) -> str | None:
        return _what_is_wrong(directory / path, files[path], quick)

    with ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1)) as pool:
        for path, wrong in _in_order(pool, look, sorted(files)):
            if wrong is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise CheckpointError(
                    f"{directory / path} {wrong}: remove {directory} and prepare it again"
                )
            told(path)


def _in_order(
    pool: ThreadPoolExecutor, look: Callable[[str], str | None], paths: list[str]
) -> Iterable[tuple[str, str | None]]:
    return zip(paths, pool.map(look, paths), strict=True)


def _what_is_wrong(path: Path, seal: Seal, quick: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != seal.size:
            return f"is damaged ({size} bytes instead of {seal.size})"
        if not quick and seal_of(path) != seal:
            return "is damaged (its SHA-256 is not the manifest's)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
