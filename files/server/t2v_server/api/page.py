"""The page at ``/``, its files, and the documents for whoever writes a client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, render_template, send_from_directory

from t2v_server.api.openapi import Operation, documented

STATIC = Path(__file__).with_name("static")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_FRESH_SECONDS = 300


def page_blueprint(describe: Callable[[], dict[str, Any]]) -> Blueprint:
    blueprint = Blueprint("page", __name__, template_folder="templates")

    def page(name: str) -> Response:
        response = send_from_directory(STATIC, name)
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        response.headers["Referrer-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-cache"
        return response

    @blueprint.get("/")
    @documented(Operation("The page", tag="service", answers={"text/html": "text"}))
    def index() -> Response:
        return page("index.html")

    @blueprint.get("/docs")
    @documented(Operation("This document, readable", tag="service", answers={"text/html": "text"}))
    def docs() -> Response:
        response = Response(render_template("docs.html", api=describe()), mimetype="text/html")
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    @blueprint.get("/static/<path:name>")
    def static(name: str) -> Response:
        return send_from_directory(STATIC, name, max_age=_FRESH_SECONDS)

    @blueprint.get("/openapi.json")
    @documented(Operation("This document", tag="service", answers={"application/json": "object"}))
    def openapi() -> Response:
        return jsonify(describe())

    return blueprint
