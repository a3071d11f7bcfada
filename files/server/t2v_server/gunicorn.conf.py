"""How gunicorn runs the server; every choice of the operator is a T2V_* variable."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import ThreadWorker

from t2v_server.app import service_of
from t2v_server.config import Settings
from t2v_server.logs import gunicorn_logging
from t2v_server.processes import PARENT_VARIABLE, die_with_parent
from t2v_server.supervisor import LISTENER_VARIABLE

if PARENT_VARIABLE in os.environ:
    die_with_parent(int(os.environ[PARENT_VARIABLE]))
_settings = Settings.from_environ(os.environ)

wsgi_app = "t2v_server.app:create_app()"
bind = (
    f"fd://{os.environ[LISTENER_VARIABLE]}" if LISTENER_VARIABLE in os.environ else _settings.bind
)
proc_name = "t2v-server"

workers = _settings.http_workers
worker_class = "t2v_server.worker.Worker"
threads = _settings.http_threads
_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
# Beside the connections each thread may have some files of the store, and one of a video.
worker_connections = max(threads, min(4 * threads + 1000, _files - 6 * threads - 100))
preload_app = False

# The main thread beats while others wait, so this bounds a hang, not a generation.
timeout = 120
graceful_timeout = _settings.graceful_timeout
# Longer than nginx keeps idle upstream connections (60 s), so that nginx closes first.
keepalive = 75
# A prompt of the longest length does not fit in any request line: POST is for those.
limit_request_line = 8190
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
control_socket_disable = True  # it would need a writable home

# The application writes a line for each request, with its id.
accesslog = None
# Only ProxyFix believes what proxies say, as T2V_TRUSTED_PROXIES says how many.
forwarder_headers = ""
forwarded_allow_ips = ""
logconfig_dict = gunicorn_logging(_settings.log)


def post_fork(_server: Arbiter, _worker: ThreadWorker) -> None:
    die_with_parent()


def post_worker_init(worker: ThreadWorker) -> None:
    service_of(worker.wsgi).drain_on_sigterm()


def worker_int(worker: ThreadWorker) -> None:
    service_of(worker.wsgi).stop_now()


def worker_exit(_server: Arbiter, worker: ThreadWorker) -> None:
    if worker.wsgi is not None:  # None if the application could not be made
        service_of(worker.wsgi).finish()
