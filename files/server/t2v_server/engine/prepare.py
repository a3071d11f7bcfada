"""``model prepare``: published weights to a checkpoint that a server loads straight to its device.

One file of the source after the other is read, converted and written, a piece of a tensor at a
time. What is finished is noted in a journal, so an interrupted run goes on after the last file.
The whole is named last.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import torch

from t2v_server import __version__
from t2v_server.checkpoint import lock
from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    PIPELINE,
    Manifest,
    Network,
    Origin,
    Seal,
    read_manifest,
    seal_of,
    seals_from,
    work_directory,
)
from t2v_server.checkpoint.source import Source, open_source
from t2v_server.checkpoint.tensors import Header, ShardWriter, Tensor, read_header
from t2v_server.checkpoint.wanted import Wanted, is_revision, is_there
from t2v_server.engine.networks import (
    CLASSES,
    DTYPES,
    NAMES,
    Kept,
    Target,
    aliases_of,
    empty_network,
    precision_of,
    targets_of,
)
from t2v_server.engine.quantised import quantise_int8, quantise_nf4
from t2v_server.storage.durable import fsync_directory

JOURNAL = "journal.json"
_DOWNLOADS = ".source"
_PIPELINE_CLASSES = ("WanPipeline", "WanImageToVideoPipeline")
_FOLDERS = ("tokenizer", "scheduler")
_PIECE = 4 << 20  # elements: 16 MiB of float32, and a few times that while it is quantised
_MARGIN = 64 << 20  # bytes of the disk that are left alone
_LIBRARIES = (
    "torch", "diffusers", "transformers", "safetensors", "bitsandbytes", "huggingface-hub",
)  # fmt: skip
_TORCH = {name: dtype for dtype, name in NAMES.items()}

Told = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """``changed``: false where it was there before."""

    directory: Path
    manifest: Manifest
    changed: bool


@dataclass(frozen=True)
class _Shard:
    """One file of weights: where it comes from, and what is to be found in it."""

    network: str
    path: str


def prepare(wanted: Wanted, told: Told = lambda _line: None) -> Prepared:
    """Prepare a checkpoint, go on with one that was interrupted, or find that it is there.

    ``told`` hears a line about each step.

    Raises:
        CheckpointError: it cannot be prepared, or something else is there.
        OSError: the disk failed or is full; the next run goes on from there.
    """
    target = wanted.output.absolute()
    if is_there(wanted):
        return Prepared(target, read_manifest(target), changed=False)
    with lock.held(target):
        if is_there(wanted):  # another run finished it while this one began
            return Prepared(target, read_manifest(target), changed=False)
        return Prepared(target, _Preparation(wanted, target, told).run(), changed=True)


class _Preparation:
    """One run, under the lock."""

    def __init__(self, wanted: Wanted, target: Path, told: Told) -> None:
        self._wanted = wanted
        self._target = target
        self._work = work_directory(target)
        self._told = told
        self._identity: dict[str, Any] = {}
        self._files = dict[str, Seal]()  # finished, by path
        self._read = dict[str, Seal]()  # of the source
        self._networks = dict[str, Network]()

    def run(self) -> Manifest:
        journal = self._enter_work_directory()
        source = self._open_source(journal)
        self._identity = self._identify(source)
        if journal is not None:
            self._go_on(journal)
        self._note()
        settings = self._copy_small_files(source)
        shards, targets = self._plan(source)
        self._check_space(source, shards, targets)
        for number, shard in enumerate(shards, 1):
            self._convert(source, shard, targets[shard.network], f"[{number}/{len(shards)}]")
        self._check_what_was_written(targets)
        self._write_text(PIPELINE, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        return self._name(source)

    # -- beginning, and beginning again

    def _enter_work_directory(self) -> dict[str, Any] | None:
        """What an interrupted run noted, if there was one."""
        if not self._work.exists():
            self._work.mkdir()
            fsync_directory(self._work.parent)
            return None
        try:
            journal = json.loads((self._work / JOURNAL).read_text())
            identity = journal["identity"]
            named = (identity["profile"], identity["source"], identity["format"])
        except FileNotFoundError:
            if any(path.name != JOURNAL + ".part" for path in self._work.iterdir()):
                raise CheckpointError(
                    f"{self._work} holds something that is no preparation: move it away"
                ) from None
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._work / JOURNAL} is damaged ({error}): remove {self._work}"
            ) from error
        source = str(Path(self._wanted.source).expanduser().absolute())
        if named[0] != self._wanted.profile.name or named[1] not in (self._wanted.source, source):
            raise CheckpointError(
                f"{self._work} is an interrupted preparation from {named[1]} for {named[0]}: "
                "finish that one with the same arguments, or remove it"
            )
        if named[2] != FORMAT:
            raise CheckpointError(
                f"{self._work} was begun in format {named[2]}, and this is format {FORMAT}: "
                "remove it"
            )
        return dict(journal)

    def _open_source(self, journal: Mapping[str, Any] | None) -> Source:
        revision = self._wanted.revision
        if journal is not None and journal["identity"]["kind"] == "huggingface":
            pinned = journal["identity"]["revision"]
            if revision is not None and not is_revision(revision, pinned):
                raise CheckpointError(
                    f"{self._work} is an interrupted preparation of revision {pinned}, not of "
                    f"{revision}: finish that one, or remove it"
                )
            revision = pinned  # whatever the branch is by now
        downloads = self._work / _DOWNLOADS
        source = open_source(
            self._wanted.source, self._wanted.kind, revision, downloads, self._wanted.token,
            self._told,
        )  # fmt: skip
        self._told(f"{source.name} ({source.kind}) at {source.revision}")
        return source

    def _identify(self, source: Source) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "source": source.name,
            "kind": source.kind,
            "revision": source.revision,
            "profile": self._wanted.profile.name,
            "precisions": asdict(self._wanted.profile.precisions),
            "server": __version__,
        }

    def _go_on(self, journal: Mapping[str, Any]) -> None:
        """Take over what was finished, each file proven by its hash."""
        if journal["identity"] != self._identity:
            changed = [
                name
                for name, value in self._identity.items()
                if journal["identity"].get(name) != value
            ]
            raise CheckpointError(
                f"{self._work} was begun with another {changed[0]} "
                f"({journal['identity'].get(changed[0])}, now {self._identity[changed[0]]}): "
                "remove it and begin again"
            )
        self._read = seals_from(journal["read"])
        for path, seal in seals_from(journal["files"]).items():
            place = self._work / path
            if place.is_file() and place.stat().st_size == seal.size and seal_of(place) == seal:
                self._files[path] = seal
                self._told(f"{path}: finished before")
            else:
                self._told(f"{path}: damaged since, made again")

    def _note(self) -> None:
        content = {
            "identity": self._identity,
            "files": {path: asdict(seal) for path, seal in self._files.items()},
            "read": {path: asdict(seal) for path, seal in self._read.items()},
        }
        _write(self._work / JOURNAL, json.dumps(content).encode())

    # -- what is small

    def _copy_small_files(self, source: Source) -> dict[str, Any]:
        """Configurations, tokenizer and scheduler; returns what the pipeline itself needs."""
        index = json.loads(self._text(source, "model_index.json"))
        found = index.get("_class_name")
        if found not in _PIPELINE_CLASSES:
            raise CheckpointError(
                f"{source.name} is a {found}, and this server runs Wan2.2-TI2V: name a model such "
                "as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
            )
        for folder in _FOLDERS:
            paths = [path for path in source.files if path.startswith(f"{folder}/")]
            if not paths:
                raise CheckpointError(f"{source.name} has no {folder}: it is no whole model")
            for path in paths:
                self._copy(source, path)
        for name in CLASSES:
            self._copy(source, f"{name}/config.json")
        return {"expand_timesteps": bool(index.get("expand_timesteps", False))}

    def _text(self, source: Source, path: str) -> str:
        if path not in source.files:
            raise CheckpointError(f"{source.name} has no {path}: it is no model for diffusers")
        with source.open(path) as (place, seal):
            self._read[path] = seal
            return place.read_text()

    def _copy(self, source: Source, path: str) -> None:
        if path in self._files:
            return
        if path not in source.files:
            raise CheckpointError(f"{source.name} has no {path}: it is no model for diffusers")
        with source.open(path) as (place, seal):
            self._read[path] = seal
            content = place.read_bytes()
        self._write_bytes(path, content)

    def _write_text(self, path: str, text: str) -> None:
        self._write_bytes(path, text.encode())

    def _write_bytes(self, path: str, content: bytes) -> None:
        place = self._work / path
        place.parent.mkdir(exist_ok=True)
        _write(place, content)
        self._files[path] = seal_of(place)
        self._note()

    # -- what is large

    def _plan(self, source: Source) -> tuple[list[_Shard], dict[str, dict[str, Target]]]:
        """Which files there are, and what becomes of each weight that a network needs."""
        shards, targets = list[_Shard](), dict[str, dict[str, Target]]()
        for name in CLASSES:
            paths, listed = self._paths_of_weights(source, name)
            shards += [_Shard(name, path) for path in paths]
            network = empty_network(name, self._work / name)
            precision, compute = precision_of(name, self._wanted.profile.precisions)
            targets[name] = targets_of(name, network, precision, compute)
            aliases = aliases_of(network)
            for alias, weight in aliases.items():
                targets[name].setdefault(alias, targets[name][weight])
            kept = {target.name: target for target in targets[name].values()}.values()
            if listed is not None:  # known before anything is downloaded
                self._check_complete(name, targets[name], listed)
            self._networks[name] = Network(
                class_name=CLASSES[name].__name__,
                precision=precision.value,
                compute=next(one.value for one, dtype in DTYPES.items() if dtype is compute),
                parameters=sum(parameter.numel() for parameter in network.parameters()),
                bytes=sum(tensor.bytes for target in kept for tensor in target.tensors),
            )
        return shards, targets

    def _check_space(
        self, source: Source, shards: list[_Shard], targets: Mapping[str, Mapping[str, Target]]
    ) -> None:
        whole = sum(network.bytes for network in self._networks.values())
        finished = sum(self._files[s.path].size for s in shards if s.path in self._files)
        needed = max(0, whole - finished) + _MARGIN
        if source.remote:
            left = [source.files[s.path].size for s in shards if s.path not in self._files]
            needed += max(left, default=0)
        free = shutil.disk_usage(self._work).free
        # Half of a file may be there already: of this preparation, overwritten by it.
        free += sum(path.stat().st_size for path in self._work.glob("*/*.part"))
        if free < needed:
            raise CheckpointError(
                f"{self._work.parent} has {free / 1e9:.2f} GB free and preparing takes "
                f"{needed / 1e9:.2f} GB: make room, or name a directory on another disk"
            )
        self._told(f"{whole / 1e9:.2f} GB will be written, {free / 1e9:.2f} GB are free")

    def _convert(
        self, source: Source, shard: _Shard, targets: Mapping[str, Target], counter: str
    ) -> None:
        if shard.path in self._files:
            return
        started = time.monotonic()
        self._told(f"{counter} {shard.path}: {source.files[shard.path].size / 1e9:.3f} GB")
        with source.open(shard.path) as (place, seal):
            header = read_header(place)
            wanted = self._wanted_of(header, targets, place)
            part = self._work / f"{shard.path}.part"
            part.parent.mkdir(exist_ok=True)
            written = [tensor for _, target in wanted for tensor in target.tensors]
            with ShardWriter(part, written) as writer, place.open("rb", buffering=0) as stream:
                for name, target in wanted:
                    _convert_tensor(
                        stream, header.tensors[name], header.offsets[name], target, writer, place
                    )
                finished = writer.finish()
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            part.replace(self._work / shard.path)
            fsync_directory(part.parent)
        self._read[shard.path] = seal
        self._files[shard.path] = finished
        self._note()
        seconds = time.monotonic() - started
        self._told(f"{counter} {shard.path}: {finished.size / 1e9:.3f} GB in {seconds:.1f} s")

    def _wanted_of(
        self, header: Header, targets: Mapping[str, Target], place: Path
    ) -> list[tuple[str, Target]]:
        """The tensors of a file that the network needs, each once, in the order of the file."""
        taken, wanted = set[str](), list[tuple[str, Target]]()
        for name in sorted(header.tensors, key=lambda name: header.offsets[name]):
            target = targets.get(name)
            if target is None or target.name in taken:
                continue
            found = header.tensors[name]
            if found.shape != target.shape:
                raise CheckpointError(
                    f"{place}: {name} is {list(found.shape)}, and config.json makes it "
                    f"{list(target.shape)}: the files are not of one model"
                )
            if found.dtype not in ("F32", "BF16", "F16", "F64"):
                raise CheckpointError(
                    f"{place}: {name} is {found.dtype}, so it is quantised already: name the "
                    "model as it was published"
                )
            taken.add(target.name)
            wanted.append((name, target))
        return wanted

    def _paths_of_weights(self, source: Source, name: str) -> tuple[list[str], set[str] | None]:
        """The files of a network's weights, and the weights where an index names them."""
        found = [
            path
            for path in source.files
            if path.startswith(f"{name}/") and ".fp16." not in path and ".bf16." not in path
        ]
        listed: set[str] | None = None
        for index in (path for path in found if path.endswith(".safetensors.index.json")):
            try:
                weights = json.loads(self._text(source, index))["weight_map"]
                found = [f"{name}/{file}" for file in weights.values()]
                listed = set(weights)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} of {source.name} is no index: {error}") from error
            break
        paths = sorted({path for path in found if path.endswith(".safetensors")})
        if not paths:
            raise CheckpointError(
                f"{source.name} has no {name}/*.safetensors: weights in another format are not "
                "read, as they may run code"
            )
        for path in paths:
            if path not in source.files:
                raise CheckpointError(f"{source.name} has no {path}: it is no whole model")
        return paths, listed

    def _check_complete(self, name: str, targets: Mapping[str, Target], found: set[str]) -> None:
        """Refuse a source without one of a network's weights, under any of its names."""
        there = {targets[weight].name for weight in found if weight in targets}
        for target in targets.values():
            if target.name not in there:
                raise CheckpointError(
                    f"{self._wanted.source} has no {target.name} for its {name}: it is no whole "
                    "model"
                )

    def _check_what_was_written(self, targets: Mapping[str, Mapping[str, Target]]) -> None:
        for name in CLASSES:
            written = set[str]()
            for path in self._files:
                if path.startswith(f"{name}/") and path.endswith(".safetensors"):
                    written |= set(read_header(self._work / path).tensors)
            found = {
                weight
                for weight, target in targets[name].items()
                if target.tensors[0].name in written
            }
            self._check_complete(name, targets[name], found)

    # -- ending

    def _name(self, source: Source) -> Manifest:
        manifest = Manifest(
            profile=self._wanted.profile.name,
            origin=Origin(source.kind, source.name, source.revision, self._read),
            networks=self._networks,
            libraries=_libraries(),
            files=self._files,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        shutil.rmtree(self._work / _DOWNLOADS, ignore_errors=True)
        # What a killed run left half written.
        for path in self._work.glob("*/*.part"):
            path.unlink()
        _write(self._work / MANIFEST, manifest.text().encode())
        for directory in (*self._work.glob("*/"), self._work):
            fsync_directory(directory)
        with suppress(FileNotFoundError):
            self._target.rmdir()  # an empty one is in nobody's way
        self._work.rename(self._target)
        fsync_directory(self._target.parent)
        # Last: without it, what is killed just before the renaming would be nobody's.
        (self._target / JOURNAL).unlink()
        return manifest


def _libraries() -> dict[str, str]:
    found = {"t2v-server": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _convert_tensor(
    stream: BinaryIO, found: Tensor, offset: int, target: Target, writer: ShardWriter, place: Path
) -> None:
    if target.kept is Kept.CAST:
        for piece in _pieces(stream, found, offset, target.grain):
            converted = piece.to(target.dtype)
            if not torch.isfinite(converted).all():
                raise _not_finite(piece, found, place, target)
            writer.write(_bytes(converted))
        return
    scales = list[torch.Tensor]()
    for piece in _pieces(stream, found, offset, target.grain):
        values = piece.to(torch.float32)
        if target.kept is Kept.INT8:
            kept, scale = quantise_int8(values.view(-1, target.shape[1]))
        else:
            kept, scale = quantise_nf4(values)
        if not torch.isfinite(scale).all():
            raise _not_finite(piece, found, place, target)
        writer.write(_bytes(kept))
        scales.append(scale)
    writer.write(_bytes(torch.cat(scales)))


def _not_finite(piece: torch.Tensor, found: Tensor, place: Path, target: Target) -> CheckpointError:
    if torch.isfinite(piece).all():
        return CheckpointError(
            f"{place}: {found.name} has values beyond {NAMES[target.dtype]}: prepare it for a "
            "profile with bf16"
        )
    return CheckpointError(f"{place}: {found.name} holds what is no number: the file is damaged")


def _pieces(stream: BinaryIO, tensor: Tensor, offset: int, grain: int) -> Iterator[torch.Tensor]:
    """The tensor, flat, in pieces of a multiple of ``grain`` elements."""
    dtype = _TORCH[tensor.dtype]
    most = grain * max(1, _PIECE // grain)
    stream.seek(offset)
    left = tensor.elements
    while left:
        count = min(left, most)
        content = bytearray(count * dtype.itemsize)
        view, have = memoryview(content), 0
        while have < len(content):
            got = stream.readinto(view[have:])  # type: ignore[attr-defined]
            if not got:
                raise CheckpointError(f"{stream.name} was cut short while it was read")
            have += got
        yield torch.frombuffer(content, dtype=dtype)
        left -= count


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _write(path: Path, content: bytes) -> None:
    """Replace a file: whole or not at all, also after a power cut."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
    fsync_directory(path.parent)
