"""Random-weight Wan2.2-TI2V of any size, built in code: no download.

The tiny one is the default model, and the tests': every class, flag and code path is the 5B
model's, only widths and depths are small, so that any CPU will do. What it shows is noise, the
same noise for the same prompt and seed on every machine. The others are for benchmarks, as speed
and memory do not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from t2v_server.engine.pipeline import TextToVideoPipeline, modules_of

_WEIGHTS_SEED = 0
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,!?'-"
_VOCABULARY = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *_CHARACTERS])}
_LATENT_CHANNELS = 48


@dataclass(frozen=True)
class Sizes:
    """Widths and depths: of the text encoder, the transformer and the VAE."""

    vocabulary: int
    text_width: int
    text_head: int
    text_heads: int
    text_hidden: int
    text_layers: int
    heads: int
    head: int
    hidden: int
    layers: int
    vae_encoder: int
    vae_decoder: int
    vae_blocks: int


TINY_SIZES = Sizes(
    vocabulary=64, text_width=32, text_head=8, text_heads=4, text_hidden=64, text_layers=2,
    heads=2, head=16, hidden=64, layers=2, vae_encoder=16, vae_decoder=16, vae_blocks=1,
)  # fmt: skip
# Seconds a clip on a CPU, with each network's share of the work near the real one's.
MID_SIZES = Sizes(
    vocabulary=64, text_width=512, text_head=64, text_heads=8, text_hidden=1024, text_layers=4,
    heads=8, head=64, hidden=2048, layers=6, vae_encoder=16, vae_decoder=32, vae_blocks=2,
)  # fmt: skip
# Wan-AI/Wan2.2-TI2V-5B-Diffusers: 5.00 B, 5.68 B and 0.70 B weights.
FULL_SIZES = Sizes(
    vocabulary=256_384, text_width=4096, text_head=64, text_heads=64, text_hidden=10_240,
    text_layers=24, heads=24, head=128, hidden=14_336, layers=30, vae_encoder=160,
    vae_decoder=256, vae_blocks=2,
)  # fmt: skip
CLONES: Mapping[str, Sizes] = {"tiny": TINY_SIZES, "mid": MID_SIZES, "full": FULL_SIZES}


def build_network(name: str, sizes: Sizes, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """One of ``text_encoder``, ``vae`` and ``transformer``, all of it in ``dtype``."""
    build = {"text_encoder": _text_encoder, "vae": _vae, "transformer": _transformer}[name]
    with torch.device(device):
        network = _in(dtype, lambda: build(sizes))
    return cast(torch.nn.Module, network).eval().requires_grad_(False)


def build_tiny_pipeline() -> TextToVideoPipeline:
    """Build the tiny one in float32 on the CPU: milliseconds, 12 MB."""
    return build_clone(TINY_SIZES)


def build_clone(
    sizes: Sizes,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype = torch.float32,
) -> TextToVideoPipeline:
    """Build a pipeline where it is to be, as ``from_pretrained`` with these types would.

    What diffusers keeps in float32 is in float32.
    """
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(_WEIGHTS_SEED)
        text_encoder = _in(dtype, lambda: _text_encoder(sizes))
        vae = _in(vae_dtype, lambda: _vae(sizes))
        transformer = cast(torch.nn.Module, _in(dtype, lambda: _transformer(sizes)))
    for name, module in transformer.named_modules():
        if set(name.split(".")) & set(WanTransformer3DModel._keep_in_fp32_modules):
            module.float()
    for name, parameter in transformer.named_parameters():
        if name.endswith("scale_shift_table"):
            parameter.data = parameter.data.float()
    pipeline = cast(
        TextToVideoPipeline,
        WanPipeline(
            tokenizer=_tokenizer(),
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                num_train_timesteps=1000,
                flow_shift=5.0,
            ),
            expand_timesteps=True,
        ),
    )
    for module in modules_of(pipeline):
        module.eval().requires_grad_(False)
    return pipeline


Network = TypeVar("Network")


def _in(dtype: torch.dtype, build: Callable[[], Network]) -> Network:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: enough for different prompts to give different videos."""
    tokenizer = Tokenizer(WordLevel(_VOCABULARY, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", _VOCABULARY["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def _text_encoder(sizes: Sizes) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=sizes.vocabulary,
            d_model=sizes.text_width,
            d_kv=sizes.text_head,
            d_ff=sizes.text_hidden,
            num_layers=sizes.text_layers,
            num_heads=sizes.text_heads,
        )
    )


def _vae(sizes: Sizes) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=sizes.vae_encoder,
        decoder_base_dim=sizes.vae_decoder,
        z_dim=_LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=sizes.vae_blocks,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
        latents_mean=[0.0] * _LATENT_CHANNELS,
        latents_std=[1.0] * _LATENT_CHANNELS,
    )


def _transformer(sizes: Sizes) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=sizes.heads,
        attention_head_dim=sizes.head,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        text_dim=sizes.text_width,
        freq_dim=256,
        ffn_dim=sizes.hidden,
        num_layers=sizes.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
    )
