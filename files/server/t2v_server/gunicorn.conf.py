"""How gunicorn runs the server; every choice of the operator is a T2V_* variable."""

from __future__ import annotations

import logging
from pathlib import Path

from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import ThreadWorker

from t2v_server import lifecycle
from t2v_server.app import service_of

_settings = lifecycle.settings_or_exit()

wsgi_app = "t2v_server.app:create_app()"
bind = _settings.bind
proc_name = "t2v-server"

# One process holds the model; threads wait. The worker process is forked before torch is
# imported, as CUDA needs: no preload_app.
workers = 1
worker_class = "gthread"
threads = _settings.http_threads
worker_connections = max(1000, 4 * threads)
preload_app = False

# The main thread beats while others wait, so this bounds a hang, not a generation.
timeout = 120
graceful_timeout = _settings.graceful_timeout
# Longer than nginx keeps idle upstream connections (60 s), so that nginx closes first.
keepalive = 75
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
control_socket_disable = True  # it would need a writable home

# The path without its query: prompts are the clients' own business.
accesslog = "-"
access_log_format = '%(h)s "%(m)s %(U)s %(H)s" %(s)s %(b)s %(M)sms'
loglevel = _settings.log_level


def on_starting(_server: Arbiter) -> None:
    """Before the first worker, and not on a reload, when an old worker still writes."""
    removed = lifecycle.sweep(_settings)
    if removed:
        logging.getLogger("gunicorn.error").info(
            "removed %d half-written files from %s", removed, _settings.output_dir
        )


def post_worker_init(worker: ThreadWorker) -> None:
    lifecycle.drain_on_sigterm(service_of(worker.wsgi))


def worker_int(worker: ThreadWorker) -> None:
    lifecycle.stop_now(service_of(worker.wsgi))


def worker_exit(_server: Arbiter, worker: ThreadWorker) -> None:
    if worker.wsgi is not None:  # None if the application could not be made
        lifecycle.finish(service_of(worker.wsgi))
