"""What the engine uses of diffusers, with the types that diffusers leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch


class TextToVideoPipeline(Protocol):
    """What is used of ``diffusers.WanPipeline``: its parts, and its tokenizer."""

    scheduler: Any

    @property
    def components(self) -> Mapping[str, object]: ...

    def set_progress_bar_config(self, *, disable: bool) -> None: ...


class VaeConfig(Protocol):
    z_dim: int
    latents_mean: Sequence[float]
    latents_std: Sequence[float]
    scale_factor_temporal: int
    scale_factor_spatial: int
    patch_size: int | None


class Vae(Protocol):
    """What is used of ``diffusers.AutoencoderKLWan``."""

    @property
    def config(self) -> VaeConfig: ...

    @property
    def dtype(self) -> torch.dtype: ...


def modules_of(pipeline: TextToVideoPipeline) -> list[torch.nn.Module]:
    """The networks of a pipeline, without its tokenizer and scheduler."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
