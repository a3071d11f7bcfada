"""The application factory: the one place where the rooms meet."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass

from flask import Flask

from t2v_server.api.generate import generate_blueprint
from t2v_server.api.health import health_blueprint
from t2v_server.api.observe import metrics_blueprint, observe_requests
from t2v_server.api.pages import answer_errors_briefly, pages_blueprint
from t2v_server.config import Settings, unknown_variables
from t2v_server.engine.worker import EngineWorker, Generator
from t2v_server.jobs.queue import JobQueue
from t2v_server.jobs.readiness import Readiness, ReadyState
from t2v_server.jobs.record import Failed, FailureReason
from t2v_server.metrics import Metrics
from t2v_server.storage.ids import IdFactory
from t2v_server.storage.videos import VideoStore

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1 << 20
_EXTENSION = "t2v_server"
_SHUTTING_DOWN = "the server is shutting down: send the request again"


@dataclass(frozen=True)
class Service:
    """What outlives a request, for whoever stops the process."""

    queue: JobQueue
    readiness: Readiness
    metrics: Metrics
    engine: EngineWorker

    def drain(self, *, give_up_running: bool = False) -> None:
        """Take no more jobs and answer the waiting ones; the running one may finish."""
        self.readiness.set(ReadyState.STOPPING, _SHUTTING_DOWN)
        reason = FailureReason.SHUTTING_DOWN
        dropped = self.queue.close(Failed(reason, _SHUTTING_DOWN), give_up_claimed=give_up_running)
        self.metrics.jobs.labels("failed", reason.value).inc(dropped)
        if dropped:
            log.warning("shutting down: %d jobs were not generated", dropped)


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application and start loading the model in the background.

    Raises:
        ConfigError: when ``settings`` is not given and the environment is unusable.
    """
    if settings is None:
        settings = Settings.from_environ(os.environ)
    _set_up_logging(settings.log_level)
    for name in unknown_variables(os.environ):
        log.warning("%s is not a setting of this server and has no effect", name)

    metrics = Metrics()
    readiness = Readiness()
    queue = JobQueue(settings.queue_size, IdFactory())
    metrics.watch_queue(
        capacity=queue.capacity,
        depth=queue.depth,
        in_flight=queue.in_flight,
        oldest_age=queue.oldest_age,
    )
    engine = EngineWorker(
        model=settings.model,
        load=lambda: _load(settings),
        fps=settings.video.fps,
        queue=queue,
        readiness=readiness,
        store=VideoStore(settings.output_dir, settings.instance),
        metrics=metrics,
        # Leave as on any stop; gunicorn then starts a worker with a fresh GPU context.
        on_lost=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BODY_BYTES
    observe_requests(app, metrics, settings.instance)
    answer_errors_briefly(app)
    app.register_blueprint(generate_blueprint(queue, readiness, metrics, settings.max_prompt_chars))
    app.register_blueprint(health_blueprint(readiness, settings.model, settings.instance))
    app.register_blueprint(metrics_blueprint(metrics))
    app.register_blueprint(pages_blueprint(settings.model, settings.video, settings.instance))
    app.extensions[_EXTENSION] = Service(queue, readiness, metrics, engine)
    engine.start()
    return app


def service_of(app: Flask) -> Service:
    """The service behind an application that ``create_app`` made."""
    service = app.extensions[_EXTENSION]
    assert isinstance(service, Service)
    return service


def _load(settings: Settings) -> Generator:
    # Importing torch and diffusers takes seconds: in the engine thread, not before listening.
    from t2v_server.engine.generator import load_generator

    return load_generator(
        settings.model, settings.video, settings.device, settings.dtype, settings.torch_threads
    )


def _set_up_logging(level: str) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("t2v_server").setLevel(level.upper())
