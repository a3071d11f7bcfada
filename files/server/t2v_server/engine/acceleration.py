"""What the device can do: the fastest exact attention, compiled blocks, and block caches.

Nothing is taken for granted: each backend is tried on tensors of the real shape, compared with
the plain one, and timed; blocks are compiled where a compiled block gives what the block gives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import torch
from diffusers import (
    FirstBlockCacheConfig,
    TaylorSeerCacheConfig,
    WanTransformer3DModel,
)
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from t2v_server.profiles import Compile

log = logging.getLogger(__name__)

# Those that compute attention itself, and not an approximation as SageAttention does.
EXACT_BACKENDS = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "flash",
                  "_flash_3")  # fmt: skip
_TRIALS = 3
# Of outputs around 1 / sqrt(tokens) ... 1; twice what bfloat16 can tell apart near 1.
_ATTENTION_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_COMPILE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_TRITON_FROM = (8, 0)  # Triton left Turing (7.5, a T4) after its release 3.2


class BlockCache(StrEnum):
    """Ways to skip blocks whose output changes little between steps: faster, and not the same."""

    NONE = "none"
    FIRST_BLOCK = "first-block"
    TAYLOR = "taylorseer"


@dataclass(frozen=True)
class Trial:
    """One backend on one shape: seconds for a call, or why it is not used."""

    name: str
    seconds: float | None
    reason: str = ""


def try_attention(
    shape: tuple[int, int, int, int],
    device: str,
    dtype: torch.dtype,
    names: Sequence[str] = EXACT_BACKENDS,
) -> list[Trial]:
    """Time each backend on random tensors of ``(batch, tokens, heads, head_dim)``."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)
    )
    plain = _attend(query, key, value, "native")
    trials = []
    for name in names:
        try:
            difference = (_attend(query, key, value, name) - plain).abs().max().item()
            if not difference <= _ATTENTION_TOLERANCE[dtype]:
                trials.append(Trial(name, None, f"differs by {difference:.1e}"))
                continue
            started = time.perf_counter()
            for _ in range(_TRIALS):
                _attend(query, key, value, name)
            _wait_for(device)
            trials.append(Trial(name, (time.perf_counter() - started) / _TRIALS))
        except Exception as error:
            lines = str(error).strip().splitlines()
            trials.append(Trial(name, None, lines[0] if lines else type(error).__name__))
    return trials


def choose_attention(
    transformer: WanTransformer3DModel, tokens: int, device: str, dtype: torch.dtype
) -> str:
    """Have the transformer use the fastest backend for clips of ``tokens``; returns its name.

    On a CPU there is only one worth trying.
    """
    if device == "cpu":
        return "native"
    config = cast(Any, transformer).config
    shape = (1, tokens, config.num_attention_heads, config.attention_head_dim)
    usable = list[tuple[float, str]]()
    for trial in try_attention(shape, device, dtype):
        if trial.seconds is None:
            log.debug("attention %s is not used: %s", trial.name, trial.reason)
        else:
            usable.append((trial.seconds, trial.name))
    if not usable:
        return "native"
    seconds, name = min(usable)
    log.info("attention %s: %.2f ms for %d tokens", name, seconds * 1e3, tokens)
    cast(Any, transformer).set_attention_backend(name)
    return name


def compile_blocks(
    transformer: WanTransformer3DModel, wanted: Compile, device: str, dtype: torch.dtype
) -> str:
    """Compile the transformer's blocks where that works; returns what was done, in words."""
    if wanted is Compile.NO:
        return "no"
    if device == "cuda" and torch.cuda.get_device_capability() < _TRITON_FROM:
        return "no: Triton needs compute capability 8.0"
    blocks = cast(Sequence[torch.nn.Module], cast(Any, transformer).blocks)
    try:
        sample = _block_inputs(transformer, device, dtype)
        plain = blocks[0](*sample)
        cast(Any, transformer).compile_repeated_blocks()
        difference = (blocks[0](*sample) - plain).abs().max().item()
        if not difference <= _COMPILE_TOLERANCE[dtype] * max(1.0, plain.abs().max().item()):
            raise ValueError(f"a compiled block differs by {difference:.1e}")
    except Exception as error:
        for block in blocks:
            block._compiled_call_impl = None
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        (log.warning if wanted is Compile.YES else log.info)("blocks stay uncompiled: %s", reason)
        return f"no: {reason}"
    return "yes"


def enable_block_cache(
    transformer: WanTransformer3DModel, kind: BlockCache, threshold: float
) -> None:
    """Skip blocks whose output changes little: results are near the exact ones, not the same.

    ``threshold`` is, of the first block's output, the relative change below which the other
    blocks are skipped; for ``TAYLOR`` it has no meaning.
    """
    if kind is BlockCache.FIRST_BLOCK:
        cast(Any, transformer).enable_cache(FirstBlockCacheConfig(threshold=threshold))
    elif kind is BlockCache.TAYLOR:
        cast(Any, transformer).enable_cache(
            TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=3, max_order=1)
        )


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    return dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))


def _block_inputs(
    transformer: WanTransformer3DModel, device: str, dtype: torch.dtype
) -> tuple[object, ...]:
    """A few tokens as a block gets them, with keys and values of a text."""
    inner = cast(Any, transformer)
    heads, dim = inner.config.num_attention_heads, inner.config.attention_head_dim
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    latents = random(1, inner.config.in_channels, 1, 8, 8)
    tokens = 16  # of 8 x 8 latents in patches of 2 x 2
    key_value = (random(1, 32, heads, dim), random(1, 32, heads, dim))
    inputs = (random(1, tokens, heads * dim), key_value, random(1, 6, heads * dim) * 0.1)
    return (*inputs, inner.rope(latents))


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
