"""Prompt in, frames out: the resident WanPipeline on its device."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import WanPipeline
from numpy.typing import NDArray

from t2v_server.engine.checkpoint import is_local, load
from t2v_server.engine.encoding import Frames
from t2v_server.engine.errors import EngineLostError, GenerationError, OutOfMemory
from t2v_server.engine.pipeline import TextToVideoPipeline, decoder_of
from t2v_server.engine.tiny import build_tiny_pipeline
from t2v_server.jobs.record import PERCENT_BEFORE, Parameters, Progress, Stage
from t2v_server.profiles import FRAMES_STEP, TINY_MODEL, Profile, VideoParameters

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_WARM_UP_STEPS = 2
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "could not create a primitive", "bad_alloc")

# Called after each unit of work; what it raises ends the generation.
Watch = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """A ``Watch`` that does nothing."""


@dataclass(frozen=True)
class VideoGenerator:
    """One pipeline on one device. Not thread-safe: one generation at a time."""

    pipeline: TextToVideoPipeline
    device: str
    dtype: str

    def generate(self, parameters: Parameters, watch: Watch = ignore) -> Frames:
        """Generate one clip.

        The seed drives the initial noise on the CPU, so that it means the same on every device.
        ``watch`` hears of every denoising step and every decoded latent frame.

        Returns:
            Frames of shape ``(num_frames, height, width, 3)``, RGB, uint8.

        Raises:
            OutOfMemory, GenerationError: this clip cannot be made.
            EngineLostError: the GPU's context is broken.
        """
        video = parameters.video
        self._shift_schedule(video.flow_shift)
        watch(Progress(Stage.PROMPT, 0, 1, PERCENT_BEFORE[Stage.PROMPT]))

        def step_done(
            _pipeline: TextToVideoPipeline, step: int, _time: object, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            watch(_denoised(step + 1, video.num_inference_steps))
            return tensors

        try:
            with _watched_decoder(self.pipeline, video, watch):
                output = self.pipeline(
                    prompt=parameters.prompt,
                    negative_prompt=parameters.negative_prompt,
                    width=video.width,
                    height=video.height,
                    num_frames=video.num_frames,
                    num_inference_steps=video.num_inference_steps,
                    guidance_scale=video.guidance_scale,
                    generator=torch.Generator("cpu").manual_seed(parameters.seed),
                    output_type="np",
                    callback_on_step_end=step_done,
                )
            return _to_uint8(np.asarray(output.frames, dtype=np.float32)[0])
        except Exception as error:
            self.pipeline.maybe_free_model_hooks()  # as the pipeline itself does at its end
            if _is_out_of_memory(error):
                raise OutOfMemory(
                    f"out of memory at {video.width}x{video.height}, {video.num_frames} frames"
                ) from error
            if isinstance(error, torch.AcceleratorError):
                raise EngineLostError(f"the GPU failed: {error}") from error
            raise

    def warm_up(self, video: VideoParameters) -> Frames:
        """Generate a clip of full size in few steps.

        Full size proves that the memory suffices and fills the kernel caches; more steps
        would only repeat the same work.
        """
        steps = min(video.num_inference_steps, _WARM_UP_STEPS)
        few_steps = replace(video, num_inference_steps=steps)
        return self.generate(Parameters("warm-up", "", 0, few_steps))

    def begin_memory_peak(self) -> None:
        """Measure the peak anew, where the device can."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_memory_bytes(self) -> int:
        """The most memory since ``begin_memory_peak``: the GPU's, or of this process ever."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _shift_schedule(self, flow_shift: float) -> None:
        scheduler = self.pipeline.scheduler
        if scheduler.config.flow_shift != flow_shift:
            self.pipeline.scheduler = scheduler.from_config(scheduler.config, flow_shift=flow_shift)


@contextmanager
def _watched_decoder(
    pipeline: TextToVideoPipeline, video: VideoParameters, watch: Watch
) -> Iterator[None]:
    latent_frames = (video.num_frames - 1) // FRAMES_STEP + 1
    begun = 0

    def before(_module: torch.nn.Module, _inputs: object) -> None:
        nonlocal begun
        watch(_decoded(begun, latent_frames))
        begun += 1

    handle = decoder_of(pipeline).register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _denoised(done: int, total: int) -> Progress:
    return _between(Stage.DENOISING, Stage.DECODING, done, total)


def _decoded(done: int, total: int) -> Progress:
    return _between(Stage.DECODING, Stage.WRITING, done, total)


def _between(stage: Stage, following: Stage, done: int, total: int) -> Progress:
    begin, end = PERCENT_BEFORE[stage], PERCENT_BEFORE[following]
    return Progress(stage, done, total, begin + (end - begin) * done // total)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # PyTorch's allocator for the CPU, and oneDNN below it, have no exception of their own.
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def load_generator(
    model: str,
    device: str,
    dtype: str,
    torch_threads: int | None,
    gpu: int = 0,
    profile: Profile | None = None,
) -> VideoGenerator:
    """Build or load the pipeline and move it to its device.

    ``model`` is ``tiny``, a prepared checkpoint for ``profile``, a directory that
    ``save_pretrained`` wrote, or a hub id; ``device`` and ``dtype`` may be ``auto``; ``gpu``
    chooses among several, around and around. Raises whatever loading raises.
    """
    if torch_threads is None and model == TINY_MODEL:
        # Its kernels are too small to share out: threads that wait for each other on busy
        # cores made it several times slower.
        torch_threads = 1
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    device = _resolve_device(device)
    if device == "cuda":
        torch.cuda.set_device(gpu % torch.cuda.device_count())
    if model == TINY_MODEL:
        dtype = "float32"
        pipeline = build_tiny_pipeline()
    elif is_local(model):
        compute = None if dtype == "auto" else _DTYPES[dtype]
        pipeline, manifest = load(Path(model), device, profile, compute)
        dtype = dtype if compute is not None else manifest.networks["transformer"].precision
    else:
        dtype = _resolve_dtype(dtype, device)
        # The VAE stays in float32, as in the model's published example: it costs 1.4 GB
        # and keeps the decoder free of banding.
        pipeline = cast(
            TextToVideoPipeline,
            WanPipeline.from_pretrained(
                model, dtype={"default": _DTYPES[dtype], "vae": torch.float32}
            ),
        )
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return VideoGenerator(pipeline, device, dtype)


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _resolve_dtype(dtype: str, device: str) -> str:
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    # Before Ampere (a T4, say) bfloat16 is emulated and slow.
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def _to_uint8(frames: NDArray[np.float32]) -> Frames:
    """From ``(T, H, W, 3)`` floats in 0…1."""
    if not np.isfinite(frames).all():
        raise GenerationError("the model gave frames that are not finite numbers")
    return (frames * 255).round().astype(np.uint8)
