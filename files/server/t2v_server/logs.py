"""One line for each event, as text or JSON, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from t2v_server.config import LogSettings

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What a record may carry beside its message.
_FIELDS = (
    "request_id", "job_id", "client", "method", "path", "status", "bytes", "seconds", "prompt",
)  # fmt: skip


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: ``time`` (UTC), ``level``, ``logger``, ``message``, fields."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        data: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        data |= {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A readable line, with the request's id at its end when there is one."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        prompt = record.__dict__.get("prompt")
        if prompt is not None:
            line += f" prompt={prompt!r}"
        request_id = record.__dict__.get("request_id")
        return f"{line} [{request_id}]" if request_id else line


def formatter(settings: LogSettings) -> logging.Formatter:
    """What the settings ask for."""
    return JsonFormatter() if settings.format == "json" else TextFormatter()


def set_up_logging(settings: LogSettings) -> None:
    """Send this process's records to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("t2v_server").setLevel(settings.level.upper())


class WithoutRequests(logging.Filter):
    """gunicorn quotes what it could not parse, which may be part of a prompt or a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Invalid request from"):
            record.msg, record.args = "a client sent a request that is none", ()
        return True


def gunicorn_logging(settings: LogSettings) -> dict[str, Any]:
    """gunicorn's ``logconfig_dict``: its own records in the same form as ours."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": "t2v_server.logs.formatter", "settings": settings}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "filters": {"quiet": {"()": "t2v_server.logs.WithoutRequests"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {
                "level": settings.level.upper(), "handlers": ["stderr"], "propagate": False,
                "filters": ["quiet"],
            },
        },
    }  # fmt: skip
