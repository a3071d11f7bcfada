"""What a model generates when neither the request nor the operator says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

TINY_MODEL = "tiny"


@dataclass(frozen=True)
class VideoParameters:
    """Shape and effort of one generation.

    ``width`` and ``height`` are pixels and multiples of 32; ``num_frames`` is ``4k + 1``
    (the VAE compresses time by 4 and keeps the first frame); ``fps`` is frames per second
    of the file.
    """

    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    fps: int


TINY = VideoParameters(
    width=64, height=64, num_frames=9, num_inference_steps=2, guidance_scale=5.0, fps=24
)

# The published settings of Wan-AI/Wan2.2-TI2V-5B-Diffusers.
WAN22_TI2V_5B = VideoParameters(
    width=1280, height=704, num_frames=121, num_inference_steps=50, guidance_scale=5.0, fps=24
)


def parameters_for(model: str) -> VideoParameters:
    """The built-in defaults of ``model``: the tiny model's own, else Wan2.2-TI2V-5B's."""
    return TINY if model == TINY_MODEL else WAN22_TI2V_5B
