"""What the engine uses of a diffusers pipeline, with the types that diffusers leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from numpy.typing import ArrayLike


class PipelineOutput(Protocol):
    """``frames`` has the shape ``(batch, num_frames, height, width, 3)``, floats in 0…1."""

    @property
    def frames(self) -> ArrayLike: ...


class TextToVideoPipeline(Protocol):
    """The part of ``diffusers.WanPipeline`` that is called here."""

    @property
    def components(self) -> Mapping[str, object]: ...

    def __call__(
        self,
        *,
        prompt: str,
        width: int,
        height: int,
        num_frames: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: torch.Generator,
        output_type: str,
    ) -> PipelineOutput: ...

    def to(self, device: str) -> TextToVideoPipeline: ...

    def set_progress_bar_config(self, *, disable: bool) -> None: ...


def modules_of(pipeline: TextToVideoPipeline) -> list[torch.nn.Module]:
    """The networks of a pipeline, without its tokenizer and scheduler."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
