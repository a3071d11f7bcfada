"""What goes over the wire: requests, answers, and their JSON schemas, from the same classes."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from t2v_server.api.errors import ApiError
from t2v_server.api.images import IMAGE
from t2v_server.jobs.record import Completed, Failed, Job, Parameters
from t2v_server.profiles import FRAMES_STEP, SIZE_MULTIPLE, Limits, Profile, VideoParameters

MAX_SEED = 2**63 - 1
_RANDOM_SEED_BITS = 32
_SECONDS = (  # more than 0
    r"^(0{0,3}[1-9][0-9]{0,2}(\.[0-9]{1,6})?|[0-9]{1,3}\.[0-9]{0,5}[1-9][0-9]{0,5})$"
)
_REUSED_SEED = 0


def _whole(value: object) -> object:
    """JSON does not tell 3.0 from 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, Field(ge=-(10**19), le=10**19), BeforeValidator(_whole)]


class VideoRequest(BaseModel):
    """A video to make. What is left out is the server's default for its model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(description="What the video shows.")]
    negative_prompt: Annotated[str, Field(description="What it should not show.")] = ""
    model: Annotated[str | None, Field(description="The model this server runs.")] = None
    size: Annotated[
        str | None,
        Field(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$", description="WIDTHxHEIGHT in pixels."),
    ] = None
    width: Annotated[Whole | None, Field(description="Pixels; stands above `size`.")] = None
    height: Annotated[Whole | None, Field(description="Pixels; stands above `size`.")] = None
    seconds: Annotated[
        Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
        | Annotated[str, Field(pattern=_SECONDS)]
        | None,
        Field(description="Length; rounded to a number of frames that the model can make."),
    ] = None
    num_frames: Annotated[
        Whole | None, Field(description="Frames, 4k+1; stands above `seconds`.")
    ] = None
    fps: Annotated[Whole | None, Field(description="Frames per second of the file.")] = None
    num_inference_steps: Annotated[Whole | None, Field(description="Denoising steps.")] = None
    guidance_scale: Annotated[
        float | None,
        Field(description="Classifier-free guidance; at most 1 switches it off."),
    ] = None
    flow_shift: Annotated[
        float | None,
        Field(description="Shifts the noise schedule; larger for larger videos."),
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_whole)] | None,
        Field(description="The same seed and parameters make the same video."),
    ] = None
    reuse: Annotated[
        bool | None,
        Field(
            description="Whether an equal video, made or being made for this client, may be "
            "returned instead; without a seed, seed 0 is meant then."
        ),
    ] = None


_NUMBERS = {
    "width", "height", "num_frames", "fps", "num_inference_steps", "seed",
}  # fmt: skip
_FLOATS = {"guidance_scale", "flow_shift", "seconds"}


@dataclass(frozen=True)
class Wanted:
    """A validated request. ``digest`` is of what the client gave, equal for equal requests."""

    parameters: Parameters
    reuse: bool
    digest: str


class RequestRules:
    """Turns requests into parameters that this server's model can make."""

    def __init__(
        self,
        model: str,
        video: VideoParameters,
        limits: Limits,
        *,
        reuse: bool,
        images: bool = True,
    ) -> None:
        """``images``: whether a video may begin with one."""
        self._model = model
        self._video = video
        self._limits = limits
        self._reuse = reuse
        self._images = images

    def read(
        self, fields: Mapping[str, object], *, typed: bool, image: bytes | None = None
    ) -> Wanted:
        """Validate; ``typed``: the fields come from JSON, and not as strings from a form.

        ``image`` was looked at already.

        Raises:
            ApiError: 400, with the name of the parameter that is wrong.
        """
        given = dict(fields) if typed else _from_form(fields)
        prompt = given.get("prompt")
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            raise _bad("missing_prompt", "missing prompt", "prompt")
        for name in given:
            if name not in VideoRequest.model_fields:
                raise _unknown(name)
        try:
            request = VideoRequest.model_validate(given)
        except ValidationError as error:
            raise _explained(error) from error
        prompt = request.prompt.strip()
        for name, text in (("prompt", prompt), ("negative_prompt", request.negative_prompt)):
            if not _is_unicode(text):
                raise _bad("invalid_parameter", f"{name} must be valid Unicode", name)
            if len(text) > self._limits.max_prompt_chars:
                raise _bad(
                    "prompt_too_long",
                    f"{name.replace('_', ' ')} too long: {len(text)} characters, "
                    f"at most {self._limits.max_prompt_chars}",
                    name,
                )
        if request.model not in (None, self._model):
            raise _bad("invalid_parameter", f"model must be {self._model}", "model")
        video = self._video_of(request)
        for name, sentence in self._limits.violations(video):
            raise _bad("invalid_parameter", sentence, name)
        if image is not None and not self._images:
            raise _bad(
                "invalid_parameter", f"{IMAGE} is not possible with the profile of this server",
                IMAGE,
            )  # fmt: skip
        reuse = self._reuse if request.reuse is None else request.reuse
        seed = request.seed
        if seed is None:
            seed = _REUSED_SEED if reuse else secrets.randbits(_RANDOM_SEED_BITS)
        text = json.dumps(request.model_dump(exclude_unset=True), sort_keys=True)
        shown = None if image is None else hashlib.sha256(image).hexdigest()
        if shown is not None:
            text += shown
        return Wanted(
            Parameters(prompt, request.negative_prompt.strip(), seed, video, shown),
            reuse,
            hashlib.sha256(text.encode()).hexdigest(),
        )

    def _video_of(self, request: VideoRequest) -> VideoParameters:
        default = self._video
        width, height = default.width, default.height
        if request.size is not None:
            width, height = (int(side) for side in request.size.split("x"))
        fps = _or(request.fps, default.fps)
        frames = default.num_frames
        if request.seconds is not None:
            frames = _frames_of(float(request.seconds), fps, self._limits)
        return VideoParameters(
            width=_or(request.width, width),
            height=_or(request.height, height),
            num_frames=_or(request.num_frames, frames),
            num_inference_steps=_or(request.num_inference_steps, default.num_inference_steps),
            guidance_scale=_or(request.guidance_scale, default.guidance_scale),
            flow_shift=_or(request.flow_shift, default.flow_shift),
            fps=fps,
        )

    def json_schema(self) -> dict[str, Any]:
        """The schema of a request, with the limits of this server."""
        schema = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        properties, limits, video = schema["properties"], self._limits, self._video
        sides = {"minimum": SIZE_MULTIPLE, "maximum": limits.max_side, "multipleOf": SIZE_MULTIPLE}
        bounds: dict[str, dict[str, Any]] = {
            "prompt": {"minLength": 1, "maxLength": limits.max_prompt_chars, "pattern": r"\S"},
            "negative_prompt": {"maxLength": limits.max_prompt_chars},
            "model": {"enum": [self._model]},
            "size": {"examples": [f"{video.width}x{video.height}"]},
            "width": {**sides, "default": video.width},
            "height": {**sides, "default": video.height},
            "num_frames": {
                "enum": list(range(1, limits.max_frames + 1, FRAMES_STEP)),
                "default": video.num_frames,
            },
            "num_inference_steps": {
                "minimum": limits.min_steps, "maximum": limits.max_steps,
                "default": video.num_inference_steps,
            },
            "guidance_scale": {
                "minimum": 0, "maximum": limits.max_guidance_scale,
                "default": video.guidance_scale,
            },
            "flow_shift": {
                "minimum": 0.01, "maximum": limits.max_flow_shift, "default": video.flow_shift,
            },
            "fps": {"minimum": 1, "maximum": limits.max_fps, "default": video.fps},
            "seed": {},
            "reuse": {"default": self._reuse},
        }  # fmt: skip
        for name, bound in bounds.items():
            # Left out is how a value is not given; null would be one more way to say it.
            one = properties[name].pop("anyOf", [{}])[0]
            properties[name].pop("default", None)
            properties[name] = {**one, **properties[name], **bound}
        length = properties["seconds"]
        length["anyOf"] = [one for one in length["anyOf"] if one.get("type") != "null"]
        length.pop("default", None)
        return schema

    def form_schema(self) -> dict[str, Any]:
        """As ``json_schema``, with the one parameter that only a form can carry."""
        schema = self.json_schema()
        schema["title"] = "VideoForm"
        if self._images:
            schema["properties"][IMAGE] = {
                "type": "string",
                "format": "binary",
                "title": "Input Reference",
                "description": "A JPEG, PNG or WebP image that the video begins with. It is cut to "
                "the video's shape around its middle.",
            }
        return schema


Given = TypeVar("Given")


def _or(given: Given | None, default: Given) -> Given:
    return default if given is None else given


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which nothing can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _frames_of(seconds: float, fps: int, limits: Limits) -> int:
    """The number of frames of the form 4k+1 nearest to that length."""
    steps = round((seconds * fps - 1) / FRAMES_STEP)
    return max(steps, 0) * FRAMES_STEP + 1


def _from_form(fields: Mapping[str, object]) -> dict[str, object]:
    """Strings to what they stand for; what stands for nothing is left for the validation."""
    given: dict[str, object] = {}
    for name, value in fields.items():
        text = str(value).strip()
        if name in ("prompt", "negative_prompt"):
            given[name] = value
        elif name in _NUMBERS and _DIGITS.fullmatch(text):
            given[name] = int(text)
        elif name in _FLOATS and _DECIMAL.fullmatch(text):
            given[name] = float(text)
        elif name == "reuse" and text.lower() in _SWITCH:
            given[name] = _SWITCH[text.lower()]
        else:
            given[name] = value
    return given


_DIGITS = re.compile(r"-?[0-9]{1,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?")
_SWITCH = {"true": True, "false": False}

# What pydantic calls a mistake, in our words.
_EXPECTED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "bool_type": "must be true or false",
    "less_than_equal": "is too large",
    "greater_than_equal": "is too small",
}


def _explained(error: ValidationError) -> ApiError:
    mistake = error.errors(include_url=False, include_input=False)[0]
    name = str(mistake["loc"][0]) if mistake["loc"] else ""
    if name == "seed":
        return _bad("invalid_parameter", f"seed must be a whole number from 0 to {MAX_SEED}", name)
    if name == "size":
        return _bad("invalid_parameter", "size must be WIDTHxHEIGHT, such as 1280x704", name)
    if name == "seconds":
        return _bad("invalid_parameter", "seconds must be a number above 0, at most 3600", name)
    expected = _EXPECTED.get(mistake["type"], f"is not usable: {mistake['msg']}")
    return _bad("invalid_parameter", f"{name} {expected}", name)


def _unknown(name: str) -> ApiError:
    if name == IMAGE:
        return _bad("invalid_parameter", f"{IMAGE} must be a file of a multipart form", name)
    shown = name[:80].encode(errors="replace").decode()
    return _bad("unknown_parameter", f"{shown} is not a parameter", shown)


def _bad(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, code, message, param=param)


class StageObject(BaseModel):
    """What the engine does with the job: `done` of `total` steps or latent frames."""

    name: Literal["encoding_prompt", "denoising", "decoding", "writing"]
    done: int
    total: int


class JobError(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A job and, once it is completed, its video. Times are Unix seconds."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: Annotated[int, Field(ge=0, le=100, description="Percent.")]
    stage: StageObject | None
    cancel_requested: bool
    attempts: Annotated[int, Field(description="Engines that have taken it so far.")]
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    prompt: str
    negative_prompt: str
    size: str
    seconds: str
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    seed: int
    input_reference: Annotated[
        str | None, Field(description="SHA-256 of the image that it begins with.")
    ]
    error: JobError | None
    file_name: str | None
    num_bytes: int | None
    inference_time_s: float | None
    peak_memory_mb: float | None
    remixed_from_video_id: None = None


def video_object(job: Job, expires_after: int | None) -> VideoObject:
    """The job as its clients see it; ``expires_after`` is seconds from its end."""
    video, outcome = job.parameters.video, job.outcome
    completed = outcome if isinstance(outcome, Completed) else None
    failed = outcome if isinstance(outcome, Failed) else None
    expires_at = None
    if expires_after is not None and job.ended_at is not None:
        expires_at = int(job.ended_at + expires_after)
    progress = job.progress
    return VideoObject(
        id=job.id,
        model=job.model,
        status=job.state.value,
        progress=100 if completed else (progress.percent if progress else 0),
        stage=None
        if progress is None or job.state.ended
        else StageObject(name=progress.stage.value, done=progress.done, total=progress.total),
        cancel_requested=job.cancel_requested,
        attempts=job.attempts,
        created_at=int(job.created_at),
        started_at=None if job.started_at is None else int(job.started_at),
        completed_at=int(job.ended_at) if completed and job.ended_at is not None else None,
        expires_at=expires_at,
        prompt=job.parameters.prompt,
        negative_prompt=job.parameters.negative_prompt,
        size=f"{video.width}x{video.height}",
        seconds=f"{video.num_frames / video.fps:.3f}".rstrip("0").rstrip("."),
        **asdict(video),
        seed=job.parameters.seed,
        input_reference=job.parameters.image,
        error=None if failed is None else JobError(code=failed.reason, message=failed.message),
        file_name=completed.file_name if completed else None,
        num_bytes=completed.num_bytes if completed else None,
        inference_time_s=completed.generation_seconds if completed else None,
        peak_memory_mb=round(completed.peak_memory_bytes / 1e6, 1) if completed else None,
    )


class VideoList(BaseModel):
    """A page of videos; `last_id` is the next page's `after`."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelDefaults(BaseModel):
    """What a request gets that does not say."""

    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    fps: int


class ModelLimits(BaseModel):
    """What may be asked for: sizes in steps of `size_multiple`, `frames_step` * k + 1 frames."""

    size_multiple: int
    frames_step: int
    max_side: int
    max_pixels: int
    max_frames: int
    max_steps: int
    max_prompt_chars: int
    min_steps: int
    max_guidance_scale: float
    max_flow_shift: float
    max_fps: int


class ModelProfile(BaseModel):
    """How the model is run here: what to expect of the defaults, and how good they are."""

    name: str
    title: str
    quality: str
    expected_seconds: float
    expected_source: str


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    profile: ModelProfile
    input_reference: Annotated[bool, Field(description="Whether a video may begin with an image.")]
    defaults: ModelDefaults
    limits: ModelLimits


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


def model_object(
    model: str, profile: Profile, video: VideoParameters, limits: Limits, created: int
) -> ModelObject:
    return ModelObject(
        id=model,
        created=created,
        owned_by="sanchuang.t2v",
        profile=ModelProfile(
            name=profile.name,
            title=profile.title,
            quality=profile.quality,
            expected_seconds=profile.expected.seconds,
            expected_source=profile.expected.source,
        ),
        input_reference=profile.images,
        defaults=ModelDefaults(**asdict(video)),
        limits=ModelLimits(size_multiple=SIZE_MULTIPLE, frames_step=FRAMES_STEP, **asdict(limits)),
    )


class ErrorDetail(BaseModel):
    code: str
    message: str
    type: str
    param: str | None


class ErrorObject(BaseModel):
    """Every error has this shape; `code` is stable."""

    error: ErrorDetail


class Generated(BaseModel):
    """A finished generation; `path` is where the server's host has the file."""

    id: str
    path: str
    prompt: str
    seed: int
    bytes: int
    seconds: float


class ReadyObject(BaseModel):
    ready: bool
    state: str
    message: str
    model: str
    instance: str
