"""What the engine uses of a diffusers pipeline, with the types that diffusers leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from numpy.typing import ArrayLike


class PipelineOutput(Protocol):
    """``frames`` has the shape ``(batch, num_frames, height, width, 3)``, floats in 0…1."""

    @property
    def frames(self) -> ArrayLike: ...


# (pipeline, step, timestep, tensors) -> tensors; the step has just been done, counted from 0.
StepCallback = Callable[["TextToVideoPipeline", int, object, dict[str, Any]], dict[str, Any]]


class TextToVideoPipeline(Protocol):
    """The part of ``diffusers.WanPipeline`` that is called here."""

    scheduler: Any

    @property
    def components(self) -> Mapping[str, object]: ...

    def __call__(
        self,
        *,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        num_frames: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: torch.Generator,
        output_type: str,
        callback_on_step_end: StepCallback,
    ) -> PipelineOutput: ...

    def to(self, device: str) -> TextToVideoPipeline: ...

    def set_progress_bar_config(self, *, disable: bool) -> None: ...

    def maybe_free_model_hooks(self) -> None: ...


def modules_of(pipeline: TextToVideoPipeline) -> list[torch.nn.Module]:
    """The networks of a pipeline, without its tokenizer and scheduler."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def decoder_of(pipeline: TextToVideoPipeline) -> torch.nn.Module:
    """The network that turns latents into frames, called once for each latent frame."""
    vae = pipeline.components["vae"]
    assert isinstance(vae, torch.nn.Module)
    return vae.get_submodule("decoder")
