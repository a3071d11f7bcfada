"""What happens before the first worker and when one is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

from t2v_server.app import Service
from t2v_server.config import ConfigError, Settings
from t2v_server.storage.ids import IdFactory
from t2v_server.storage.videos import StorageError, VideoStore

_ENGINE_JOIN_SECONDS = 1.0


def settings_or_exit() -> Settings:
    """The settings of this process; on a mistake, one sentence on stderr and exit status 2."""
    try:
        settings = Settings.from_environ(os.environ)
        _store(settings).check_writable(IdFactory())
    except ConfigError as error:
        _exit(str(error))
    except StorageError as error:
        _exit(f"T2V_OUTPUT_DIR: {error}")
    return settings


def sweep(settings: Settings) -> int:
    """Remove what a killed predecessor left half written; say how many files."""
    return len(_store(settings).sweep(settings.sweep_age))


def drain_on_sigterm(service: Service) -> None:
    """Drain before whatever already handles SIGTERM; call it in the main thread."""
    previous = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        # In a thread, since the interrupted code may hold a lock that draining needs.
        threading.Thread(target=service.drain, name="t2v-drain").start()
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGTERM, handle)
    signal.siginterrupt(signal.SIGTERM, False)


def stop_now(service: Service) -> None:
    """Answer every waiting client, also the running job's; for SIGINT and SIGQUIT."""
    service.drain(give_up_running=True)


def finish(service: Service) -> None:
    """Let the engine thread end before the interpreter does, or end the process without it.

    An interpreter that is torn down under a thread inside native code may crash.
    """
    service.drain()
    if not service.engine.join(_ENGINE_JOIN_SECONDS):
        logging.shutdown()
        os._exit(0)


def _store(settings: Settings) -> VideoStore:
    return VideoStore(settings.output_dir, settings.instance)


def _exit(sentence: str) -> None:
    print(f"t2v-server: {sentence}", file=sys.stderr)
    raise SystemExit(2)
