"""The server's settings: read once from ``T2V_*`` variables, checked, then frozen."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from t2v_server.profiles import TINY_MODEL, VideoParameters, parameters_for

FROM_MODEL = "the model's"
FROM_HOST = "the host name"

# Every variable and its default, as README.md lists them.
DEFAULTS: Mapping[str, str] = {
    "T2V_BIND": "0.0.0.0:8080",
    "T2V_OUTPUT_DIR": "/shared/videos",
    "T2V_INSTANCE": FROM_HOST,
    "T2V_MODEL": "tiny",
    "T2V_DEVICE": "auto",
    "T2V_DTYPE": "auto",
    "T2V_TORCH_THREADS": "auto",
    "T2V_WIDTH": FROM_MODEL,
    "T2V_HEIGHT": FROM_MODEL,
    "T2V_FRAMES": FROM_MODEL,
    "T2V_STEPS": FROM_MODEL,
    "T2V_GUIDANCE_SCALE": FROM_MODEL,
    "T2V_FPS": FROM_MODEL,
    "T2V_QUEUE_SIZE": "64",
    "T2V_MAX_PROMPT_CHARS": "2000",
    "T2V_GRACEFUL_TIMEOUT": "600",
    "T2V_SWEEP_AGE": "86400",
    "T2V_LOG_LEVEL": "info",
}

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOG_LEVELS = ("debug", "info", "warning", "error")

# Threads beyond the waiting generations, so that probes and scrapes are always answered.
SPARE_HTTP_THREADS = 16

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NOT_IN_INSTANCE = re.compile(r"[^A-Za-z0-9._-]")
_BIND = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


class ConfigError(ValueError):
    """A setting is unusable; the message says which, why, and what to set."""


@dataclass(frozen=True)
class Settings:
    """The validated settings of one server process. Durations are seconds."""

    bind: str
    output_dir: Path
    instance: str
    model: str
    device: str
    dtype: str
    torch_threads: int | None
    video: VideoParameters
    queue_size: int
    max_prompt_chars: int
    graceful_timeout: int
    sweep_age: int
    log_level: str

    @property
    def http_threads(self) -> int:
        """Threads of the HTTP worker: all that can wait, the running one, and the spare."""
        return self.queue_size + 1 + SPARE_HTTP_THREADS

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and validate every variable.

        Raises:
            ConfigError: at the first variable that cannot be used.
        """
        read = _Reader(environ)
        model = read.text("T2V_MODEL")
        return cls(
            bind=read.bind("T2V_BIND"),
            output_dir=read.absolute_path("T2V_OUTPUT_DIR"),
            instance=read.instance("T2V_INSTANCE"),
            model=model,
            device=read.choice("T2V_DEVICE", DEVICES),
            dtype=read.dtype("T2V_DTYPE", model),
            torch_threads=read.integer_or_auto("T2V_TORCH_THREADS", 1, 1024),
            video=read.video(parameters_for(model)),
            queue_size=read.integer("T2V_QUEUE_SIZE", 1, 4096),
            max_prompt_chars=read.integer("T2V_MAX_PROMPT_CHARS", 1, 20_000),
            graceful_timeout=read.integer("T2V_GRACEFUL_TIMEOUT", 1, 86_400),
            sweep_age=read.integer("T2V_SWEEP_AGE", 60, 31_536_000),
            log_level=read.choice("T2V_LOG_LEVEL", LOG_LEVELS),
        )


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Names that look like settings of this server and are none: most often a typo."""
    return sorted(name for name in environ if name.startswith("T2V_") and name not in DEFAULTS)


class _Reader:
    """Takes single values out of an environment; a blank value counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def _given(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def text(self, name: str) -> str:
        return self._given(name) or DEFAULTS[name]

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name).lower()
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} is not known: set it to {_one_of(allowed)}.")
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        given = self._given(name)
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
        given = self._given(name)
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

    def video(self, default: VideoParameters) -> VideoParameters:
        return VideoParameters(
            width=self.size("T2V_WIDTH", default.width),
            height=self.size("T2V_HEIGHT", default.height),
            num_frames=self.frames("T2V_FRAMES", default.num_frames),
            num_inference_steps=self.integer("T2V_STEPS", 1, 1000, default.num_inference_steps),
            guidance_scale=self.number("T2V_GUIDANCE_SCALE", 0, 50, default.guidance_scale),
            fps=self.integer("T2V_FPS", 1, 120, default.fps),
        )

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

    def absolute_path(self, name: str) -> Path:
        path = Path(self.text(name))
        if not path.is_absolute():
            raise ConfigError(
                f"{name}={str(path)!r} is not an absolute path: "
                "set it to a directory such as /shared/videos."
            )
        return path

    def instance(self, name: str) -> str:
        given = self._given(name)
        if given is None:
            # A host may be named more freely than a file name may be.
            return _NOT_IN_INSTANCE.sub("-", socket.gethostname())[:63].lstrip("._-") or "t2v"
        if not _INSTANCE.fullmatch(given):
            raise ConfigError(
                f"{name}={given!r} cannot be part of a file name: set it to at most 63 letters, "
                "digits, dots, dashes and underscores, beginning with a letter or digit."
            )
        return given


def _one_of(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}"
