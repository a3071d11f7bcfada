"""The directory of finished videos, shared with other servers, often over NFS."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2v_server.storage.durable import fsync, fsync_directory

_PART_SUFFIX = ".part"
_KINDS = _VIDEO, _THUMBNAIL, _METADATA = ".mp4", ".jpg", ".json"
_REFERENCE = ".reference"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
# File systems that know no hard links say one of these.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class StorageError(Exception):
    """The directory or a file in it could not be used; the message says which and why."""


class DiskFull(StorageError):
    """The volume, or the account's share of it, is used up."""


@dataclass(frozen=True)
class Draft:
    """Where to write a video and its thumbnail before anybody may see them."""

    video: Path
    thumbnail: Path


@dataclass(frozen=True)
class Published:
    """A video under its final name; ``metadata`` is what its JSON file holds."""

    path: Path
    num_bytes: int
    metadata: Mapping[str, Any]


class VideoStore:
    """Publishes videos so that a final name only ever shows a whole file, written once.

    A video is written to ``.<id>.<instance>.mp4.part`` beside its final name ``<id>.mp4``:
    hidden from listings, on the same file system, and marked as this instance's. Its thumbnail
    ``<id>.jpg`` and its metadata ``<id>.json`` are there before it is.
    """

    def __init__(self, directory: Path, instance: str) -> None:
        self.directory = directory
        self._instance = instance
        self._own_endings = {f"{instance}{kind}{_PART_SUFFIX}" for kind in _KINDS}

    def path(self, video_id: str) -> Path:
        """The final path of a video, whether or not it exists yet."""
        return self.directory / f"{video_id}{_VIDEO}"

    def thumbnail(self, video_id: str) -> Path:
        """The final path of a video's JPEG, whether or not it exists."""
        return self.directory / f"{video_id}{_THUMBNAIL}"

    def metadata(self, video_id: str) -> Path:
        """The final path of a video's JSON, whether or not it exists."""
        return self.directory / f"{video_id}{_METADATA}"

    def reference(self, digest: str) -> Path:
        """The path of an image that videos begin with, by the SHA-256 of its bytes."""
        return self.directory / f".{digest}{_REFERENCE}"

    def keep_reference(self, image: bytes) -> str:
        """Keep an image for the engines; returns its SHA-256 in hex.

        Equal images are one file, whose age counts from the last time that it was given.

        Raises:
            DiskFull, StorageError: when it cannot be written.
        """
        digest = hashlib.sha256(image).hexdigest()
        path = self.reference(digest)
        part = self._part(f"{digest}.{secrets.token_hex(4)}", _REFERENCE)
        try:
            with self._explained(f"write {path}"):
                if path.exists():
                    os.utime(path)
                    return digest
                part.write_bytes(image)
                fsync(part, os.O_RDWR)
                part.replace(path)
                fsync_directory(self.directory)
        finally:
            _remove(part)
        return digest

    def sweep_references(self, max_age: float) -> list[Path]:
        """Remove images that nobody gave for ``max_age`` seconds; returns what was removed."""
        before = time.time() - max_age
        removed = []
        for path in self.directory.glob(f".*{_REFERENCE}"):
            try:
                if path.stat().st_mtime >= before:
                    continue
                path.unlink()
            except OSError:
                continue  # another server was quicker
            removed.append(path)
        return removed

    @contextmanager
    def draft(self, video_id: str) -> Iterator[Draft]:
        """Give temporary paths to write to; whatever is left there at the end is removed."""
        draft = Draft(self._part(video_id, _VIDEO), self._part(video_id, _THUMBNAIL))
        try:
            yield draft
        finally:
            _remove(draft.video)
            _remove(draft.thumbnail)

    def publish(self, video_id: str, draft: Draft, metadata: Mapping[str, object]) -> Published:
        """Give the draft its final names, the video's last, unless the video has one already.

        The bytes reach the disk before a name does (fsync, link, fsync of the directory), so
        that not even a power cut leaves a short file under a final name. ``link`` refuses a name
        that exists: of two attempts the first is kept, and the second is told of it.

        Raises:
            DiskFull, StorageError: when that cannot be done.
        """
        described = self._part(video_id, _METADATA)
        try:
            earlier = self.published(video_id)
            if earlier is not None:
                return earlier
            with self._explained(f"publish {self.path(video_id)}"):
                described.write_text(json.dumps(metadata, ensure_ascii=False, indent=2) + "\n")
                fsync(described, os.O_RDWR)
                described.replace(self.metadata(video_id))
                if draft.thumbnail.exists():
                    fsync(draft.thumbnail, os.O_RDWR)
                    draft.thumbnail.replace(self.thumbnail(video_id))
                fsync(draft.video, os.O_RDWR)
                _name_once(draft.video, self.path(video_id))
                fsync_directory(self.directory)
            published = self.published(video_id)
        except StorageError:
            if not self.path(video_id).exists():  # nor may its companions be left alone
                _remove(self.metadata(video_id))
                _remove(self.thumbnail(video_id))
            raise
        finally:
            _remove(described)
        if published is None:
            raise StorageError(f"{self.path(video_id)} was removed while it was published")
        return published

    @contextmanager
    def full_disk_named(self) -> Iterator[None]:
        """Whatever the block raises because the volume is full becomes ``DiskFull``.

        A program that writes there, such as ffmpeg, can only say so in words.
        """
        try:
            yield
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None
            if number in _FULL or any(os.strerror(full) in str(error) for full in _FULL[:2]):
                raise DiskFull(f"the volume of {self.directory} is full") from error
            raise

    def published(self, video_id: str) -> Published | None:
        """What is under the final name, if anything is.

        Raises:
            StorageError: when the directory cannot be looked at.
        """
        path = self.path(video_id)
        try:
            with self._explained(f"look at {path}", FileNotFoundError):
                num_bytes = path.stat().st_size
        except FileNotFoundError:
            return None
        try:
            metadata = json.loads(self.metadata(video_id).read_text())
        except (OSError, ValueError):
            metadata = {}
        return Published(path, num_bytes, metadata if isinstance(metadata, dict) else {})

    def delete(self, video_id: str) -> int:
        """Remove a video and what lies beside it; say how many bytes that were.

        Raises:
            StorageError: when the video is there and cannot be removed.
        """
        freed = 0
        # The video last: as long as it is there, whoever looks for videos finds the rest too.
        for path in (self.thumbnail(video_id), self.metadata(video_id), self.path(video_id)):
            with suppress(FileNotFoundError):
                with self._explained(f"remove {path}", FileNotFoundError):
                    size = path.stat().st_size
                    path.unlink()
                freed += size
        return freed

    def all(self) -> list[Published]:
        """All videos, oldest first (their names sort by time), without their metadata.

        Files that a person put there have other names, and are nobody's here.
        """
        found = []
        with self._explained(f"list {self.directory}"):
            for path in sorted(self.directory.glob(f"[!.]*{_VIDEO}")):
                with suppress(FileNotFoundError):
                    if _ULID.fullmatch(path.stem) and path.is_file():
                        found.append(Published(path, path.stat().st_size, {}))
        return found

    def free_bytes(self) -> int:
        """What this account can still write on the volume.

        Raises:
            StorageError: when the volume does not say.
        """
        with self._explained(f"ask for the free space of {self.directory}"):
            volume = os.statvfs(self.directory)
        return volume.f_bavail * volume.f_frsize

    def check_writable(self, new_id: Callable[[], str]) -> None:
        """Write and remove one hidden file.

        Raises:
            StorageError: one sentence that says what to do, when that fails.
        """
        if not self.directory.is_dir():
            raise StorageError(
                f"the directory {self.directory} does not exist: create or mount it."
            )
        probe = self._part(new_id(), _VIDEO)
        try:
            probe.write_bytes(b"t2v")
            fsync(probe, os.O_RDWR)
        except OSError as error:
            if error.errno in _FULL:
                return  # a server with a full disk still shows and deletes videos
            raise StorageError(
                f"user {os.geteuid()} cannot write to {self.directory} ({error.strerror}): "
                "let it write there or choose another directory."
            ) from error
        finally:
            _remove(probe)

    def sweep(self) -> list[Path]:
        """Remove this instance's temporary files, so call it before the first job.

        Returns what was removed.
        """
        return self._remove_parts(self._is_own)

    def sweep_abandoned(self, max_age: float) -> list[Path]:
        """Remove temporary files of any instance not written to for ``max_age`` seconds.

        Returns what was removed.
        """
        before = time.time() - max_age
        return self._remove_parts(lambda part: part.stat().st_mtime < before)

    def _remove_parts(self, unwanted: Callable[[Path], bool]) -> list[Path]:
        removed = []
        for part in self.directory.glob(f".*{_PART_SUFFIX}"):
            try:
                if not unwanted(part):
                    continue
                part.unlink()
            except OSError:
                continue  # another server was quicker, or it is not ours to remove
            removed.append(part)
        return removed

    def _is_own(self, part: Path) -> bool:
        return part.name.removeprefix(".").partition(".")[2] in self._own_endings

    def _part(self, video_id: str, kind: str) -> Path:
        return self.directory / f".{video_id}.{self._instance}{kind}{_PART_SUFFIX}"

    @contextmanager
    def _explained(self, action: str, but: type[OSError] | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if but is not None and isinstance(error, but):
                raise
            kind = DiskFull if error.errno in _FULL else StorageError
            raise kind(f"cannot {action}: {error.strerror}") from error


def _name_once(part: Path, final: Path) -> None:
    try:
        final.hardlink_to(part)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        part.replace(final)  # the last one wins there, which is a whole file as well


def _remove(path: Path) -> None:
    """Remove a temporary file; where even that fails, a later sweep does."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
