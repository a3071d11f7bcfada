"""One answer in two forms: a line of text, or JSON for whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from flask import Response, json, request

JsonValue = str | int | float | bool | None
JsonObject = Mapping[str, "JsonValue | JsonObject"]


def answer(
    text: str,
    data: JsonObject,
    status: HTTPStatus = HTTPStatus.OK,
    *,
    retry_after: int | None = None,
) -> Response:
    """``text`` as text/plain, or ``data`` as JSON if the client prefers ``application/json``.

    ``retry_after`` is seconds, for the header of that name.
    """
    best = request.accept_mimetypes.best_match(("text/plain", "application/json"))
    if best == "application/json":
        response = Response(json.dumps(data) + "\n", status, mimetype="application/json")
    else:
        response = Response(text, status, mimetype="text/plain")
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def problem(
    status: HTTPStatus, code: str, message: str, *, retry_after: int | None = None
) -> Response:
    """An error: ``message`` on a line, or ``{"error": {"code": …, "message": …}}``."""
    data: JsonObject = {"error": {"code": code, "message": message}}
    return answer(f"{message}\n", data, status, retry_after=retry_after)
