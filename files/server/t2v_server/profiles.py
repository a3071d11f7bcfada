"""What a model generates by default, what may be asked of it, and how it is run.

A profile is a named set of choices for one class of hardware. Everything that depends on the
hardware follows from it: the API's limits, precisions and placement in the engine, the memory
that a pod asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

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
    def latent_frames(self) -> int:
        """What the VAE makes of the frames: the first one, and one of every four after it."""
        return (self.num_frames - 1) // FRAMES_STEP + 1

    @property
    def tokens(self) -> int:
        """How many the transformer sees of it: one for 32 x 32 pixels of a latent frame."""
        return self.latent_frames * (self.height // SIZE_MULTIPLE) * (self.width // SIZE_MULTIPLE)

    @property
    def most_bytes(self) -> int:
        """An upper bound of what the finished video takes on disk, with what lies beside it."""
        pixels = self.width * self.height * self.num_frames
        return int(pixels * _BYTES_PER_PIXEL) + _BYTES_AROUND


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. ``max_pixels`` bounds width times height."""

    max_side: int
    max_pixels: int
    max_frames: int
    max_steps: int
    max_prompt_chars: int
    min_steps: int = 1
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
            ("num_inference_steps", video.num_inference_steps, self.min_steps, self.max_steps),
            ("guidance_scale", video.guidance_scale, 0, self.max_guidance_scale),
            ("flow_shift", video.flow_shift, 0.01, self.max_flow_shift),
            ("fps", video.fps, 1, self.max_fps),
        ):
            if not low <= value <= high:  # also refuses NaN
                possible = f"from {low:g} to {high:g}" if low < high else f"{low:g}"
                yield name, f"{name} must be {possible}, not {value:g}"


class Precision(StrEnum):
    """How a network's weights are kept. INT8 and NF4 compute in ``Precisions.compute``."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    NF4 = "nf4"

    @property
    def quantised(self) -> bool:
        return self in (Precision.INT8, Precision.NF4)


@dataclass(frozen=True)
class Precisions:
    """Of the weights of each network; ``compute`` is what transformer and text encoder compute in.

    On a CPU, and on a GPU that has no bfloat16, the engine computes in what the device can.
    """

    transformer: Precision
    text_encoder: Precision
    vae: Precision
    compute: Precision


class Residency(StrEnum):
    """RESIDENT: all networks stay on the device. STAGED: each is there only while it is used.

    Staged is encode, free the text encoder, denoise, free the transformer, decode.
    """

    RESIDENT = "resident"
    STAGED = "staged"


class Decoder(StrEnum):
    """Latents to frames: the model's VAE, or a small network that imitates it less sharply."""

    FULL = "full"
    TINY = "tiny"


class Compile(StrEnum):
    """Regional compilation: never, always, or where a probe shows that this GPU can do it."""

    NO = "no"
    YES = "yes"
    PROBE = "probe"


@dataclass(frozen=True)
class Expected:
    """What a generation with the profile's defaults takes; ``source`` says how that is known.

    ``gpu_bytes`` is the peak on the GPU at the profile's limits, 0 where it needs none;
    ``host_bytes`` the engine's peak on the host; ``seconds`` from prompt to file.
    """

    gpu_bytes: int
    host_bytes: int
    seconds: float
    source: str


@dataclass(frozen=True)
class Profile:
    """Built-in defaults, limits and choices, before the operator's settings.

    ``schedule`` is the fixed timesteps of a model distilled to few steps, None for a model that
    takes any number of them. ``guidance`` is whether classifier-free guidance is possible.
    ``gpu_class_bytes`` is the memory from which a GPU gets this profile by itself; None: never.
    """

    name: str
    title: str
    quality: str
    defaults: VideoParameters
    limits: Limits
    precisions: Precisions
    residency: Residency
    schedule: tuple[int, ...] | None
    guidance: bool
    decoder: Decoder
    compile: Compile
    expected: Expected
    gpu_class_bytes: int | None = None

    @property
    def images(self) -> bool:
        """Whether a video may begin with an image: weights distilled from text alone cannot."""
        return self.schedule is None


GIB = 1 << 30

# The published settings of Wan-AI/Wan2.2-TI2V-5B-Diffusers; either orientation.
_PUBLISHED = VideoParameters(
    width=1280,
    height=704,
    num_frames=121,
    num_inference_steps=50,
    guidance_scale=5.0,
    flow_shift=5.0,
    fps=24,
)

TINY = Profile(
    name="tiny",
    title="tests: the built-in random model, on any CPU",
    quality="noise",
    defaults=replace(_PUBLISHED, width=64, height=64, num_frames=9, num_inference_steps=2),
    limits=Limits(
        max_side=512, max_pixels=256 * 256, max_frames=121, max_steps=1000, max_prompt_chars=2000
    ),
    precisions=Precisions(Precision.FP32, Precision.FP32, Precision.FP32, Precision.FP32),
    residency=Residency.RESIDENT,
    schedule=None,
    guidance=True,
    decoder=Decoder.FULL,
    compile=Compile.NO,
    expected=Expected(gpu_bytes=0, host_bytes=2 * GIB, seconds=0.5, source="measured on a CPU"),
)

# 16 GB of a Turing GPU, of which 14.7 GiB can be used: no bfloat16, no Triton.
T4 = Profile(
    name="t4",
    title="16 GB GPU: quantised, in float16, one network on the GPU at a time",
    quality="standard",
    defaults=replace(_PUBLISHED, width=832, height=480, num_frames=49),
    limits=Limits(
        max_side=832, max_pixels=832 * 480, max_frames=81, max_steps=100, max_prompt_chars=2000
    ),
    precisions=Precisions(Precision.INT8, Precision.NF4, Precision.FP16, Precision.FP16),
    residency=Residency.STAGED,
    schedule=None,
    guidance=True,
    decoder=Decoder.FULL,
    compile=Compile.NO,
    expected=Expected(
        gpu_bytes=17 * GIB // 2, host_bytes=7 * GIB, seconds=300, source="calculated, not measured"
    ),
    gpu_class_bytes=14 * GIB,
)

# The timesteps that FastVideo distilled FastWan2.2-TI2V-5B for; classifier-free guidance is
# distilled into the weights.
FAST_WAN_SCHEDULE = (1000, 757, 522)

T4_TURBO = Profile(
    name="t4-turbo",
    title="16 GB GPU: weights distilled to three steps, no guidance, small decoder",
    quality="reduced: distilled to three steps, small decoder",
    defaults=replace(
        _PUBLISHED,
        width=512,
        height=320,
        num_frames=49,
        num_inference_steps=len(FAST_WAN_SCHEDULE),
        guidance_scale=1.0,
    ),
    limits=Limits(
        max_side=832,
        max_pixels=832 * 480,
        max_frames=81,
        max_steps=len(FAST_WAN_SCHEDULE),
        max_prompt_chars=2000,
        min_steps=len(FAST_WAN_SCHEDULE),
        max_guidance_scale=1.0,
    ),
    precisions=Precisions(Precision.INT8, Precision.NF4, Precision.FP16, Precision.FP16),
    residency=Residency.STAGED,
    schedule=FAST_WAN_SCHEDULE,
    guidance=False,
    decoder=Decoder.TINY,
    compile=Compile.NO,
    expected=Expected(
        gpu_bytes=15 * GIB // 2, host_bytes=7 * GIB, seconds=15, source="calculated, not measured"
    ),
)

_PUBLISHED_LIMITS = Limits(
    max_side=1280, max_pixels=1280 * 704, max_frames=121, max_steps=100, max_prompt_chars=2000
)

P24G = Profile(
    name="24g",
    title="24 GB GPU: 16 bits, one network on the GPU at a time",
    quality="full",
    defaults=_PUBLISHED,
    limits=_PUBLISHED_LIMITS,
    # A VAE in float32 takes 24 GiB for frames of this size.
    precisions=Precisions(Precision.BF16, Precision.BF16, Precision.BF16, Precision.BF16),
    residency=Residency.STAGED,
    schedule=None,
    guidance=True,
    decoder=Decoder.FULL,
    compile=Compile.PROBE,
    expected=Expected(
        gpu_bytes=29 * GIB // 2, host_bytes=28 * GIB, seconds=535,
        source="time published for an RTX 4090, memory calculated",
    ),
    gpu_class_bytes=22 * GIB,
)  # fmt: skip

P80G = Profile(
    name="80g",
    title="80 GB GPU: 16 bits, everything stays on the GPU, compiled",
    quality="full",
    defaults=_PUBLISHED,
    limits=_PUBLISHED_LIMITS,
    precisions=Precisions(Precision.BF16, Precision.BF16, Precision.FP32, Precision.BF16),
    residency=Residency.RESIDENT,
    schedule=None,
    guidance=True,
    decoder=Decoder.FULL,
    compile=Compile.YES,
    expected=Expected(
        gpu_bytes=48 * GIB, host_bytes=28 * GIB, seconds=170,
        source="time published for an H200, memory calculated",
    ),
    gpu_class_bytes=70 * GIB,
)  # fmt: skip

PROFILES: Mapping[str, Profile] = {
    profile.name: profile for profile in (TINY, T4, T4_TURBO, P24G, P80G)
}


def choose_profile(name: str | None, model: str, gpu_bytes: int | None) -> Profile:
    """The profile called ``name``; without a name the one that fits.

    ``gpu_bytes`` is the memory of the smallest GPU, None without one. Without a GPU, a model other
    than the tiny one gets its published settings: a host that only accepts needs no GPU.

    Raises:
        KeyError: there is no such profile.
        ValueError: no profile fits a GPU as small; the message says what the smallest is.
    """
    if name is not None:
        return PROFILES[name]
    if model == TINY_MODEL:
        return TINY
    if gpu_bytes is None:
        return P24G
    fitting = [
        profile
        for profile in PROFILES.values()
        if profile.gpu_class_bytes is not None and profile.gpu_class_bytes <= gpu_bytes
    ]
    if not fitting:
        raise ValueError(
            f"a GPU of {gpu_bytes / GIB:.1f} GiB is too small for any profile: "
            f"{T4.name} needs {T4.gpu_class_bytes // GIB if T4.gpu_class_bytes else 0} GiB"
        )
    return max(fitting, key=lambda profile: profile.gpu_class_bytes or 0)
