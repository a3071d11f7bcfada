"""The OpenAPI 3.1 document, from the routes that the application has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from t2v_server import __version__
from t2v_server.api.schemas import (
    DeletedVideo,
    ErrorObject,
    Generated,
    ModelList,
    ReadyObject,
    RequestRules,
    VideoList,
    VideoObject,
)

_REF = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    VideoObject, VideoList, DeletedVideo, ModelList, Generated, ReadyObject, ErrorObject,
)  # fmt: skip
_ATTRIBUTE = "openapi_operation"
_HIDDEN = {"HEAD", "OPTIONS"}

_REASONS = {
    400: "A parameter is missing, unknown or not usable; `param` names it.",
    401: "No token, or not a valid one.",
    403: "The token lacks the scope for this; or, without tokens, another site's page asks.",
    404: "There is no such video, or it is another client's.",
    405: "Another method is needed here.",
    409: "The job has no video: it is not finished, failed or was cancelled; or the "
    "Idempotency-Key was used for a different request.",
    413: "The body is too large.",
    414: "The request line is longer than 8190 bytes: use POST.",
    415: "The body is neither JSON nor a form.",
    416: "The video has no such range.",
    429: "The queue is full, or this client has or asks for too much: see `Retry-After`.",
    500: "The generation failed; that job alone.",
    503: "The model is not loaded, the store is away or the server stops: see `Retry-After`.",
    507: "The volume has no room for this video.",
}
_WAITING = {429, 503}

View = TypeVar("View", bound=Callable[..., object])


@dataclass(frozen=True)
class Operation:
    """What the document says of one route; ``answers`` are media types with their schemas.

    ``scope`` is what a token needs; ``takes`` names the parameters beside those of the path.
    """

    summary: str
    description: str = ""
    tag: str = "videos"
    scope: str | None = None
    request: bool = False
    query: Sequence[Mapping[str, Any]] = ()
    headers: Sequence[Mapping[str, Any]] = ()
    answers: Mapping[str, type[BaseModel] | str] | None = None
    status: int = 200
    errors: Sequence[int] = ()
    more: Mapping[int, str] | None = None


def documented(operation: Operation) -> Callable[[View], View]:
    """Say what a view does; every route of the application must."""

    def mark(view: View) -> View:
        setattr(view, _ATTRIBUTE, operation)
        return view

    return mark


def describe(app: Flask, rules: RequestRules, *, authenticated: bool) -> dict[str, Any]:
    """The document of this application, with the limits of its model."""
    _, definitions = models_json_schema(
        [(model, "serialization") for model in _MODELS], ref_template=_REF
    )
    schemas = definitions["$defs"]
    schemas["VideoRequest"] = rules.json_schema()
    schemas["VideoForm"] = rules.form_schema()
    paths: dict[str, Any] = {}
    for rule in app.url_map.iter_rules():
        operation = getattr(app.view_functions[rule.endpoint], _ATTRIBUTE, None)
        if not isinstance(operation, Operation):
            continue
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - _HIDDEN):
            paths.setdefault(path, {})[method.lower()] = _operation(
                operation, method, rule.endpoint, sorted(rule.arguments), schemas,
                authenticated=authenticated,
            )  # fmt: skip
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "sanchuang.t2v",
            "version": __version__,
            "summary": "Text to video.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "videos", "description": "Make, watch, fetch and delete videos."},
            {"name": "service", "description": "What runs here, and how it is."},
        ],
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if authenticated:
        document["components"]["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key, or a JSON Web Token. Scopes: t2v:read, t2v:generate, "
                "t2v:admin (everybody's videos).",
            }
        }
    return document


_DESCRIPTION = """\
`/generate` is the short way: it answers when the file is there. `/v1/videos` is the way of
OpenAI's Videos API, which the `openai` SDK speaks: create, look or listen until `status` is
`completed` or `failed`, fetch the content.

Errors are `{"error": {"code", "message", "type", "param"}}`; programs should look at `code`.
After 429 and 503 wait for the seconds of `Retry-After`. Send an `Idempotency-Key` when you
create, and sending it again can never make a second video.
"""


def _operation(
    operation: Operation,
    method: str,
    endpoint: str,
    arguments: Sequence[str],
    schemas: Mapping[str, Any],
    *,
    authenticated: bool,
) -> dict[str, Any]:
    name = endpoint.rpartition(".")[2]
    found: dict[str, Any] = {
        "operationId": "generate_by_post" if (name, method) == ("generate", "POST") else name,
        "summary": operation.summary,
        "description": operation.description,
        "tags": [operation.tag],
        "parameters": [
            {
                "name": argument,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
                "description": "The id of the video.",
            }
            for argument in arguments
        ],
        "responses": {
            str(operation.status): {
                "description": HTTPStatus(operation.status).phrase,
                "content": _content(operation.answers or {}),
            },
            **{str(status): _error(status, operation) for status in operation.errors},
        },
    }
    for status, description in (operation.more or {}).items():
        found["responses"][str(status)] = {"description": description}
        if status != HTTPStatus.NO_CONTENT:
            found["responses"][str(status)]["content"] = _content(operation.answers or {})
    found["parameters"] += [*operation.query, *operation.headers]
    if operation.request and method == "POST":
        schema = {"$ref": _REF.format(model="VideoRequest")}
        found["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {"schema": schema},
                "application/x-www-form-urlencoded": {"schema": schema},
                "multipart/form-data": {"schema": {"$ref": _REF.format(model="VideoForm")}},
            },
        }
    elif operation.request:
        found["parameters"] += _as_query(schemas["VideoRequest"])
    if operation.scope is not None and authenticated:
        found["security"] = [{"bearer": []}]
        found["description"] = f"{found['description']}\n\nNeeds `{operation.scope}`.".strip()
        found["responses"]["401"] = _error(401, operation)
    if operation.scope is not None:
        found["responses"]["403"] = _error(403, operation)
    return found


def _as_query(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema["required"],
            "schema": {key: value for key, value in one.items() if key != "description"},
            "description": one.get("description", ""),
        }
        for name, one in schema["properties"].items()
    ]


def _content(answers: Mapping[str, type[BaseModel] | str]) -> dict[str, Any]:
    return {
        # A stream of events is not one string.
        kind: {} if kind == "text/event-stream" else {"schema": _schema(answer)}
        for kind, answer in answers.items()
    }


def _schema(answer: type[BaseModel] | str) -> dict[str, Any]:
    if not isinstance(answer, str):
        return {"$ref": _REF.format(model=answer.__name__)}
    return {"type": "object"} if answer == "object" else {"type": "string"}


def _error(status: int, operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": _REF.format(model="ErrorObject")}}
    }
    if operation.answers and "text/plain" in operation.answers:
        content["text/plain"] = {"schema": {"type": "string"}}
    if status == HTTPStatus.REQUEST_URI_TOO_LONG:
        content = {"text/html": {"schema": {"type": "string"}}}  # gunicorn's own answer
    found: dict[str, Any] = {"description": _REASONS[status], "content": content}
    if status in _WAITING:
        found["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
        }
    return found


def query_parameter(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    """A parameter of the query, for ``Operation.query``."""
    return {
        "name": name, "in": "query", "required": False,
        "schema": dict(schema), "description": description,
    }  # fmt: skip


IDEMPOTENCY_KEY: Mapping[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!-~]+$"},
    "description": "Any string of your own: with the same one a second request makes no second "
    "video, but is answered with the first.",
}
