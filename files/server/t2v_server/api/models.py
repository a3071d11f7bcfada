"""``/v1/models``: the model of this server, its defaults and its limits."""

from __future__ import annotations

import time

from flask import Blueprint, Response

from t2v_server.api.answers import json_answer
from t2v_server.api.auth import READ
from t2v_server.api.openapi import Operation, documented
from t2v_server.api.schemas import ModelList, model_object
from t2v_server.api.service import Service
from t2v_server.profiles import Limits, Profile, VideoParameters


def models_blueprint(
    service: Service, profile: Profile, video: VideoParameters, limits: Limits
) -> Blueprint:
    blueprint = Blueprint("models", __name__)
    model = model_object(service.model, profile, video, limits, int(time.time()))

    @blueprint.get("/v1/models")
    @documented(
        Operation(
            "The model, its defaults and its limits",
            tag="service",
            scope=READ,
            answers={"application/json": ModelList},
        )
    )
    def list_models() -> Response:
        service.client(READ)
        return json_answer(ModelList(data=[model]))

    return blueprint
