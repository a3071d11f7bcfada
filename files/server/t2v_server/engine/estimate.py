"""How much memory a profile takes on a GPU, counted without one.

The full-size networks are run on PyTorch's ``meta`` device, where tensors have a shape and no
memory, and what is alive at each operation is added up. Attention counts as one that keeps no
matrix of scores, as every backend for GPUs does.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from t2v_server.engine.denoiser import Denoiser
from t2v_server.engine.networks import DTYPES
from t2v_server.engine.tiny import FULL_SIZES, build_network
from t2v_server.engine.wan import BATCHED_TOKENS
from t2v_server.profiles import (
    GIB,
    Precision,
    Profile,
    Residency,
    VideoParameters,
)

# Bytes of a weight, with its share of the scales: one float32 a row, one for 64 weights.
_BYTES = {Precision.FP32: 4.0, Precision.BF16: 2.0, Precision.FP16: 2.0, Precision.INT8: 1.003,
          Precision.NF4: 0.5625}  # fmt: skip
# What no tensor shows: workspaces of cuDNN and cuBLAS, and blocks that the allocator cannot use.
_OVERHEAD = 1.15
_CONTEXT = GIB // 2
# 512 tokens in float32: some of 10,240 numbers each, and scores of 64 heads.
_ENCODING = GIB // 2
# A quantised weight is whole for the length of its product: in float32, and in what is computed.
_WHOLE_BYTES = 6


@dataclass(frozen=True)
class Estimate:
    """Bytes on the GPU while each network is used, and at most."""

    encoding: int
    denoising: int
    decoding: int

    @property
    def peak(self) -> int:
        return max(self.encoding, self.denoising, self.decoding)


def estimate(profile: Profile, video: VideoParameters | None = None) -> Estimate:
    """What the full-size model takes with a profile, at its largest clip unless told."""
    largest = video or _largest(profile)
    compute = DTYPES[profile.precisions.compute]
    vae_type = DTYPES[profile.precisions.vae]
    # The same networks as below: building them takes most of the time of all this.
    types = {"text_encoder": torch.bfloat16, "transformer": compute, "vae": vae_type}
    weights = {
        name: _weights(name, getattr(profile.precisions, name), dtype)
        for name, dtype in types.items()
    }
    activations = {
        "text_encoder": _ENCODING,
        "transformer": _denoising(largest, compute, profile),
        "vae": _decoding(largest, vae_type),
    }

    def at(name: str) -> int:
        resident = profile.residency is Residency.RESIDENT
        kept = sum(weights.values()) if resident else weights[name]
        return int((kept + activations[name]) * _OVERHEAD) + _CONTEXT

    return Estimate(at("text_encoder"), at("transformer"), at("vae"))


def _largest(profile: Profile) -> VideoParameters:
    limits, defaults = profile.limits, profile.defaults
    height = limits.max_pixels // limits.max_side
    return VideoParameters(
        limits.max_side, height, limits.max_frames, 1, defaults.guidance_scale, 5.0, 24
    )


def _weights(name: str, precision: Precision, dtype: torch.dtype) -> int:
    counted = 0.0
    for weight, parameter in _network(name, dtype).named_parameters():
        packed = parameter.ndim == 2 and "block" in weight
        size = _BYTES[precision if packed or not precision.quantised else Precision.FP16]
        counted += parameter.numel() * size
    return int(counted)


@functools.cache
def _network(name: str, dtype: torch.dtype) -> torch.nn.Module:
    return build_network(name, FULL_SIZES, "meta", dtype)


def _denoising(video: VideoParameters, dtype: torch.dtype, profile: Profile) -> int:
    latents = _latents(video, torch.float32)
    denoiser = Denoiser(cast(Any, _network("transformer", dtype)))
    tokens = latents[0, 0].numel() // 4
    prompts = 2 if profile.guidance else 1
    batched = prompts == 2 and tokens <= BATCHED_TOKENS
    whole = 0
    if profile.precisions.transformer.quantised:
        whole = FULL_SIZES.heads * FULL_SIZES.head * FULL_SIZES.hidden * _WHOLE_BYTES

    def step() -> object:
        embeddings = torch.empty((prompts, 512, FULL_SIZES.text_width), dtype=dtype, device="meta")
        texts = [embeddings] if batched else list(embeddings.split(1))
        prepared = [denoiser.prepare(one) for one in texts]
        samples = [latents * 1 for _ in range(4)]  # UniPC's earlier ones
        inputs = latents.to(dtype).expand(2 if batched else 1, -1, -1, -1, -1)
        time = torch.ones((inputs.shape[0],), device="meta")
        return samples, [denoiser.velocity(inputs, time, one) for one in prepared]

    return _alive(step) + whole


def _decoding(video: VideoParameters, dtype: torch.dtype) -> int:
    vae = cast(Any, _network("vae", dtype))
    latents = _latents(video, dtype)
    vae.clear_cache()

    def three() -> object:
        kept = []
        for index in range(min(3, latents.shape[2])):  # from the third on they are alike
            vae._conv_idx = [0]
            frame = vae.decoder(
                latents[:, :, index : index + 1], feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx, first_chunk=index == 0,
            )  # fmt: skip
            kept = [(frame.float() * 0.5 + 0.5).to(torch.uint8)]
        return kept

    return _alive(three)


def _latents(video: VideoParameters, dtype: torch.dtype) -> torch.Tensor:
    shape = (1, 48, video.latent_frames, video.height // 16, video.width // 16)
    return torch.empty(shape, dtype=dtype, device="meta")


def _alive(run: Callable[[], object]) -> int:
    """The most bytes of tensors made by ``run`` that were alive at once."""

    def attention(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.empty_like(query)

    counted = _Counted()
    with (
        torch.no_grad(),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention),
        counted,
    ):
        run()
    return counted.most


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


class _Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = set[int]()
        self._now = 0
        self.most = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        for tensor in _tensors(args):
            # Weights and inputs were there before; what is a view of them is nothing new.
            self._known.add(tensor.untyped_storage()._cdata)
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
