"""``t2v-server serve``: check what can be checked, then run the processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from t2v_server import metrics
from t2v_server.config import ConfigError, Settings
from t2v_server.jobs.ids import IdFactory
from t2v_server.jobs.open import open_store
from t2v_server.jobs.readiness import forget_statuses
from t2v_server.jobs.store import StoreUnavailable
from t2v_server.logs import set_up_logging
from t2v_server.storage.videos import StorageError, VideoStore
from t2v_server.supervisor import Supervisor

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until told to stop; returns the exit status.

    Raises:
        ConfigError: a setting names what cannot be used.
    """
    set_up_logging(settings.log)
    check_settings(settings)

    @contextmanager
    def prepared() -> Iterator[None]:
        directory = metrics.directory_for(settings.state_dir)
        os.environ[metrics.DIRECTORY_VARIABLE] = str(directory)  # the children's
        metrics.prepare_directory(directory)
        forget_statuses(settings.state_dir)
        try:
            yield
        finally:
            metrics.remove_directory(directory)

    return Supervisor(settings, prepared).run()


def check_settings(settings: Settings) -> None:
    """Look at the directories, the store and the clients' keys.

    Raises:
        ConfigError: with what to change.
    """
    try:
        VideoStore(settings.output_dir, settings.instance).check_writable(IdFactory())
    except StorageError as error:
        raise ConfigError(f"T2V_OUTPUT_DIR: {error}") from error
    check_state_dir(settings)
    try:
        store = open_store(settings)
        if settings.jobs.redis is not None:
            store.counts()
        store.close()
    except StoreUnavailable as error:
        if settings.jobs.redis is None:
            raise ConfigError(f"T2V_STATE_DIR: {error}") from error
        # It may come later than this server; /ready says so until then.
        log.warning("T2V_STORE: %s", error)
    if settings.clients.authenticated:
        from t2v_server.api.auth import Authenticator

        Authenticator(settings.clients)
    if settings.engines and find_spec("torch") is None:
        raise ConfigError(
            "T2V_ENGINES: PyTorch is not installed: install it, or set T2V_ENGINES to 0."
        )


def check_state_dir(settings: Settings) -> None:
    """Make the state directory if its parent is there, and write to it.

    Raises:
        ConfigError: with what to change.
    """
    directory = settings.state_dir
    try:
        directory.mkdir(mode=0o750, exist_ok=True)
        probe = directory / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"T2V_STATE_DIR={str(directory)!r} cannot be used ({error.strerror}): "
            "make it and let this account write there, or set another directory."
        ) from error
