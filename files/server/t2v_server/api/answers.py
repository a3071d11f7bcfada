"""Answers in two forms: a line of text, or JSON for whoever asks for it."""

from __future__ import annotations

import json
from http import HTTPStatus

from flask import Response, request
from pydantic import BaseModel

from t2v_server.api.errors import ApiError


def wants_json() -> bool:
    """Whether the client prefers JSON to a line of text."""
    best = request.accept_mimetypes.best_match(("text/plain", "application/json"))
    return best == "application/json"


def json_answer(data: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(data.model_dump_json() + "\n", status, mimetype="application/json")


def answer(text: str, data: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """``text`` as text/plain, or ``data`` as JSON if the client prefers that."""
    if wants_json():
        return json_answer(data, status)
    return Response(text, status, mimetype="text/plain")


def problem(error: ApiError, *, as_text: bool) -> Response:
    """An error: its message on a line, or ``{"error": {…}}``."""
    if as_text:
        response = Response(f"{error.text}\n", error.status, mimetype="text/plain")
    else:
        body = json.dumps(error.to_dict(), ensure_ascii=False) + "\n"
        response = Response(body, error.status, mimetype="application/json")
    response.headers.update(error.headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response
