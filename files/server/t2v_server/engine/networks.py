"""The networks of Wan2.2-TI2V as empty shells, and what becomes of their weights when prepared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.tensors import Tensor
from t2v_server.engine.quantised import NF4_BLOCK
from t2v_server.profiles import Precision, Precisions

CLASSES: Mapping[str, type] = {
    "transformer": WanTransformer3DModel,
    "text_encoder": UMT5EncoderModel,
    "vae": AutoencoderKLWan,
}
DTYPES: Mapping[Precision, torch.dtype] = {
    Precision.FP32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}
NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
    torch.int8: "I8", torch.uint8: "U8", torch.int64: "I64",
}  # fmt: skip

# Linear layers in these are what is quantised; the few elsewhere are small, and shape every frame.
_BLOCKS = {"transformer": "blocks.", "text_encoder": "encoder.block."}
_EMBEDDING = "shared.weight"


class Kept(Enum):
    """How one tensor of the source is kept."""

    CAST = "cast"
    INT8 = "int8"
    NF4 = "nf4"


@dataclass(frozen=True)
class Target:
    """One tensor of the source, and what it becomes; what is quantised computes in ``dtype``."""

    name: str
    shape: tuple[int, ...]
    kept: Kept
    dtype: torch.dtype

    @property
    def tensors(self) -> list[Tensor]:
        """What is written for it, in this order."""
        layer, elements = self.name.removesuffix("weight"), math.prod(self.shape)
        if self.kept is Kept.INT8:
            return [
                Tensor(self.name, "I8", self.shape),
                Tensor(f"{layer}scale", "F32", self.shape[:1]),
            ]
        if self.kept is Kept.NF4:
            return [
                Tensor(f"{layer}packed", "U8", (-(-elements // 2),)),
                Tensor(f"{layer}absmax", "F32", (-(-elements // NF4_BLOCK),)),
            ]
        return [Tensor(self.name, NAMES[self.dtype], self.shape)]

    @property
    def grain(self) -> int:
        """It is converted in multiples of so many elements."""
        if self.kept is Kept.INT8:
            return self.shape[1]
        return NF4_BLOCK if self.kept is Kept.NF4 else 1


def empty_network(name: str, directory: Path) -> nn.Module:
    """The network that ``directory/config.json`` describes, with no memory behind its weights.

    Raises:
        CheckpointError: it is none of Wan2.2-TI2V's.
    """
    path = directory / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        known = config.get("_class_name") or config.get("architectures", [None])[0]
    except (OSError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe a network: {error}") from error
    expected = CLASSES[name].__name__
    if known != expected:
        raise CheckpointError(
            f"{path} is of a {known}, and a {name} of Wan2.2-TI2V is a {expected}: name a model "
            "such as Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        )
    try:
        with torch.device("meta"):
            if name == "text_encoder":
                network: nn.Module = UMT5EncoderModel(UMT5Config.from_dict(config))
            else:
                network = cast(Any, CLASSES[name]).from_config(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} describes no {expected}: {error}") from error
    if isinstance(network, WanTransformer3DModel):
        # Computed, not loaded, so it must be real.
        settings = cast(Any, network.config)
        network.rope = WanRotaryPosEmbed(
            settings.attention_head_dim, settings.patch_size, settings.rope_max_seq_len
        )
    return network.eval().requires_grad_(False)


def precision_of(name: str, precisions: Precisions) -> tuple[Precision, torch.dtype]:
    """How the weights of a network are kept, and what it computes in."""
    precision: Precision = getattr(precisions, name)
    if not precision.quantised:
        return precision, DTYPES[precision]
    compute = DTYPES[precisions.compute]
    if name == "text_encoder" and compute is torch.float16:
        # UMT5's activations exceed float16's range; in float32 a prompt costs a second on a T4.
        compute = torch.float32
    return precision, compute


def targets_of(
    name: str, network: nn.Module, precision: Precision, compute: torch.dtype
) -> dict[str, Target]:
    """What becomes of each weight of a network, by its name.

    What diffusers and transformers keep in float32 is kept in float32 here.
    """
    if precision.quantised and name not in _BLOCKS:
        raise CheckpointError(f"a {name} is not quantised: set it to fp32, bf16 or fp16")
    linear = {
        f"{module}.weight"
        for module, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and module.startswith(_BLOCKS.get(name, "-"))
    }
    targets = {}
    for weight, parameter in network.named_parameters():
        shape = tuple(parameter.shape)
        if precision.quantised and weight in linear:
            kept = Kept.INT8 if precision is Precision.INT8 else Kept.NF4
            targets[weight] = Target(weight, shape, kept, compute)
        else:
            dtype = _dtype(name, network, weight, precision, compute)
            targets[weight] = Target(weight, shape, Kept.CAST, dtype)
    return targets


def _dtype(
    name: str, network: nn.Module, weight: str, precision: Precision, compute: torch.dtype
) -> torch.dtype:
    """Of a weight that is not quantised."""
    if precision.quantised and name == "text_encoder":
        # All that is left is small but for the embedding, whose rows are only looked up.
        if weight == _EMBEDDING:
            return torch.float16 if compute is torch.float32 else compute
        return torch.float32
    keep = getattr(network, "_keep_in_fp32_modules", None) or ()
    # As the two libraries do: transformers for float16 alone.
    applies = name != "text_encoder" or compute is torch.float16
    if applies and any(part in keep for part in weight.split(".")):
        return torch.float32
    return compute


def aliases_of(network: nn.Module) -> dict[str, str]:
    """Names by which a file may call a weight that has another name here: tied ones."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        name: names[id(parameter)]
        for name, parameter in network.named_parameters(remove_duplicate=False)
    }
