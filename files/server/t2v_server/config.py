"""The server's settings: read once from ``T2V_*`` variables or a file, checked, then frozen."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import read_manifest
from t2v_server.gpu import smallest_gpu_bytes
from t2v_server.profiles import (
    PROFILES,
    TINY_MODEL,
    Limits,
    Profile,
    VideoParameters,
    choose_profile,
)

FROM_PROFILE = "the profile's"
FROM_HOST = "the host name"
NOTHING = "none"

# Every variable and its default, as README.md lists them.
DEFAULTS: Mapping[str, str] = {
    "T2V_CONFIG": NOTHING,
    "T2V_BIND": "0.0.0.0:8080",
    "T2V_OUTPUT_DIR": "/shared/videos",
    "T2V_STATE_DIR": "/var/lib/t2v",
    "T2V_INSTANCE": FROM_HOST,
    "T2V_HTTP_WORKERS": "1",
    "T2V_ENGINES": "1",
    # The model, and what it generates when a request does not say.
    "T2V_MODEL": "tiny",
    "T2V_PROFILE": "auto",
    "T2V_DEVICE": "auto",
    "T2V_DTYPE": "auto",
    "T2V_TORCH_THREADS": "auto",
    "T2V_BLOCK_CACHE": "none",
    "T2V_BLOCK_CACHE_THRESHOLD": "0.08",
    "T2V_LORA": NOTHING,
    "T2V_LORA_SCALE": "1",
    "T2V_TINY_DECODER": NOTHING,
    "T2V_ENCODER": "auto",
    "T2V_WIDTH": FROM_PROFILE,
    "T2V_HEIGHT": FROM_PROFILE,
    "T2V_FRAMES": FROM_PROFILE,
    "T2V_STEPS": FROM_PROFILE,
    "T2V_GUIDANCE_SCALE": FROM_PROFILE,
    "T2V_FLOW_SHIFT": FROM_PROFILE,
    "T2V_FPS": FROM_PROFILE,
    "T2V_MAX_PIXELS": FROM_PROFILE,
    "T2V_MAX_FRAMES": FROM_PROFILE,
    "T2V_MAX_STEPS": FROM_PROFILE,
    "T2V_MAX_PROMPT_CHARS": FROM_PROFILE,
    # Jobs.
    "T2V_STORE": "sqlite",
    "T2V_REDIS_PASSWORD_FILE": NOTHING,
    "T2V_QUEUE_SIZE": "64",
    "T2V_MAX_ATTEMPTS": "3",
    "T2V_LEASE": "30",
    "T2V_REUSE": "off",
    "T2V_GRACEFUL_TIMEOUT": "600",
    # Videos.
    "T2V_SWEEP_AGE": "86400",
    "T2V_RETENTION_AGE": "0",
    "T2V_RETENTION_BYTES": "0",
    "T2V_MIN_FREE_BYTES": "268435456",
    # Clients.
    "T2V_API_KEYS_FILE": NOTHING,
    "T2V_JWT_JWKS_URL": NOTHING,
    "T2V_JWT_KEY_FILE": NOTHING,
    "T2V_JWT_ALGORITHMS": "RS256,ES256,EdDSA",
    "T2V_JWT_ISSUER": NOTHING,
    "T2V_JWT_AUDIENCE": NOTHING,
    "T2V_RATE_LIMIT": NOTHING,
    "T2V_CLIENT_ACTIVE": "0",
    "T2V_CLIENT_DAILY": "0",
    "T2V_MAX_STREAMS": "64",
    "T2V_TRUSTED_PROXIES": "0",
    # Logs.
    "T2V_LOG_LEVEL": "info",
    "T2V_LOG_FORMAT": "text",
    "T2V_LOG_PROMPTS": "off",
}

# Of the command ``generate --server``, and between the server's own processes.
_NOT_SETTINGS = ("T2V_TOKEN", "T2V_PARENT_PID", "T2V_LISTENER_FD")

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
BLOCK_CACHES = ("none", "first-block", "taylorseer")
ENCODERS = ("auto", "libx264", "h264_nvenc")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
SYMMETRIC = ("HS256", "HS384", "HS512")
ASYMMETRIC = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip

# Threads beyond those that wait, so that probes and scrapes are always answered.
SPARE_HTTP_THREADS = 16

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NOT_IN_INSTANCE = re.compile(r"[^A-Za-z0-9._-]")
_BIND = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_REDIS_URL = re.compile(r"(?:redis|rediss)://[^\s/@]+(?:/\d{1,4})?")
_HTTP_URL = re.compile(r"https?://[^\s/]+(?:/\S*)?")
_RATE = re.compile(r"([1-9]\d{0,8})/(second|minute|hour|day)")


class ConfigError(ValueError):
    """A setting is unusable; the message says which, why, and what to set."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine process loads, and on what. ``torch_threads`` None: PyTorch's choice."""

    model: str
    profile: Profile
    device: str
    dtype: str
    torch_threads: int | None
    block_cache: str
    block_cache_threshold: float
    lora: Path | None
    lora_scale: float
    tiny_decoder: Path | None
    encoder: str


@dataclass(frozen=True)
class RedisSettings:
    url: str
    password_file: Path | None


@dataclass(frozen=True)
class JobSettings:
    """``redis`` None: SQLite in the state directory. ``lease`` is seconds."""

    redis: RedisSettings | None
    queue_size: int
    max_attempts: int
    lease: int
    reuse: bool


@dataclass(frozen=True)
class RetentionSettings:
    """Seconds and bytes; ``None``: without bound."""

    max_age: int | None
    max_bytes: int | None
    min_free_bytes: int


@dataclass(frozen=True)
class JwtSettings:
    """Where the keys are: either ``jwks_url`` or ``key_file``. ``audience`` is required."""

    jwks_url: str | None
    key_file: Path | None
    algorithms: tuple[str, ...]
    issuer: str | None
    audience: str


@dataclass(frozen=True)
class RateLimit:
    """``amount`` requests in each ``period``."""

    amount: int
    period: Literal["second", "minute", "hour", "day"]


@dataclass(frozen=True)
class ClientSettings:
    """Who may ask, and how much. ``None``: without bound, or not used."""

    api_keys_file: Path | None
    jwt: JwtSettings | None
    rate_limit: RateLimit | None
    max_active: int | None
    max_daily: int | None
    max_streams: int
    trusted_proxies: int

    @property
    def authenticated(self) -> bool:
        """Whether a request must say who it comes from."""
        return self.api_keys_file is not None or self.jwt is not None


@dataclass(frozen=True)
class LogSettings:
    level: str
    format: str
    prompts: bool


@dataclass(frozen=True)
class Settings:
    """The validated settings of one server. Durations are seconds."""

    bind: str
    output_dir: Path
    state_dir: Path
    instance: str
    http_workers: int
    engines: int
    graceful_timeout: int
    sweep_age: int
    engine: EngineSettings
    video: VideoParameters
    limits: Limits
    jobs: JobSettings
    retention: RetentionSettings
    clients: ClientSettings
    log: LogSettings

    @property
    def http_threads(self) -> int:
        """Threads of an HTTP worker: all that can wait, all that can watch, and the spare."""
        return self.jobs.queue_size + self.engines + self.clients.max_streams + SPARE_HTTP_THREADS

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and validate every variable; those of the file ``T2V_CONFIG`` stand behind.

        Raises:
            ConfigError: at the first variable that cannot be used.
        """
        read = _Reader(with_file(environ))
        model = read.text("T2V_MODEL")
        device = read.choice("T2V_DEVICE", DEVICES)
        profile = read.profile("T2V_PROFILE", model, device)
        video, limits = read.video_and_limits(profile)
        settings = cls(
            bind=read.bind("T2V_BIND"),
            output_dir=read.absolute_path("T2V_OUTPUT_DIR", "/shared/videos"),
            state_dir=read.absolute_path("T2V_STATE_DIR", "/var/lib/t2v"),
            instance=read.instance("T2V_INSTANCE"),
            http_workers=read.integer("T2V_HTTP_WORKERS", 1, 64),
            engines=read.integer("T2V_ENGINES", 0, 64),
            graceful_timeout=read.integer("T2V_GRACEFUL_TIMEOUT", 1, 86_400),
            sweep_age=read.integer("T2V_SWEEP_AGE", 60, 31_536_000),
            engine=EngineSettings(
                model=model,
                profile=profile,
                device=device,
                dtype=read.dtype("T2V_DTYPE", model),
                torch_threads=read.integer_or_auto("T2V_TORCH_THREADS", 1, 1024),
                block_cache=read.choice("T2V_BLOCK_CACHE", BLOCK_CACHES),
                block_cache_threshold=read.number("T2V_BLOCK_CACHE_THRESHOLD", 0.0001, 1, 0.08),
                lora=read.file("T2V_LORA"),
                lora_scale=read.number("T2V_LORA_SCALE", -10, 10, 1.0),
                tiny_decoder=read.file("T2V_TINY_DECODER"),
                encoder=read.choice("T2V_ENCODER", ENCODERS),
            ),
            video=video,
            limits=limits,
            jobs=JobSettings(
                redis=read.redis("T2V_STORE", "T2V_REDIS_PASSWORD_FILE"),
                queue_size=read.integer("T2V_QUEUE_SIZE", 1, 4096),
                max_attempts=read.integer("T2V_MAX_ATTEMPTS", 1, 100),
                lease=read.integer("T2V_LEASE", 1, 3600),
                reuse=read.switch("T2V_REUSE"),
            ),
            retention=RetentionSettings(
                max_age=read.integer("T2V_RETENTION_AGE", 0, 3_153_600_000) or None,
                max_bytes=read.integer("T2V_RETENTION_BYTES", 0, 1 << 60) or None,
                min_free_bytes=read.integer("T2V_MIN_FREE_BYTES", 0, 1 << 60),
            ),
            clients=ClientSettings(
                api_keys_file=read.file("T2V_API_KEYS_FILE"),
                jwt=read.jwt(),
                rate_limit=read.rate("T2V_RATE_LIMIT"),
                max_active=read.integer("T2V_CLIENT_ACTIVE", 0, 1_000_000) or None,
                max_daily=read.integer("T2V_CLIENT_DAILY", 0, 1_000_000_000) or None,
                max_streams=read.integer("T2V_MAX_STREAMS", 1, 4096),
                trusted_proxies=read.integer("T2V_TRUSTED_PROXIES", 0, 16),
            ),
            log=LogSettings(
                level=read.choice("T2V_LOG_LEVEL", LOG_LEVELS),
                format=read.choice("T2V_LOG_FORMAT", LOG_FORMATS),
                prompts=read.switch("T2V_LOG_PROMPTS"),
            ),
        )
        _agree(settings)
        return settings


def with_file(environ: Mapping[str, str]) -> Mapping[str, str]:
    """``environ``, and behind it what the TOML file of ``T2V_CONFIG`` sets.

    The file's keys are the variables' names without the prefix, in lower case:
    ``output_dir = "/shared/videos"``.

    Raises:
        ConfigError: when there is no such file, or it holds what is no setting.
    """
    name = environ.get("T2V_CONFIG", "").strip()
    if not name:
        return environ
    try:
        table = tomllib.loads(Path(name).read_text())
    except OSError as error:
        raise ConfigError(
            f"T2V_CONFIG={name!r} cannot be read ({error.strerror}): set it to a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"T2V_CONFIG: {name} is not TOML: {error}.") from error
    given: dict[str, str] = {}
    for key, value in table.items():
        variable = f"T2V_{key.upper()}"
        if variable not in DEFAULTS or variable == "T2V_CONFIG" or key != key.lower():
            raise ConfigError(
                f"T2V_CONFIG: {name} sets {key!r}, which is no setting: "
                "use the names of the variables without T2V_, in lower case."
            )
        if isinstance(value, bool):
            given[variable] = "on" if value else "off"
        elif isinstance(value, (str, int, float)):
            given[variable] = str(value)
        else:
            raise ConfigError(
                f"T2V_CONFIG: {name} sets {key!r} to a {type(value).__name__}: "
                "set it to a string, a number or a truth value."
            )
    return {**given, **{name: value for name, value in environ.items() if value.strip()}}


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Names that look like settings of this server and are none: most often a typo."""
    known = {*DEFAULTS, *_NOT_SETTINGS}
    return sorted(name for name in environ if name.startswith("T2V_") and name not in known)


def _agree(settings: Settings) -> None:
    """Refuse settings that are fine one by one and not together."""
    if settings.clients.rate_limit and settings.http_workers > 1 and not settings.jobs.redis:
        raise ConfigError(
            f"T2V_RATE_LIMIT cannot be counted across T2V_HTTP_WORKERS={settings.http_workers} "
            "processes without Redis: set T2V_HTTP_WORKERS to 1 or T2V_STORE to a redis:// URL."
        )
    for name, value in (
        ("T2V_CLIENT_ACTIVE", settings.clients.max_active),
        ("T2V_CLIENT_DAILY", settings.clients.max_daily),
    ):
        if value and not settings.clients.authenticated:
            raise ConfigError(
                f"{name}={value} counts by client, and this server asks nobody who they are: "
                "set T2V_API_KEYS_FILE or T2V_JWT_… as well, or leave it out."
            )
    if not settings.engines and not settings.jobs.redis:
        raise ConfigError(
            "T2V_ENGINES=0 leaves the jobs to other hosts, which cannot see this one's SQLite "
            "file: set T2V_STORE to a redis:// URL, or T2V_ENGINES to 1."
        )


def _prepared_for(model: str) -> str | None:
    """The profile of a prepared checkpoint; of a damaged one the engine says what is wrong."""
    with suppress(CheckpointError):
        profile = read_manifest(Path(model)).profile
        return profile if profile in PROFILES else None
    return None


class _Reader:
    """Takes single values out of an environment; a blank value counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def given(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def text(self, name: str) -> str:
        return self.given(name) or DEFAULTS[name]

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name).lower()
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} is not known: set it to {_one_of(allowed)}.")
        return value

    def switch(self, name: str) -> bool:
        return self.choice(name, ("on", "off")) == "on"

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        given = self.given(name)
        if given is None and default is not None:
            return default
        value = given or DEFAULTS[name]
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ConfigError(
                f"{name}={value!r} is not usable: set it to a whole number from {low} to {high}."
            )
        return number

    def integer_or_auto(self, name: str, low: int, high: int) -> int | None:
        return None if self.text(name).lower() == "auto" else self.integer(name, low, high)

    def number(self, name: str, low: float, high: float, default: float) -> float:
        given = self.given(name)
        if given is None:
            return default
        try:
            number = float(given)
        except ValueError:
            number = low - 1
        if not low <= number <= high:  # also refuses NaN
            raise ConfigError(
                f"{name}={given!r} is not usable: set it to a number from {low:g} to {high:g}."
            )
        return number

    def size(self, name: str, default: int) -> int:
        pixels = self.integer(name, 32, 4096, default)
        if pixels % 32:
            raise ConfigError(
                f"{name}={pixels} is not a multiple of 32, which Wan2.2-TI2V needs: "
                f"set it to {pixels // 32 * 32} or {pixels // 32 * 32 + 32}."
            )
        return pixels

    def frames(self, name: str, default: int) -> int:
        frames = self.integer(name, 1, 1001, default)
        if frames % 4 != 1:
            lower = (frames - 1) // 4 * 4 + 1
            raise ConfigError(
                f"{name}={frames} is not of the form 4k+1, which the Wan VAE needs: "
                f"set it to {lower} or {lower + 4}."
            )
        return frames

    def video_and_limits(self, profile: Profile) -> tuple[VideoParameters, Limits]:
        """The defaults, and limits that are never below them unless the operator says so."""
        default, limits = profile.defaults, profile.limits
        video = VideoParameters(
            width=self.size("T2V_WIDTH", default.width),
            height=self.size("T2V_HEIGHT", default.height),
            num_frames=self.frames("T2V_FRAMES", default.num_frames),
            num_inference_steps=self.integer("T2V_STEPS", 1, 1000, default.num_inference_steps),
            guidance_scale=self.number("T2V_GUIDANCE_SCALE", 0, 50, default.guidance_scale),
            flow_shift=self.number("T2V_FLOW_SHIFT", 0.01, 50, default.flow_shift),
            fps=self.integer("T2V_FPS", 1, 120, default.fps),
        )
        pixels = max(limits.max_pixels, video.width * video.height)
        frames = max(limits.max_frames, video.num_frames)
        steps = max(limits.max_steps, video.num_inference_steps)
        if profile.schedule is not None:  # then no setting makes another number of steps possible
            steps = limits.max_steps
        limits = replace(
            limits,
            max_side=max(limits.max_side, video.width, video.height),
            max_pixels=self.integer("T2V_MAX_PIXELS", 1024, 4096 * 4096, pixels),
            max_frames=self.integer("T2V_MAX_FRAMES", 1, 1001, frames),
            max_steps=self.integer("T2V_MAX_STEPS", 1, 1000, steps)
            if profile.schedule is None
            else steps,
            max_prompt_chars=self.integer(
                "T2V_MAX_PROMPT_CHARS", 1, 20_000, limits.max_prompt_chars
            ),
        )
        for _, sentence in limits.violations(video):
            raise ConfigError(
                f"the defaults of a request are beyond its limits: {sentence}: "
                "set T2V_WIDTH, T2V_HEIGHT, T2V_FRAMES and T2V_STEPS within T2V_MAX_…."
            )
        return video, limits

    def profile(self, name: str, model: str, device: str) -> Profile:
        value = self.text(name).lower()
        if value != "auto" and value not in PROFILES:
            raise ConfigError(
                f"{name}={value!r} is not known: set it to {_one_of(('auto', *PROFILES))}."
            )
        if value == "auto":
            value = _prepared_for(model) or value
        gpu_bytes = None
        if value == "auto" and model != TINY_MODEL and device != "cpu":
            gpu_bytes = smallest_gpu_bytes()
        try:
            return choose_profile(None if value == "auto" else value, model, gpu_bytes)
        except ValueError as error:
            raise ConfigError(
                f"{name} is auto, and {error}: set it to {_one_of(tuple(PROFILES))}, "
                "or T2V_DEVICE to cpu."
            ) from error

    def dtype(self, name: str, model: str) -> str:
        dtype = self.choice(name, DTYPES)
        if model == TINY_MODEL and dtype not in ("auto", "float32"):
            raise ConfigError(
                f"{name}={dtype!r} does not apply to the tiny model, which is float32: "
                "unset it or set T2V_MODEL to another model."
            )
        return dtype

    def bind(self, name: str) -> str:
        value = self.text(name)
        match = _BIND.fullmatch(value)
        if not match or int(match["port"]) > 65535:
            raise ConfigError(
                f"{name}={value!r} is not an address to listen on: "
                "set it to HOST:PORT, such as 0.0.0.0:8080."
            )
        return value

    def absolute_path(self, name: str, example: str) -> Path:
        path = Path(self.text(name))
        if not path.is_absolute():
            raise ConfigError(
                f"{name}={str(path)!r} is not an absolute path: set it to a directory such as "
                f"{example}."
            )
        return path

    def file(self, name: str) -> Path | None:
        given = self.given(name)
        if given is None:
            return None
        try:
            with Path(given).open("rb"):
                return Path(given)
        except OSError as error:
            raise ConfigError(
                f"{name}={given!r} cannot be read ({error.strerror}): set it to a file that "
                "this account may read."
            ) from error

    def instance(self, name: str) -> str:
        given = self.given(name)
        if given is None:
            # A host may be named more freely than a file name may be.
            return _NOT_IN_INSTANCE.sub("-", socket.gethostname())[:63].lstrip("._-") or "t2v"
        if not _INSTANCE.fullmatch(given):
            raise ConfigError(
                f"{name}={given!r} cannot be part of a file name: set it to at most 63 letters, "
                "digits, dots, dashes and underscores, beginning with a letter or digit."
            )
        return given

    def redis(self, name: str, password_name: str) -> RedisSettings | None:
        value = self.text(name)
        password_file = self.file(password_name)
        if value == "sqlite":
            if password_file is not None:
                raise ConfigError(
                    f"{password_name} is set and {name} is sqlite: "
                    f"set {name} to redis://HOST:PORT/0 or leave the password out."
                )
            return None
        if not _REDIS_URL.fullmatch(value):
            raise ConfigError(
                f"{name} is not usable: set it to sqlite or to redis://HOST:PORT/0, "
                f"with the password in {password_name} and not in the URL."
            )
        return RedisSettings(value, password_file)

    def rate(self, name: str) -> RateLimit | None:
        given = self.given(name)
        if given is None:
            return None
        match = _RATE.fullmatch(given.replace(" ", ""))
        if not match:
            raise ConfigError(
                f"{name}={given!r} is not a rate: set it to N/second, N/minute, N/hour or "
                "N/day, such as 60/minute."
            )
        period: Literal["second", "minute", "hour", "day"]
        match match[2]:
            case "second":
                period = "second"
            case "minute":
                period = "minute"
            case "hour":
                period = "hour"
            case _:
                period = "day"
        return RateLimit(int(match[1]), period)

    def jwt(self) -> JwtSettings | None:
        """The five variables of tokens: none of them, or those that are needed together."""
        url = self.given("T2V_JWT_JWKS_URL")
        key_file = self.file("T2V_JWT_KEY_FILE")
        issuer, audience = self.given("T2V_JWT_ISSUER"), self.given("T2V_JWT_AUDIENCE")
        if url is None and key_file is None:
            for name, value in (("T2V_JWT_ISSUER", issuer), ("T2V_JWT_AUDIENCE", audience)):
                if value is not None:
                    raise ConfigError(
                        f"{name} is set, and no key to check tokens with: "
                        "set T2V_JWT_JWKS_URL or T2V_JWT_KEY_FILE."
                    )
            return None
        if url is not None and key_file is not None:
            raise ConfigError(
                "T2V_JWT_JWKS_URL and T2V_JWT_KEY_FILE are both set: unset one of them."
            )
        if url is not None and not _HTTP_URL.fullmatch(url):
            raise ConfigError(f"T2V_JWT_JWKS_URL={url!r} is not an http:// or https:// URL.")
        if audience is None:
            raise ConfigError(
                "T2V_JWT_AUDIENCE is not set, so a token for any other service would do: "
                "set it to the audience that tokens for this one carry."
            )
        algorithms = tuple(self.text("T2V_JWT_ALGORITHMS").replace(" ", "").split(","))
        for algorithm in algorithms:
            if algorithm not in ASYMMETRIC + SYMMETRIC:
                raise ConfigError(
                    f"T2V_JWT_ALGORITHMS names {algorithm!r}, which is not known: "
                    f"use {_one_of(ASYMMETRIC + SYMMETRIC)}."
                )
        symmetric = {algorithm in SYMMETRIC for algorithm in algorithms}
        if symmetric == {True, False} or (url is not None and True in symmetric):
            # A public key taken for a shared secret would let anyone sign.
            raise ConfigError(
                "T2V_JWT_ALGORITHMS mixes shared secrets (HS…) with public keys: "
                "name only HS… with T2V_JWT_KEY_FILE, or none of them."
            )
        return JwtSettings(url, key_file, algorithms, issuer, audience)


def _one_of(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}"
