"""A random-weight Wan2.2-TI2V small enough for any CPU: the default model, and the tests'.

Every class, flag and code path is the 5B model's; only widths and depths are small. What it
shows is noise, the same noise for the same prompt and seed on every machine.
"""

from __future__ import annotations

from typing import cast

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
_TEXT_DIM = 32


def build_tiny_pipeline() -> TextToVideoPipeline:
    """Build the pipeline in float32 on the CPU: milliseconds, 12 MB, no download."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_WEIGHTS_SEED)
        pipeline = cast(
            TextToVideoPipeline,
            WanPipeline(
                tokenizer=_tokenizer(),
                text_encoder=_text_encoder(),
                vae=_vae(),
                transformer=_transformer(),
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
        module.eval()
    return pipeline


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


def _text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=_TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=_LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
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


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        text_dim=_TEXT_DIM,
        freq_dim=256,
        ffn_dim=64,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
    )
