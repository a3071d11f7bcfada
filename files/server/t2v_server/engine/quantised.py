"""Linear layers whose weights are kept in 8 or 4 bits, and how weights get there.

int8: one scale a row, symmetric; activations stay as they are. bitsandbytes' int8 quantises
those too, and takes out columns with outliers, which at some 30,000 tokens a clip are most of
them. Making a layer float again for the length of its product costs a hundredth of that product.

nf4: NormalFloat in blocks of 64 (QLoRA, arXiv:2305.14314, appendix E), value for value what
bitsandbytes makes. That is not used: diffusers imports it wherever it is installed, which adds
seconds to the start of every engine and 125 MB to the image, and its layer keeps scales where a
module's tensors are not looked for, so they would stay behind when a network moves to a device.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

NF4_BLOCK = 64
_NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
_BETWEEN = (_NF4[1:] + _NF4[:-1]) / 2


class Int8Linear(nn.Module):
    """``functional.linear`` with a weight of int8 and a float32 scale for each row of it."""

    weight: torch.Tensor  # (out_features, in_features), int8
    scale: torch.Tensor  # (out_features,), float32
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (…, in_features) to (…, out_features), in the type of ``x``."""
        weight = (self.weight * self.scale.unsqueeze(1)).to(x.dtype)
        return functional.linear(x, weight, self.bias)


class Nf4Linear(nn.Module):
    """``functional.linear`` with a weight of two 4-bit elements a byte and a scale a block."""

    # UMT5 looks at it and casts what goes into a feed-forward's last layer to its type.
    weight = None
    packed: torch.Tensor  # (out_features * in_features / 2,), uint8, the first in the high bits
    absmax: torch.Tensor  # (out_features * in_features / 64,), float32
    pairs: torch.Tensor  # (256, 2), float32: the two values of each byte
    bias: nn.Parameter | None

    def __init__(self, packed: torch.Tensor, absmax: torch.Tensor, shape: torch.Size) -> None:
        """``shape`` is that of the weight, (out_features, in_features)."""
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        pairs = torch.cartesian_prod(_NF4, _NF4)
        self.register_buffer("pairs", pairs.to(packed.device), persistent=False)
        self.register_parameter("bias", None)
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (…, in_features) to (…, out_features), in the type of ``x``."""
        return functional.linear(x, self.unpacked(x.dtype), self.bias)

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, (out_features, in_features)."""
        values = functional.embedding(self.packed.int(), self.pairs).view(-1)
        elements = self.shape.numel()
        whole = len(self.absmax) * NF4_BLOCK
        if whole != elements or len(values) != elements:  # a last block that is not full
            values = functional.pad(values[:elements], (0, whole - elements))
        scaled = values.view(-1, NF4_BLOCK) * self.absmax.unsqueeze(1)
        return scaled.view(-1)[:elements].view(self.shape).to(dtype)


def quantise_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole rows of a float32 weight to int8 and one scale each."""
    scale = rows.abs().amax(dim=1) / 127
    return (rows / scale.clamp(min=1e-30).unsqueeze(1)).round().to(torch.int8), scale


def quantise_nf4(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole blocks of a float32 weight to two packed elements a byte, and each block's maximum.

    Only the last block of a weight may be shorter.
    """
    elements = len(flat)
    blocks = functional.pad(flat, (0, -elements % NF4_BLOCK)).view(-1, NF4_BLOCK)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax.clamp(min=1e-30).unsqueeze(1)
    nearest = torch.bucketize(scaled.view(-1), _BETWEEN, out_int32=True).to(torch.uint8)
    packed = (nearest[::2] << 4) | nearest[1::2]
    return packed[: -(-elements // 2)], absmax
