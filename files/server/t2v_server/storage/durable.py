"""What is written stays written, also after a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def fsync(path: Path, flags: int) -> None:
    """Have what is at ``path``, opened with ``flags``, on disk. Raises ``OSError``."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(directory: Path) -> None:
    """Have a directory's names on disk, where its file system can. Raises ``OSError``."""
    try:
        fsync(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some network file systems
            raise
