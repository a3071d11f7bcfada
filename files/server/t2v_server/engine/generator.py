"""Prompt in, frames out: the resident WanPipeline on its device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from diffusers import WanPipeline
from numpy.typing import NDArray

from t2v_server.engine.encoding import Frames
from t2v_server.engine.errors import EngineLostError, GenerationError
from t2v_server.engine.pipeline import TextToVideoPipeline
from t2v_server.engine.tiny import build_tiny_pipeline
from t2v_server.profiles import TINY_MODEL, VideoParameters

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class VideoGenerator:
    """One pipeline on one device. Not thread-safe: one generation at a time."""

    pipeline: TextToVideoPipeline
    video: VideoParameters
    device: str
    dtype: str

    def generate(self, prompt: str, seed: int) -> Frames:
        """Generate one clip.

        ``seed`` is 0…2**63-1; it drives the initial noise on the CPU, so that it means the
        same on every device.

        Returns:
            Frames of shape ``(num_frames, height, width, 3)``, RGB, uint8.

        Raises:
            GenerationError: out of memory, or the model gave no usable numbers.
            EngineLostError: the GPU's context is broken.
        """
        video = self.video
        try:
            output = self.pipeline(
                prompt=prompt,
                width=video.width,
                height=video.height,
                num_frames=video.num_frames,
                num_inference_steps=video.num_inference_steps,
                guidance_scale=video.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
            )
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise GenerationError(
                f"out of GPU memory at {video.width}x{video.height}, {video.num_frames} frames"
            ) from error
        except torch.AcceleratorError as error:
            raise EngineLostError(f"the GPU failed: {error}") from error
        return _to_uint8(np.asarray(output.frames, dtype=np.float32)[0])

    def warm_up(self) -> Frames:
        """Generate a clip of full size in few steps.

        Full size proves that the memory suffices and fills the kernel caches; more steps
        would only repeat the same work.
        """
        steps = min(self.video.num_inference_steps, _WARM_UP_STEPS)
        few_steps = replace(self.video, num_inference_steps=steps)
        return replace(self, video=few_steps).generate("warm-up", seed=0)


def load_generator(
    model: str, video: VideoParameters, device: str, dtype: str, torch_threads: int | None
) -> VideoGenerator:
    """Build or load the pipeline and move it to its device.

    ``model`` is ``tiny``, a directory that ``save_pretrained`` wrote, or a hub id;
    ``device`` and ``dtype`` may be ``auto``. Raises whatever loading raises.
    """
    if torch_threads is None and model == TINY_MODEL:
        # Its kernels are too small to share out: threads that wait for each other on busy
        # cores made it several times slower.
        torch_threads = 1
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype, device, model)
    if model == TINY_MODEL:
        pipeline = build_tiny_pipeline()
    else:
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
    return VideoGenerator(pipeline, video, device, dtype)


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _resolve_dtype(dtype: str, device: str, model: str) -> str:
    if dtype != "auto":
        return dtype
    if device == "cpu" or model == TINY_MODEL:
        return "float32"
    # Before Ampere (a T4, say) bfloat16 is emulated and slow.
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def _to_uint8(frames: NDArray[np.float32]) -> Frames:
    """From ``(T, H, W, 3)`` floats in 0…1."""
    if not np.isfinite(frames).all():
        raise GenerationError("the model gave frames that are not finite numbers")
    return (frames * 255).round().astype(np.uint8)
