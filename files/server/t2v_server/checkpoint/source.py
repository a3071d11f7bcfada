"""Where published weights come from: a directory, the Hugging Face Hub, ModelScope.

Each is a list of files, and a way to have one of them on a local disk for a while.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import Seal, seal_of

KINDS = ("directory", "huggingface", "modelscope")
MODELSCOPE_VARIABLE = "MODELSCOPE_ENDPOINT"
_MODELSCOPE = "https://www.modelscope.cn"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Of a model for diffusers: no "..", nothing hidden.
_PATH = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*")
_ATTEMPTS = 5
_SECONDS_BETWEEN = 2.0
_TIMEOUT = 60.0
_BLOCK = 1 << 20

Told = Callable[[str], None]


@dataclass(frozen=True)
class SourceFile:
    """A file as the source names it. ``sha256`` None: the source does not say."""

    path: str
    size: int
    sha256: str | None


class Source(Protocol):
    """A model at one revision, which does not change while this object lives."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def files(self) -> Mapping[str, SourceFile]: ...

    @property
    def remote(self) -> bool:
        """Whether a file takes room here while it is open."""

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Path, Seal]]:
        """A whole file on a local disk, and what it is.

        Raises:
            CheckpointError: it cannot be had, or is not what the source says of it.
        """
        yield Path(), Seal(0, "")


def open_source(
    name: str,
    kind: str,
    revision: str | None,
    cache: Path,
    token: str | None,
    told: Told = lambda _line: None,
) -> Source:
    """Find a model and pin its revision.

    ``kind`` is one of ``KINDS`` or ``auto``: a path is a directory, anything else is the Hugging
    Face Hub's. ``revision`` is a branch, a tag or a commit; None: the newest. ``cache`` holds what
    is downloaded, as long as it is open and for an interrupted preparation to go on with.

    Raises:
        CheckpointError: there is no such model, or it cannot be asked for.
    """
    if kind == "auto":
        looks_like_path = name.startswith(("/", ".", "~")) or Path(name).is_dir()
        kind = "directory" if looks_like_path else "huggingface"
    if kind == "directory":
        if revision is not None:
            raise CheckpointError(
                f"--revision {revision} is of a hub, and {name} is a directory: leave it out"
            )
        return _Directory(Path(name).expanduser())
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is no model of a hub: name it as OWNER/MODEL, such as "
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers, or give a directory"
        )
    if kind == "huggingface":
        return _HuggingFace(name, revision or "main", cache, token)
    return _ModelScope(name, revision or "master", cache, told)


class _Directory:
    """A directory that somebody downloaded. Its revision is a digest over sizes and times."""

    kind = "directory"
    remote = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self.name = str(self._directory)
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is no directory: name one that holds a model")
        digest, files = hashlib.sha256(), dict[str, SourceFile]()
        for path in sorted((*directory.glob("*"), *directory.glob("*/*"))):
            relative = str(path.relative_to(directory))
            if not path.is_file() or not _PATH.fullmatch(relative):
                continue
            status = path.stat()
            files[relative] = SourceFile(relative, status.st_size, None)
            digest.update(f"{relative} {status.st_size} {status.st_mtime_ns}\n".encode())
        self.files: Mapping[str, SourceFile] = files
        self.revision = digest.hexdigest()

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Path, Seal]]:
        place = self._directory / path
        try:
            seal = seal_of(place)
        except OSError as error:
            raise CheckpointError(f"{place} cannot be read: {error.strerror}") from error
        yield place, seal


class _HuggingFace:
    """The Hugging Face Hub, or the mirror that ``HF_ENDPOINT`` names."""

    kind = "huggingface"
    remote = True

    def __init__(self, name: str, revision: str, cache: Path, token: str | None) -> None:
        from huggingface_hub import HfApi

        self.name = name
        self._cache = cache
        self._api = HfApi(token=token)
        with self._explained(f"{name} at {revision}"):
            info = self._api.model_info(name, revision=revision, files_metadata=True)
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise CheckpointError(f"{self._api.endpoint} names no commit of {name} at {revision}")
        self.revision = info.sha
        self.files: Mapping[str, SourceFile] = {
            one.rfilename: SourceFile(
                one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None
            )
            for one in info.siblings or ()
            if _PATH.fullmatch(one.rfilename)
        }

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Path, Seal]]:
        with self._explained(f"{path} of {self.name}"):
            place = Path(
                self._api.hf_hub_download(
                    self.name, path, revision=self.revision, local_dir=self._cache
                )
            )
        try:
            yield place, _checked(place, self.files[path], self._api.endpoint)
        except CheckpointError:
            place.unlink(missing_ok=True)  # downloaded anew the next time
            raise
        place.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from httpx2 import HTTPError
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

        where = self._api.endpoint
        try:
            yield
        except GatedRepoError as error:
            raise CheckpointError(
                f"{where} gives {what} only to those who accepted its terms: accept them there, "
                "and give a token by --token-file"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            raise CheckpointError(
                f"{where} answered {status} for {what}: see that the name and the revision are "
                "right, and that the token of --token-file may read it"
            ) from error
        except (HTTPError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines()
            raise CheckpointError(
                f"{what} cannot be had from {where} ({lines[0] if lines else error!r}): see that "
                "this host reaches it, or name a mirror by HF_ENDPOINT"
            ) from error


class _ModelScope:
    """ModelScope, for models that anybody may read, or what ``MODELSCOPE_ENDPOINT`` names.

    The calls are those that its own client makes (modelscope/hub/api.py). A listing names the
    commit of each file, by which the file is then asked for.
    """

    kind = "modelscope"
    remote = True

    def __init__(self, name: str, revision: str, cache: Path, told: Told) -> None:
        self.name = name
        self._cache = cache
        self._told = told
        self._endpoint = (os.environ.get(MODELSCOPE_VARIABLE) or _MODELSCOPE).rstrip("/")
        if not re.match(r"https?://", self._endpoint):
            raise CheckpointError(
                f"{MODELSCOPE_VARIABLE}={self._endpoint!r} is no address: set it to https://…"
            )
        query = urllib.parse.urlencode({"Revision": revision, "Recursive": "True"})
        listing = self._ask(f"/api/v1/models/{name}/repo/files?{query}")
        files, commits = dict[str, SourceFile](), dict[str, str]()
        try:
            for one in json.loads(listing)["Data"]["Files"]:
                path = one["Path"]
                if one["Type"] != "tree" and _PATH.fullmatch(path):
                    files[path] = SourceFile(path, int(one["Size"]), one["Sha256"] or None)
                    commits[path] = one["Revision"] or revision
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._endpoint} answered for {name} with something else than a list of files: "
                f"see that {MODELSCOPE_VARIABLE} is ModelScope's"
            ) from error
        self.files: Mapping[str, SourceFile] = files
        self._commits = commits
        # A listing has commits of files and none of its own: this names all of them.
        self.revision = hashlib.sha256(json.dumps(commits, sort_keys=True).encode()).hexdigest()

    def _ask(self, path: str) -> bytes:
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(self._endpoint + path, timeout=_TIMEOUT) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise self._refused(path, error.code) from error
                wrong: Exception = error
            except (OSError, http.client.HTTPException) as error:
                wrong = error
            time.sleep(_SECONDS_BETWEEN * attempt)
        raise self._unreachable(wrong)

    def _refused(self, path: str, code: int) -> CheckpointError:
        return CheckpointError(
            f"{self._endpoint} answered {code} for {self.name} ({path}): see that the name and the "
            "revision are right, and that anybody may read it"
        )

    def _unreachable(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.name} cannot be had from {self._endpoint} ({error}): see that this host "
            f"reaches it, or name a mirror by {MODELSCOPE_VARIABLE}"
        )

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Path, Seal]]:
        place = self._cache / path
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + f".{self._commits[path][:16]}.part")
        query = urllib.parse.urlencode({"Revision": self._commits[path], "FilePath": path})
        self._download(f"/api/v1/models/{self.name}/repo?{query}", part, self.files[path].size)
        try:
            seal = _checked(part, self.files[path], self._endpoint)
            part.replace(place)
            yield place, seal
        finally:
            part.unlink(missing_ok=True)
            place.unlink(missing_ok=True)

    def _download(self, path: str, part: Path, size: int) -> None:
        """Append what is missing of a file, however often the connection breaks."""
        failures = 0
        while (have := part.stat().st_size if part.exists() else 0) != size:
            if have > size:
                part.unlink()
                continue
            request = urllib.request.Request(self._endpoint + path)
            if have:
                request.add_header("Range", f"bytes={have}-")
            try:
                with (
                    urllib.request.urlopen(request, timeout=_TIMEOUT) as answer,
                    part.open("ab" if answer.status == 206 else "wb") as stream,
                ):
                    while block := answer.read(_BLOCK):
                        stream.write(block)
                wrong: Exception = EOFError("the answer was cut short")
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise self._refused(path, error.code) from error
                wrong = error
            except (OSError, http.client.HTTPException) as error:
                wrong = error
            now = part.stat().st_size if part.exists() else 0
            failures = 0 if now > have else failures + 1
            if now != size:
                if failures >= _ATTEMPTS:
                    raise self._unreachable(wrong)
                self._told(f"{path}: {wrong}, going on at {now} bytes")
                time.sleep(_SECONDS_BETWEEN * failures)


def _checked(place: Path, file: SourceFile, where: str) -> Seal:
    try:
        seal = seal_of(place)
    except OSError as error:
        raise CheckpointError(f"{place} cannot be read: {error.strerror}") from error
    if seal.size != file.size or (file.sha256 is not None and seal.sha256 != file.sha256):
        with suppress(OSError):
            place.unlink()
        raise CheckpointError(
            f"{file.path} came from {where} damaged (its size or SHA-256 is not the one that was "
            "announced): run the command again"
        )
    return seal
