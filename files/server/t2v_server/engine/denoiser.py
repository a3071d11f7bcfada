"""The transformer's forward pass, without what is the same in every step.

``diffusers.WanTransformer3DModel`` projects the text, computes each block's keys and values of
it, and lays out the rotary embedding in every step. Here that is done once for a generation.
The blocks themselves are the model's own, so that quantised layers, compiled blocks, block
caches and LoRA all stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

KeyValue = tuple[torch.Tensor, torch.Tensor]


class PreparedTextProcessor(WanAttnProcessor):
    """Cross-attention that takes keys and values in the place of the text; else as diffusers'.

    They have the shape ``(batch, tokens, heads, head_dim)``, the keys are normalised.
    """

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | KeyValue | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if not isinstance(encoder_hidden_states, tuple):
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
        key, value = encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        mixed = dispatch_attention_fn(
            query, key, value,
            attn_mask=None, dropout_p=0.0, is_causal=False, backend=self._attention_backend,
            parallel_config=None,
        )  # fmt: skip
        mixed = mixed.flatten(2, 3).type_as(query)
        return cast(torch.Tensor, attn.to_out[1](attn.to_out[0](mixed)))


@dataclass(frozen=True)
class PreparedText:
    """A batch of prompts as the blocks read them: keys and values for each block.

    ``like`` has the type that the transformer computes in.
    """

    blocks: Sequence[KeyValue]
    like: torch.Tensor


class Denoiser:
    """One transformer. Its blocks accept the text both prepared and, for diffusers, as it is."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.transformer = transformer
        self._inner = cast(Any, transformer)
        for block in self._blocks:
            processor = cast(Any, PreparedTextProcessor)()
            processor._attention_backend = block.attn2.processor._attention_backend
            block.attn2.set_processor(processor)
        self._rotary: dict[tuple[object, ...], object] = {}

    @property
    def _blocks(self) -> Sequence[Any]:
        return cast(Sequence[Any], self._inner.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer takes its inputs in."""
        return cast(torch.dtype, self._inner.dtype)

    def cached(self, name: str, step: int, steps: int) -> AbstractContextManager[Any]:
        """Names a forward pass for a block cache: ``cond`` and ``uncond`` are kept apart."""
        return cast(
            AbstractContextManager[Any],
            self._inner.cache_context(name, step_index=step, num_inference_steps=steps),
        )

    def forget(self) -> None:
        """Forget what block caches and the rotary embedding kept of a generation."""
        self._inner._reset_stateful_cache()
        self._rotary.clear()

    def prepare(self, embeddings: torch.Tensor) -> PreparedText:
        """Project embeddings of shape ``(batch, tokens, text_dim)`` once for all steps."""
        text = self._inner.condition_embedder.text_embedder(embeddings)
        blocks = []
        for block in self._blocks:
            attn = block.attn2
            key = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1))
            value = attn.to_v(text).unflatten(2, (attn.heads, -1))
            blocks.append((key, value))
        return PreparedText(blocks, embeddings[:1, :1])

    def velocity(
        self, latents: torch.Tensor, timestep: torch.Tensor, text: PreparedText | torch.Tensor
    ) -> torch.Tensor:
        """One forward pass; with embeddings that were not prepared, diffusers' own.

        ``latents`` is ``(batch, channels, frames, height, width)``, ``timestep`` ``(batch,)``, or
        ``(batch, tokens)`` where tokens differ in their noise. Returns the velocity in the
        latents' shape.
        """
        if isinstance(text, PreparedText):
            return self._forward(latents, timestep, text)
        outputs = self._inner(
            hidden_states=latents, timestep=timestep, encoder_hidden_states=text, return_dict=False
        )
        return cast(torch.Tensor, outputs[0])

    def _forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, text: PreparedText
    ) -> torch.Tensor:
        """``WanTransformer3DModel.forward``, but for what is the same in every step."""
        model = self._inner
        batch, _, frames, height, width = latents.shape
        p_t, p_h, p_w = model.config.patch_size
        rotary = self._rotary_of(latents)
        hidden = model.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()

        tokens = timestep.shape[1] if timestep.ndim == 2 else None
        embedder = model.condition_embedder
        noise = embedder.timesteps_proj(timestep.flatten())
        if tokens is not None:
            noise = noise.unflatten(0, (-1, tokens))
        kind = next(iter(embedder.time_embedder.parameters())).dtype
        if noise.dtype != kind and kind != torch.int8:
            noise = noise.to(kind)
        temb = embedder.time_embedder(noise).type_as(text.like)
        modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1))

        for block, key_value in zip(self._blocks, text.blocks, strict=True):
            hidden = block(hidden, key_value, modulation, rotary)

        table = model.scale_shift_table.to(temb.device)
        if tokens is not None:
            shift, scale = (table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
            shift, scale = shift.squeeze(2), scale.squeeze(2)
        else:
            shift, scale = (table + temb.unsqueeze(1)).chunk(2, dim=1)
        hidden = (model.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        hidden = model.proj_out(hidden)
        hidden = hidden.reshape(
            batch, frames // p_t, height // p_h, width // p_w, p_t, p_h, p_w, -1
        )
        hidden = hidden.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return cast(torch.Tensor, hidden.flatten(6, 7).flatten(4, 5).flatten(2, 3))

    def _rotary_of(self, latents: torch.Tensor) -> object:
        key = (*latents.shape[2:], latents.device)
        if key not in self._rotary:
            self._rotary = {key: self._inner.rope(latents)}
        return self._rotary[key]
