"""One preparer at a time, also on a share that several hosts mount."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2v_server.checkpoint.errors import CheckpointError

_BEAT_SECONDS = 5.0
# A silent owner on another host counts as gone after so many seconds.
GONE_SECONDS = 60.0


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Be the only one that prepares ``target``.

    A record lock, which NFSv4's server knows of. Where it does not cross hosts (NFSv3 with
    ``nolock``, other network file systems), the file's time tells: its owner renews it.

    Raises:
        CheckpointError: somebody else prepares it.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        descriptor = _locked(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be locked ({error.strerror}): let this account write in {path.parent}"
        ) from error
    if descriptor is None:
        raise CheckpointError(f"{target} is being prepared by {_owner(path)}: wait for it")
    stop = threading.Event()
    try:
        if _elsewhere(path, descriptor):
            raise CheckpointError(
                f"{target} is being prepared by {_owner(path)}, who was there less than "
                f"{GONE_SECONDS:.0f} seconds ago: wait for it, or that long if it is gone"
            )
        record = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record, 0)
        beat = threading.Thread(target=_beat, args=(descriptor, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
        with suppress(OSError):
            path.unlink()  # before the lock is given up: whoever waits looks at the name again
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """An open, locked descriptor of the file that has this name now; None: another has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its owner has removed it meanwhile


def _elsewhere(path: Path, descriptor: int) -> bool:
    """Whether a process of another host seems to be at it, for all that we have the lock."""
    try:
        host = json.loads(os.pread(descriptor, 4096, 0))["host"]
    except (ValueError, KeyError, TypeError):
        return False  # new, or from somebody who died while writing it
    if host == socket.gethostname():
        return False  # on one host the lock is enough
    beaten = os.fstat(descriptor).st_mtime
    # By the clock of whoever keeps the file.
    probe = path.with_name(f"{path.name}.{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - beaten < GONE_SECONDS


def _owner(path: Path) -> str:
    try:
        record = json.loads(path.read_text())
        return f"process {record['pid']} of {record['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _beat(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_SECONDS):
        with suppress(OSError):
            os.utime(descriptor)
