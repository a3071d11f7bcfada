"""``python -m t2v_server engine``: one engine process, as the supervisor starts it."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from types import FrameType

from t2v_server.config import Settings
from t2v_server.engine.engine import EXIT_STOPPED, Engine, EngineSite, Generator
from t2v_server.janitor import Janitor
from t2v_server.jobs.open import open_store
from t2v_server.jobs.readiness import LOADING, EngineFiles, EngineState
from t2v_server.jobs.store import JobStore, StoreUnavailable
from t2v_server.metrics import Metrics
from t2v_server.processes import PARENT_VARIABLE, die_with_parent
from t2v_server.storage.videos import VideoStore

log = logging.getLogger(__name__)

_STORE_AWAY_SECONDS = 0.5


def run_engine(settings: Settings, index: int) -> int:
    """Be engine ``index`` of this server until told to stop; returns the exit status."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        die_with_parent(int(parent))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until there is an engine to stop
    files = EngineFiles(settings.state_dir, index)
    with files.held():
        _say_that_it_loads(files)
        store = _open_store(settings)
        # Named after the engine: what its predecessor left half written is nobody else's.
        videos = VideoStore(settings.output_dir, f"{settings.instance}-e{index}")
        for part in videos.sweep():
            log.info("removed %s, which a predecessor left half written", part)
        metrics = Metrics(f"engine-{index}")
        site = EngineSite(
            name=f"{settings.instance}/{index}",
            model=settings.engine.model,
            profile=settings.engine.profile.name,
            warm_up=settings.video,
            encoder=settings.engine.encoder,
            max_attempts=settings.jobs.max_attempts,
            lease=settings.jobs.lease,
            store=store,
            videos=videos,
            files=files,
            metrics=metrics,
        )
        engine = Engine(site, lambda: _load(settings, index))
        _obey_signals(engine)
        if index == 0:
            Janitor(
                store, videos, settings.retention, settings.sweep_age, metrics,
                shared=settings.jobs.redis is not None,
            ).start()  # fmt: skip
        return engine.run()


def _open_store(settings: Settings) -> JobStore:
    while True:
        try:
            return open_store(settings)
        except StoreUnavailable as error:
            log.warning("%s", error)
            time.sleep(_STORE_AWAY_SECONDS)


def _obey_signals(engine: Engine) -> None:
    def finish_first(number: int, frame: FrameType | None) -> None:
        if engine.loading:  # minutes, for a large model
            _leave(number, frame)
        engine.stop()

    def hand_back(number: int, frame: FrameType | None) -> None:
        if engine.loading:
            _leave(number, frame)
        engine.stop(now=True)

    signal.signal(signal.SIGTERM, finish_first)
    signal.signal(signal.SIGINT, hand_back)


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_STOPPED)


def _say_that_it_loads(files: EngineFiles) -> None:
    """What a predecessor said is true no more, unless it is why it failed."""
    last = files.last()
    if last is None or last.state is not EngineState.FAILED:
        last = LOADING
    with suppress(OSError):
        files.write(replace(last, pid=os.getpid(), job=None))


def _load(settings: Settings, index: int) -> Generator:
    # Importing torch and diffusers takes seconds, in which the engine can say that it loads.
    from t2v_server.engine.generator import load_for

    return load_for(settings.engine, gpu=index)
