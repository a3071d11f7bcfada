"""Random-weight models of Wan2.2-TI2V's classes, saved as the published one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from t2v_server.engine.tiny import build_tiny_pipeline
from transformers import UMT5Config, UMT5EncoderModel


def save_tiny(directory: Path, shard: str = "10GB") -> Path:
    """The tiny model: 12 MB. ``shard``: the size of its files at most."""
    pipeline = cast(Any, build_tiny_pipeline())
    pipeline.save_pretrained(directory, max_shard_size=shard)
    return directory


def save_middle(directory: Path, shard: str = "48MB") -> Path:
    """One of 370 MB, so that what a process holds of it is seen beside the process itself."""
    tiny = cast(Any, build_tiny_pipeline())
    transformer = dict(tiny.transformer.config) | {
        "num_attention_heads": 6, "attention_head_dim": 128, "text_dim": 512, "ffn_dim": 2304,
        "num_layers": 8,
    }  # fmt: skip
    vae = dict(tiny.vae.config) | {"base_dim": 32, "decoder_base_dim": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny.register_modules(
            transformer=WanTransformer3DModel.from_config(transformer).eval(),
            vae=AutoencoderKLWan.from_config(vae).eval(),
            text_encoder=UMT5EncoderModel(
                UMT5Config(
                    vocab_size=8000, d_model=512, d_kv=64, d_ff=1024, num_layers=2, num_heads=8
                )
            ).eval(),
        )
    tiny.save_pretrained(directory, max_shard_size=shard)
    return directory
