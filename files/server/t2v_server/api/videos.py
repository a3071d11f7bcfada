"""``/v1/videos``: jobs and their videos, in the shape of OpenAI's Videos API."""

from __future__ import annotations

import re
from http import HTTPStatus

from flask import Blueprint, Response, request, send_file

from t2v_server.api.answers import json_answer
from t2v_server.api.auth import GENERATE, READ
from t2v_server.api.errors import ApiError
from t2v_server.api.openapi import IDEMPOTENCY_KEY, Operation, documented, query_parameter
from t2v_server.api.schemas import DeletedVideo, VideoList, VideoObject, video_object
from t2v_server.api.service import Service
from t2v_server.jobs.record import Completed, Job
from t2v_server.storage.videos import StorageError

_DEFAULT_LIMIT, _MOST = 20, 100
_RANGE = re.compile(r"bytes=\s*([0-9]+-[0-9]*|-[0-9]+)\s*")
_POLL_AFTER_MS = 500  # what the SDK's poller is told while a job is unfinished


def videos_blueprint(service: Service) -> Blueprint:
    blueprint = Blueprint("videos", __name__)

    def shown(job: Job) -> Response:
        response = json_answer(video_object(job, service.expires_after))
        response.headers["Cache-Control"] = "no-store"
        if not job.state.ended:
            response.headers["openai-poll-after-ms"] = str(_POLL_AFTER_MS)
        return response

    @blueprint.post("/v1/videos")
    @documented(
        Operation(
            "Make a video",
            "Answers at once with the job; look at it, or listen to its events, until it has "
            "ended.",
            scope=GENERATE,
            request=True,
            headers=[IDEMPOTENCY_KEY],
            answers={"application/json": VideoObject},
            errors=(400, 409, 413, 415, 429, 503, 507),
        )
    )
    def create_video() -> Response:
        return shown(service.accept().job)

    @blueprint.get("/v1/videos")
    @documented(
        Operation(
            "List videos",
            "Yours, whatever their state; everybody's with the scope t2v:admin, or while the "
            "server asks nobody who they are.",
            scope=READ,
            query=[
                query_parameter("after", {"type": "string"}, "The `last_id` of the page before."),
                query_parameter(
                    "limit",
                    {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": _MOST,
                        "default": _DEFAULT_LIMIT,
                    },
                    "How many at most.",
                ),
                query_parameter(
                    "order",
                    {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
                    "By time of acceptance.",
                ),
            ],
            answers={"application/json": VideoList},
            errors=(400, 414, 503),
        )
    )
    def list_videos() -> Response:
        client = service.client(READ)
        after, limit, newest_first = _page_wanted()
        page = service.store.list(
            service.owner_filter(client), after, limit, newest_first=newest_first
        )
        data = [video_object(job, service.expires_after) for job in page.jobs]
        response = json_answer(
            VideoList(
                data=data,
                has_more=page.has_more,
                first_id=data[0].id if data else None,
                last_id=data[-1].id if data else None,
            )
        )
        response.headers["Cache-Control"] = "no-store"
        return response

    @blueprint.get("/v1/videos/<video_id>")
    @documented(
        Operation(
            "Look at a video's job",
            scope=READ,
            answers={"application/json": VideoObject},
            errors=(404, 503),
        )
    )
    def get_video(video_id: str) -> Response:
        return shown(service.readable(video_id))

    @blueprint.delete("/v1/videos/<video_id>")
    @documented(
        Operation(
            "Delete a video",
            "Removes the job and its files. A job that an engine works on is stopped within one "
            "step.",
            scope=GENERATE,
            answers={"application/json": DeletedVideo},
            errors=(404, 500, 503),
        )
    )
    def delete_video(video_id: str) -> Response:
        job = service.job_for(service.client(GENERATE), video_id)
        try:
            if job.state.ended:  # what cannot be removed keeps its job, to be tried again
                service.videos.delete(video_id)
            service.store.delete(video_id)
            service.videos.delete(video_id)
        except StorageError as error:
            raise ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "storage_failed", str(error)
            ) from error
        return json_answer(DeletedVideo(id=video_id))

    @blueprint.post("/v1/videos/<video_id>/cancel")
    @documented(
        Operation(
            "Cancel a job",
            "A job that waits ends at once, one that an engine works on within one step; one "
            "that has ended stays as it is. Its `status` becomes `failed`, its error `cancelled`.",
            scope=GENERATE,
            answers={"application/json": VideoObject},
            errors=(404, 503),
        )
    )
    def cancel_video(video_id: str) -> Response:
        job = service.job_for(service.client(GENERATE), video_id)
        return shown(service.cancel(video_id) or job)

    @blueprint.get("/v1/videos/<video_id>/content")
    @documented(
        Operation(
            "Fetch a video",
            "The mp4 or its thumbnail, whole or in ranges.",
            scope=READ,
            query=[
                query_parameter(
                    "variant",
                    {"type": "string", "enum": ["video", "thumbnail"], "default": "video"},
                    "What to fetch.",
                )
            ],
            answers={"video/mp4": "binary", "image/jpeg": "binary"},
            more={206: "The range that was asked for."},
            errors=(400, 404, 409, 414, 416, 503),
        )
    )
    def get_video_content(video_id: str) -> Response:
        job = service.readable(video_id)
        variant = request.args.get("variant", "video")
        if variant not in ("video", "thumbnail"):
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                "invalid_parameter",
                "variant must be video or thumbnail",
                param="variant",
            )
        if not isinstance(job.outcome, Completed):
            raise ApiError(
                HTTPStatus.CONFLICT,
                "not_completed",
                f"there is no video: the job is {job.state.value}",
            )
        thumbnail = variant == "thumbnail"
        path = service.videos.thumbnail(job.id) if thumbnail else service.videos.path(job.id)
        if not _RANGE.fullmatch(request.headers.get("Range", "bytes=0-")):
            # RFC 9110: of what it does not understand, or several ranges, a server sends all.
            request.environ.pop("HTTP_RANGE")
        try:
            # A name is given once, so the id says which bytes these are.
            response = send_file(
                path,
                mimetype="image/jpeg" if thumbnail else "video/mp4",
                download_name=path.name,
                etag=f"{job.id}-{variant}",
            )
            response.headers["Cache-Control"] = "private, no-cache"
            return response
        except OSError as error:
            raise ApiError(
                HTTPStatus.NOT_FOUND, "not_found", f"the file {path.name} was removed"
            ) from error

    return blueprint


def _page_wanted() -> tuple[str | None, int, bool]:
    limit = request.args.get("limit", str(_DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MOST:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            "invalid_parameter",
            f"limit must be a whole number from 1 to {_MOST}",
            param="limit",
        )
    order = request.args.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(
            HTTPStatus.BAD_REQUEST, "invalid_parameter", "order must be asc or desc", param="order"
        )
    return request.args.get("after") or None, int(limit), order == "desc"
