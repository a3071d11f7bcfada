"""What a model generates by default, and what may be asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TINY_MODEL = "tiny"

SIZE_MULTIPLE = 32  # VAE 16 x patch 2; diffusers would silently round sizes down to it
FRAMES_STEP = 4  # the VAE keeps the first frame and compresses time by 4 after it

# What a file may take at most: noise at CRF 18 was measured at 0.34 bytes a pixel, films at a
# twentieth of it. Admission reserves this much, so it must not be too little.
_BYTES_PER_PIXEL = 0.5
_BYTES_AROUND = 256 * 1024  # container, thumbnail, metadata


@dataclass(frozen=True)
class VideoParameters:
    """Shape and effort of one generation.

    ``width`` and ``height`` are pixels and multiples of 32; ``num_frames`` is ``4k + 1``;
    ``fps`` is frames per second of the file; ``flow_shift`` shifts the noise schedule towards
    high noise, more so for larger videos.
    """

    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    fps: int

    @property
    def most_bytes(self) -> int:
        """An upper bound of what the finished video takes on disk, with what lies beside it."""
        pixels = self.width * self.height * self.num_frames
        return int(pixels * _BYTES_PER_PIXEL) + _BYTES_AROUND


@dataclass(frozen=True)
class Limits:
    """What one request may ask for at most. ``max_pixels`` bounds width times height."""

    max_side: int
    max_pixels: int
    max_frames: int
    max_steps: int
    max_prompt_chars: int
    max_guidance_scale: float = 50.0
    max_flow_shift: float = 50.0
    max_fps: int = 120

    def violations(self, video: VideoParameters) -> Iterator[tuple[str, str]]:
        """Name each parameter that cannot be generated, with a sentence that says what can."""
        for name, pixels in (("width", video.width), ("height", video.height)):
            if not SIZE_MULTIPLE <= pixels <= self.max_side or pixels % SIZE_MULTIPLE:
                yield (
                    name,
                    f"{name} must be a multiple of {SIZE_MULTIPLE} "
                    f"from {SIZE_MULTIPLE} to {self.max_side}, not {pixels}",
                )
        if video.width * video.height > self.max_pixels:
            yield (
                "size",
                f"{video.width}x{video.height} is {video.width * video.height} pixels, "
                f"at most {self.max_pixels} are possible",
            )
        frames = video.num_frames
        if not 1 <= frames <= self.max_frames or frames % FRAMES_STEP != 1:
            yield (
                "num_frames",
                f"num_frames must be {FRAMES_STEP}k+1 from 1 to {self.max_frames}, not {frames}",
            )
        for name, value, low, high in (
            ("num_inference_steps", video.num_inference_steps, 1, self.max_steps),
            ("guidance_scale", video.guidance_scale, 0, self.max_guidance_scale),
            ("flow_shift", video.flow_shift, 0.01, self.max_flow_shift),
            ("fps", video.fps, 1, self.max_fps),
        ):
            if not low <= value <= high:  # also refuses NaN
                yield name, f"{name} must be from {low:g} to {high:g}, not {value:g}"


@dataclass(frozen=True)
class Profile:
    """A model's built-in defaults and limits, before the operator's settings."""

    defaults: VideoParameters
    limits: Limits


TINY = Profile(
    defaults=VideoParameters(
        width=64,
        height=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=5.0,
        flow_shift=5.0,
        fps=24,
    ),
    limits=Limits(
        max_side=512, max_pixels=256 * 256, max_frames=121, max_steps=1000, max_prompt_chars=2000
    ),
)

# The published settings of Wan-AI/Wan2.2-TI2V-5B-Diffusers; either orientation.
WAN22_TI2V_5B = Profile(
    defaults=VideoParameters(
        width=1280,
        height=704,
        num_frames=121,
        num_inference_steps=50,
        guidance_scale=5.0,
        flow_shift=5.0,
        fps=24,
    ),
    limits=Limits(
        max_side=1280, max_pixels=1280 * 704, max_frames=121, max_steps=100, max_prompt_chars=2000
    ),
)


def profile_of(model: str) -> Profile:
    """The tiny model's own profile, else Wan2.2-TI2V-5B's."""
    return TINY if model == TINY_MODEL else WAN22_TI2V_5B
