"""Low-rank adapters on the transformer, in the files that diffusers and the Wan tools write.

diffusers' own loader needs the ``peft`` package and wraps every layer. Here the adapter is added
to the weights once, which costs nothing afterwards; to a quantised weight nothing can be added, so
there the adapter runs beside the layer.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import WanPipeline
from safetensors.torch import load_file
from torch import nn

from t2v_server.engine.pipeline import TextToVideoPipeline

log = logging.getLogger(__name__)

_PREFIX = "transformer."


def apply_lora(pipeline: TextToVideoPipeline, path: Path, scale: float) -> int:
    """Apply the adapters in ``path``; returns how many layers have one now.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something that is no adapter of this model.
    """
    try:
        given = load_file(path)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    adapters = _pairs(cast(dict[str, torch.Tensor], _converted(given)), path)
    transformer = cast(nn.Module, pipeline.components["transformer"])
    for name, (down, up, alpha) in adapters.items():
        try:
            layer = transformer.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"{path} is of another model: it has no layer {name}") from error
        rank = down.shape[0]
        _attach(layer, name, down, up, scale * (alpha if alpha is not None else rank) / rank, path)
    log.info("applied %d adapters of %s", len(adapters), path)
    return len(adapters)


def _converted(given: dict[str, torch.Tensor]) -> object:
    """The adapters under diffusers' names, by whatever tool they were written."""
    return cast(Any, WanPipeline).lora_state_dict(given)


def _pairs(
    state: dict[str, torch.Tensor], path: Path
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float | None]]:
    """Both halves of each adapter, and its alpha if it has one, by the layer's name."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        for kind in ("lora_A.weight", "lora_B.weight", "alpha"):
            if key.endswith(f".{kind}"):
                name = key.removeprefix(_PREFIX).removesuffix(f".{kind}")
                layers.setdefault(name, {})[kind] = tensor
                break
        else:
            raise ValueError(f"{path} holds {key}, which is not understood")
    found = {}
    for name, parts in layers.items():
        if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
            raise ValueError(f"{path} holds half an adapter for {name}")
        alpha = float(parts["alpha"]) if "alpha" in parts else None
        found[name] = (parts["lora_A.weight"], parts["lora_B.weight"], alpha)
    if not found:
        raise ValueError(f"{path} holds no adapters")
    return found


def _attach(
    layer: nn.Module, name: str, down: torch.Tensor, up: torch.Tensor, factor: float, path: Path
) -> None:
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear) and weight is not None and weight.dtype.is_floating_point:
        if (up.shape[0], down.shape[1]) != tuple(weight.shape):
            raise ValueError(f"{path} is of another model: the adapter of {name} does not fit")
        with torch.no_grad():
            change = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
            # Not in place: the weights may be mapped from a checkpoint's file.
            layer.weight.data = weight + (factor * change).to(weight.dtype)
        return
    layer.register_module("adapter", _Beside(down, up, factor))
    layer.register_forward_hook(_add_adapter)


class _Beside(nn.Module):
    """``up @ down``, as a network that goes to the device with its layer."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, factor: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(factor * up, requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        down, up = self.down.to(inputs.dtype), self.up.to(inputs.dtype)
        return nn.functional.linear(nn.functional.linear(inputs, down), up)


def _add_adapter(
    layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:
    adapter = layer.get_submodule("adapter")
    return output + cast(torch.Tensor, adapter(inputs[0]))
