"""Latents to frames, one latent frame after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from t2v_server.engine.encoding import Frames
from t2v_server.engine.errors import GenerationError
from t2v_server.engine.pipeline import Vae, VaeConfig


def whole_latents(latents: torch.Tensor, vae: Vae) -> torch.Tensor:
    """From what the transformer works on to what the VAE decodes, as ``WanPipeline`` does."""
    latents = latents.to(vae.dtype)
    mean, inverse = statistics(vae.config, latents)
    return latents / inverse + mean


def statistics(config: VaeConfig, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, and one over the standard deviation, of the VAE's latents, by channel."""
    shape = (1, config.z_dim, 1, 1, 1)
    mean = torch.tensor(config.latents_mean).view(shape).to(like)
    return mean, 1.0 / torch.tensor(config.latents_std).view(shape).to(like)


def decode_frames(
    latents: torch.Tensor, vae: Vae, begin: Callable[[int], None]
) -> Iterator[Frames]:
    """Decode ``latents`` of one clip, ``(1, channels, latent_frames, height, width)``.

    Yields the frames of each latent frame, ``(n, H, W, 3)``: one for the first and
    ``scale_factor_temporal`` for each after it. The same numbers as ``vae.decode`` and
    ``VideoProcessor.postprocess_video``, which hold all frames in float32, the first of them
    copied once for each that follows. ``begin`` hears of each latent frame before it is decoded.

    Raises:
        GenerationError: a frame is not numbers.
    """
    inner = cast(Any, vae)
    inner.clear_cache()
    try:
        decoded = inner.post_quant_conv(latents)
        for index in range(latents.shape[2]):
            begin(index)
            inner._conv_idx = [0]
            first = {"first_chunk": True} if index == 0 else {}
            frame = inner.decoder(
                decoded[:, :, index : index + 1],
                feat_cache=inner._feat_map, feat_idx=inner._conv_idx, **first,
            )  # fmt: skip
            yield _to_frames(frame, inner.config.patch_size)
    finally:
        inner.clear_cache()


def _to_frames(frame: torch.Tensor, patch_size: int | None) -> Frames:
    """From the decoder's output to RGB bytes."""
    if patch_size is not None:
        frame = unpatchify(frame, patch_size=patch_size)
    frame = torch.clamp(frame, min=-1.0, max=1.0)
    return to_bytes((frame * 0.5 + 0.5).clamp(0, 1))


def to_bytes(frame: torch.Tensor) -> Frames:
    """From ``(1, 3, n, H, W)`` in 0…1 to ``(n, H, W, 3)``, RGB.

    Raises:
        GenerationError: a frame is not numbers.
    """
    whole = (frame[0].permute(1, 2, 3, 0).float() * 255).round()
    # Before the conversion: of what is no number it makes some colour.
    if not bool(torch.isfinite(whole).all()):
        raise GenerationError("the model gave frames that are not finite numbers")
    return cast(Frames, whole.to(torch.uint8).cpu().numpy())
