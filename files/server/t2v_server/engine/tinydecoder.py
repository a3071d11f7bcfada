"""The small decoder: latents to frames at a hundredth of the VAE's work, and less sharply.

TAEHV by Ollin Boer Bohan (https://github.com/madebyollin/taehv, MIT), in the form of its
``taew2_2`` weights for Wan2.2-TI2V's latents. Written here from its layout; the weights are its
own file, which the operator brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn

from t2v_server.engine.decoding import to_bytes
from t2v_server.engine.encoding import Frames

_CHANNELS, _PATCH = 48, 2
_WIDTHS = (256, 128, 64, 64)
_TIMES = (1, 2, 2)  # how many frames each stage makes of one
_MEMORIES = 3
_PREFIX = "decoder."


class _Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class _Memory(nn.Module):
    """A residual block that sees the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [_conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU()]
        self.conv = nn.Sequential(*layers, _conv(width, width))

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(torch.cat([x, past], 1)) + x)


class _Grow(nn.Module):
    """One frame to ``times`` frames."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)
        self._times = times

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(self.conv(x).chunk(self._times, 1))


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class TinyDecoder(nn.Module):
    """Decodes one latent frame after the other; the layers are numbered as in its file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Clamp(), _conv(_CHANNELS, _WIDTHS[0]), nn.ReLU()]
        for width, following, times in zip(_WIDTHS, _WIDTHS[1:], _TIMES, strict=False):
            layers += [_Memory(width) for _ in range(_MEMORIES)]
            layers += [nn.Upsample(scale_factor=2), _Grow(width, times)]
            layers.append(_conv(width, following, bias=False))
        layers += [nn.ReLU(), _conv(_WIDTHS[-1], 3 * _PATCH**2)]
        self.decoder = nn.Sequential(*layers)

    def frames(self, latents: torch.Tensor, begin: Callable[[int], None]) -> Iterator[Frames]:
        """As ``decode_frames``, of latents as the transformer leaves them."""
        latents = latents.to(next(self.parameters()).dtype)
        past: dict[int, torch.Tensor] = {}
        for index in range(latents.shape[2]):
            begin(index)
            made = [latents[:, :, index]]
            for number, layer in enumerate(self.decoder):
                made = [one for frame in made for one in _applied(layer, number, frame, past)]
            if index == 0:
                made = made[-1:]  # the first latent frame is one frame
            shown = torch.stack([nn.functional.pixel_shuffle(one, _PATCH) for one in made], 2)
            yield to_bytes(shown.clamp(0, 1))


def _applied(
    layer: nn.Module, number: int, frame: torch.Tensor, past: dict[int, torch.Tensor]
) -> list[torch.Tensor]:
    if isinstance(layer, _Memory):
        before = past.get(number)
        past[number] = frame
        return [layer(frame, torch.zeros_like(frame) if before is None else before)]
    if isinstance(layer, _Grow):
        return layer(frame)  # type: ignore[no-any-return]
    return [layer(frame)]


def load_tiny_decoder(path: Path, dtype: torch.dtype) -> TinyDecoder:
    """The decoder with the weights in ``path``, ``.safetensors`` or PyTorch's own.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    decoder = TinyDecoder()
    try:
        if path.suffix == ".safetensors":
            given = load_file(path)
        else:
            given = cast(
                dict[str, torch.Tensor], torch.load(path, map_location="cpu", weights_only=True)
            )
        weights = {name: one for name, one in given.items() if name.startswith(_PREFIX)}
        decoder.load_state_dict(weights)
    except OSError:
        raise
    except Exception as error:  # whatever a reader makes of bytes that are something else
        says = f"{path} holds no decoder for Wan2.2-TI2V, such as taew2_2: {error}"
        raise ValueError(says) from error
    return decoder.to(dtype).eval().requires_grad_(False)
