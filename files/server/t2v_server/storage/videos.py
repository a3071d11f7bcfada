"""The directory of finished videos, shared with other servers, often over NFS."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PART_SUFFIX = ".mp4.part"


class StorageError(Exception):
    """The directory or a file in it could not be used; the message says which and why."""


class VideoStore:
    """Publishes videos so that a final name only ever shows a whole file.

    A video is written to ``.<id>.<instance>.mp4.part`` beside its final name ``<id>.mp4``:
    hidden from listings, on the same file system, and marked as this instance's.
    """

    def __init__(self, directory: Path, instance: str) -> None:
        self.directory = directory
        self._own_suffix = f".{instance}{_PART_SUFFIX}"

    def path(self, video_id: str) -> Path:
        """The final path of a video, whether or not it exists yet."""
        return self.directory / f"{video_id}.mp4"

    @contextmanager
    def writing(self, video_id: str) -> Iterator[Path]:
        """Give a temporary path to write to; publish it if the block ends well.

        The bytes reach the disk before the name does (fsync, rename, fsync of the directory),
        so that not even a power cut leaves a short file under a final name. If the block
        raises, the temporary file is removed.

        Raises:
            StorageError: when the file cannot be published.
        """
        part = self._part(video_id)
        try:
            yield part
            try:
                _fsync(part, os.O_RDWR)
                part.replace(self.path(video_id))
                _fsync(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise StorageError(
                    f"cannot publish {self.path(video_id)}: {error.strerror}"
                ) from error
        finally:
            _remove(part)

    def check_writable(self, new_id: Callable[[], str]) -> None:
        """Write and remove one hidden file.

        Raises:
            StorageError: one sentence that says what to do, when that fails.
        """
        if not self.directory.is_dir():
            raise StorageError(
                f"the directory {self.directory} does not exist: create or mount it."
            )
        probe = self._part(new_id())
        try:
            probe.write_bytes(b"t2v")
            _fsync(probe, os.O_RDWR)
        except OSError as error:
            raise StorageError(
                f"user {os.geteuid()} cannot write to {self.directory} ({error.strerror}): "
                "let it write there or choose another directory."
            ) from error
        finally:
            _remove(probe)

    def sweep(self, max_age: float) -> list[Path]:
        """Remove temporary files that nobody will finish and return their paths.

        That is this instance's own, so call it before the first job, and other instances'
        that have not been written to for ``max_age`` seconds.
        """
        now = time.time()
        removed = []
        for part in self.directory.glob(f".*{_PART_SUFFIX}"):
            try:
                own = part.name.removeprefix(".").partition(".")[2] == self._own_suffix[1:]
                if not own and now - part.stat().st_mtime < max_age:
                    continue
                part.unlink()
            except OSError:
                continue  # another server was quicker, or it is not ours to remove
            removed.append(part)
        return removed

    def _part(self, video_id: str) -> Path:
        return self.directory / f".{video_id}{self._own_suffix}"


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a temporary file; where even that fails, a later sweep does."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
