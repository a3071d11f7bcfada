"""The application factory: the one place where the rooms meet."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from flask import Flask, g
from werkzeug.middleware.proxy_fix import ProxyFix

from t2v_server import __version__
from t2v_server.api.auth import Authenticator
from t2v_server.api.events import events_blueprint
from t2v_server.api.generate import generate_blueprint
from t2v_server.api.health import health_blueprint
from t2v_server.api.models import models_blueprint
from t2v_server.api.observe import (
    answer_errors,
    metrics_blueprint,
    observe_requests,
    refuse_other_sites,
)
from t2v_server.api.openapi import describe
from t2v_server.api.page import page_blueprint
from t2v_server.api.rates import RateLimiter
from t2v_server.api.schemas import RequestRules
from t2v_server.api.service import Service, Stopping
from t2v_server.api.videos import videos_blueprint
from t2v_server.config import Settings
from t2v_server.jobs.open import open_store
from t2v_server.jobs.readiness import best_of, status_of_all
from t2v_server.jobs.store import JobStore, StoreUnavailable
from t2v_server.logs import set_up_logging
from t2v_server.metrics import DIRECTORY_VARIABLE, Metrics, QueueReading, scrape_registry, slot
from t2v_server.storage.space import FreeSpace
from t2v_server.storage.videos import StorageError, VideoStore

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1 << 20
_EXTENSION = "t2v_server"
_ANSWER_SECONDS = 2.0  # for threads that were just told to stop waiting
_SEND_SECONDS = 0.1  # for what they answered


@dataclass(frozen=True)
class HttpProcess:
    """What outlives a request, for whoever stops the process."""

    stopping: Stopping
    names: ExitStack
    requests: set[int] = field(default_factory=set)

    def drain_on_sigterm(self) -> None:
        """Tell waiting requests before whatever already handles SIGTERM; in the main thread."""
        previous = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            # In a thread, since the interrupted code may hold the event's lock.
            threading.Thread(target=self.stopping.requested.set, name="t2v-drain").start()
            if callable(previous):
                previous(number, frame)

        signal.signal(signal.SIGTERM, handle)
        signal.siginterrupt(signal.SIGTERM, False)

    def stop_now(self) -> None:
        """Have every waiting request answered; for SIGINT and SIGQUIT."""
        for event in (self.stopping.requested, self.stopping.now):
            threading.Thread(target=event.set, name="t2v-stop").start()

    def finish(self) -> None:
        """Let threads that still answer do so for a moment, then end the process.

        Without tearing the interpreter down under threads that wait for a stalled volume.
        """
        self.stop_now()
        deadline = time.monotonic() + _ANSWER_SECONDS
        while self.requests and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(_SEND_SECONDS)
        logging.shutdown()
        os._exit(0)

    def count_requests(self, app: Flask) -> None:
        """Know which requests are being answered."""

        @app.before_request
        def begin() -> None:
            self.requests.add(id(g._get_current_object()))

        @app.teardown_request
        def end(_error: BaseException | None) -> None:
            self.requests.discard(id(g._get_current_object()))


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application.

    Raises:
        ConfigError: when ``settings`` is not given and the environment is unusable.
        StoreUnavailable: when SQLite's file cannot be used.
    """
    if settings is None:
        settings = Settings.from_environ(os.environ)
    set_up_logging(settings.log)
    # Held as long as the process lives.
    names = ExitStack()
    directory = os.environ.get(DIRECTORY_VARIABLE)
    metrics = Metrics(names.enter_context(slot(Path(directory))) if directory else None)
    metrics.http_in_progress.set(0)  # whatever a killed predecessor had counted
    metrics.event_streams.set(0)
    store = open_store(settings)
    videos = VideoStore(settings.output_dir, settings.instance)
    free_bytes = FreeSpace(videos.free_bytes)
    clients = settings.clients
    profile = settings.engine.profile
    rules = RequestRules(
        settings.engine.model,
        settings.video,
        settings.limits,
        reuse=settings.jobs.reuse,
        images=profile.images,
    )
    statuses = functools.partial(status_of_all, settings.state_dir, settings.engines)
    service = Service(
        model=settings.engine.model,
        instance=settings.instance,
        rules=rules,
        store=store,
        shared=settings.jobs.redis is not None,
        videos=videos,
        free_bytes=free_bytes,
        engine_status=lambda: best_of(statuses()),
        authenticator=Authenticator(clients),
        authenticated=clients.authenticated,
        rates=RateLimiter(clients.rate_limit, settings.jobs.redis),
        metrics=metrics,
        stopping=Stopping(),
        waiters=threading.BoundedSemaphore(settings.jobs.queue_size + settings.engines),
        queue_size=settings.jobs.queue_size,
        min_free_bytes=settings.retention.min_free_bytes,
        client_active=clients.max_active,
        client_daily=clients.max_daily,
        expires_after=settings.retention.max_age,
        log_prompts=settings.log.prompts,
    )
    registry = scrape_registry(
        metrics,
        version=__version__,
        capacity=settings.jobs.queue_size,
        profile=profile,
        queue=lambda: _queue_reading(store),
        engines_ready=lambda: sum(status.ready for status in statuses()),
        free_bytes=lambda: _free_bytes(free_bytes),
    )

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BODY_BYTES
    app.url_map.merge_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    if clients.trusted_proxies:
        hops = clients.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    observe_requests(app, metrics, settings.instance)
    answer_errors(app)
    if not clients.authenticated:
        refuse_other_sites(app)
    app.register_blueprint(generate_blueprint(service))
    app.register_blueprint(videos_blueprint(service))
    app.register_blueprint(events_blueprint(service, clients.max_streams))
    app.register_blueprint(models_blueprint(service, profile, settings.video, settings.limits))
    app.register_blueprint(health_blueprint(service))
    app.register_blueprint(metrics_blueprint(registry))
    document = functools.cache(lambda: describe(app, rules, authenticated=clients.authenticated))
    app.register_blueprint(page_blueprint(document))
    process = HttpProcess(service.stopping, names)
    process.count_requests(app)
    app.extensions[_EXTENSION] = process
    return app


def service_of(app: Flask) -> HttpProcess:
    """The process behind an application that ``create_app`` made."""
    process = app.extensions[_EXTENSION]
    assert isinstance(process, HttpProcess)
    return process


def _queue_reading(store: JobStore) -> QueueReading | None:
    try:
        counts = store.counts()
    except StoreUnavailable:
        return None
    return QueueReading(counts.queued, counts.in_progress, counts.oldest_created_at)


def _free_bytes(ask: FreeSpace) -> int | None:
    try:
        return ask()
    except StorageError:
        return None
