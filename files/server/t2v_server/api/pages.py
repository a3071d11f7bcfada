"""``/`` and the answers to what does not exist."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Flask, Response
from werkzeug.exceptions import HTTPException

from t2v_server.api.answers import problem
from t2v_server.profiles import VideoParameters


def pages_blueprint(model: str, video: VideoParameters, instance: str) -> Blueprint:
    blueprint = Blueprint("pages", __name__)
    text = f"""\
sanchuang.t2v: text to video

  GET  /generate?prompt=a%20dog%20running   generate a video, answer with its path
  POST /generate                            the same; prompt and seed as form or JSON
  GET  /ready                               200 when the model is loaded and warm
  GET  /healthz                             200 when the process is alive
  GET  /metrics                             Prometheus metrics

model {model}, {video.width}x{video.height}, {video.num_frames} frames at {video.fps} fps, \
{video.num_inference_steps} steps
instance {instance}
"""

    @blueprint.get("/")
    def index() -> Response:
        return Response(text, mimetype="text/plain")

    return blueprint


def answer_errors_briefly(app: Flask) -> None:
    """Answer 404, 405, 413 and the like as every other error: one line, or JSON."""

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
        response = problem(status, status.name.lower(), status.phrase.lower())
        allow = dict(error.get_headers()).get("Allow")
        if allow:
            response.headers["Allow"] = allow
        return response
