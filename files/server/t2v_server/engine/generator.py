"""Prompt in, frames out: the resident pipeline on its device."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import read_manifest
from t2v_server.config import EngineSettings
from t2v_server.engine.acceleration import (
    BlockCache,
    choose_attention,
    compile_blocks,
    enable_block_cache,
)
from t2v_server.engine.checkpoint import is_local, load
from t2v_server.engine.encoding import Frames
from t2v_server.engine.errors import EngineLostError, GenerationError, OutOfMemory
from t2v_server.engine.images import fitted
from t2v_server.engine.lora import apply_lora
from t2v_server.engine.networks import DTYPES
from t2v_server.engine.pipeline import TextToVideoPipeline
from t2v_server.engine.text import EmbeddingCache
from t2v_server.engine.tiny import build_tiny_pipeline
from t2v_server.engine.tinydecoder import TinyDecoder, load_tiny_decoder
from t2v_server.engine.wan import Choices, WanVideo, Watch
from t2v_server.jobs.record import Parameters, Progress
from t2v_server.profiles import (
    TINY,
    TINY_MODEL,
    Decoder,
    Precision,
    Profile,
    Residency,
    VideoParameters,
)

log = logging.getLogger(__name__)

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_WARM_UP_STEPS = 2
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "could not create a primitive", "bad_alloc")


def ignore(_progress: Progress) -> None:
    """A ``Watch`` that does nothing."""


@dataclass(frozen=True)
class Tuning:
    """The operator's choices beside the profile.

    ``lora`` is a file of adapters, ``tiny_decoder`` one of a small decoder's weights.
    """

    block_cache: BlockCache = BlockCache.NONE
    block_cache_threshold: float = 0.08
    embedding_cache_bytes: int = 64 << 20
    lora: Path | None = None
    lora_scale: float = 1.0
    tiny_decoder: Path | None = None


@dataclass(frozen=True)
class VideoGenerator:
    """One pipeline on one device. Not thread-safe: one generation at a time.

    ``attention`` and ``compiled`` say what was chosen for the device.
    """

    pipeline: TextToVideoPipeline
    wan: WanVideo
    device: str
    dtype: str
    attention: str = "native"
    compiled: str = "no"

    def stream(
        self, parameters: Parameters, watch: Watch = ignore, image: Path | None = None
    ) -> Iterator[Frames]:
        """Generate one clip; yields its frames as they are decoded, ``(n, height, width, 3)``.

        The seed drives the initial noise on the CPU, so that it means the same on every device.
        ``watch`` hears of every denoising step and every decoded latent frame. ``image`` is the
        file of the picture that the clip begins with.

        Raises:
            OutOfMemory, GenerationError: this clip cannot be made.
            EngineLostError: the GPU's context is broken.
        """
        video = parameters.video
        try:
            first = None if image is None else _opened(image, video)
            yield from self.wan.stream(parameters, watch, first)
        except Exception as error:
            if _is_out_of_memory(error):
                raise OutOfMemory(
                    f"out of memory at {video.width}x{video.height}, {video.num_frames} frames"
                ) from error
            if isinstance(error, torch.AcceleratorError):
                raise EngineLostError(f"the GPU failed: {error}") from error
            raise

    def generate(
        self, parameters: Parameters, watch: Watch = ignore, image: Path | None = None
    ) -> Frames:
        """As ``stream``, all frames at once: ``(num_frames, height, width, 3)``, RGB, uint8."""
        return np.concatenate(list(self.stream(parameters, watch, image)))

    def warm_up(self, video: VideoParameters) -> Iterator[Frames]:
        """Generate a clip of full size in few steps.

        Full size proves that the memory suffices and fills the kernel caches; more steps
        would only repeat the same work.
        """
        steps = min(video.num_inference_steps, _WARM_UP_STEPS)
        few_steps = replace(video, num_inference_steps=steps)
        return self.stream(Parameters("warm-up", "", 0, few_steps))

    def stage_seconds(self) -> Mapping[str, float]:
        """How long each stage of the last generation took, by its name."""
        return {stage.value: seconds for stage, seconds in self.wan.last.seconds.items()}

    def begin_memory_peak(self) -> None:
        """Measure the peak anew, where the device can."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_memory_bytes(self) -> int:
        """The most memory since ``begin_memory_peak``: the GPU's, or of this process ever."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _opened(path: Path, video: VideoParameters) -> Image.Image:
    try:
        with Image.open(path) as image:
            return fitted(image, video.width, video.height)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise GenerationError(f"the image that the clip begins with cannot be read: {error}") from (
            error
        )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # PyTorch's allocator for the CPU, and oneDNN below it, have no exception of their own.
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def load_for(settings: EngineSettings, gpu: int = 0) -> VideoGenerator:
    """As ``load_generator``, by the operator's settings."""
    tuning = Tuning(
        block_cache=BlockCache(settings.block_cache),
        block_cache_threshold=settings.block_cache_threshold,
        lora=settings.lora,
        lora_scale=settings.lora_scale,
        tiny_decoder=settings.tiny_decoder,
    )
    return load_generator(
        settings.model, settings.device, settings.dtype, settings.torch_threads, gpu,
        settings.profile, tuning,
    )  # fmt: skip


def load_generator(
    model: str,
    device: str,
    dtype: str,
    torch_threads: int | None,
    gpu: int = 0,
    profile: Profile = TINY,
    tuning: Tuning | None = None,
) -> VideoGenerator:
    """Build or load the pipeline, move it to its device and tune it for that.

    ``model`` is ``tiny``, a checkpoint that was prepared for ``profile``, another directory with
    one, or a hub id;
    ``device`` and ``dtype`` may be ``auto``; ``gpu`` chooses among several, around and around.
    Raises whatever loading raises.
    """
    tuning = tuning or Tuning()
    if torch_threads is None and model == TINY_MODEL:
        # Its kernels are too small to share out: threads that wait for each other on busy
        # cores made it several times slower.
        torch_threads = 1
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    device = _resolve_device(device)
    if device == "cuda":
        torch.cuda.set_device(gpu % torch.cuda.device_count())
    if is_local(model):
        dtype = _dtype_of_prepared(dtype, Path(model))
    dtype = _resolve_dtype(dtype, device, model, profile)
    pipeline, revision = _load_pipeline(model, device, dtype, profile)
    pipeline.set_progress_bar_config(disable=True)
    if tuning.lora is not None:
        apply_lora(pipeline, tuning.lora, tuning.lora_scale)
    wan = WanVideo(
        pipeline,
        device,
        residency=profile.residency,
        schedule=profile.schedule,
        decoder=_tiny_decoder(profile, tuning.tiny_decoder, device, _DTYPES[dtype]),
        embeddings=EmbeddingCache(revision, tuning.embedding_cache_bytes),
        choices=Choices(block_caches=tuning.block_cache is not BlockCache.NONE),
    )
    attention, compiled = _accelerate(wan, profile, device, _DTYPES[dtype], tuning)
    return VideoGenerator(pipeline, wan, device, dtype, attention, compiled)


def _load_pipeline(
    model: str, device: str, dtype: str, profile: Profile
) -> tuple[TextToVideoPipeline, str]:
    """The pipeline, on the host or on the device, and the revision of its weights."""
    if model == TINY_MODEL:
        return build_tiny_pipeline(), TINY_MODEL
    if is_local(model):
        # What comes to the device in turns is mapped on the host until then.
        there = "cpu" if profile.residency is Residency.STAGED else device
        return load(Path(model), there, profile)
    vae = DTYPES[profile.precisions.vae] if device == "cuda" else torch.float32
    pipeline = cast(
        TextToVideoPipeline,
        WanPipeline.from_pretrained(model, dtype={"default": _DTYPES[dtype], "vae": vae}),
    )
    return pipeline, model


def _tiny_decoder(
    profile: Profile, weights: Path | None, device: str, dtype: torch.dtype
) -> TinyDecoder | None:
    if profile.decoder is not Decoder.TINY:
        return None
    if weights is None:
        log.warning(
            "the profile %s has a small decoder, and T2V_TINY_DECODER names no weights for it: "
            "the VAE decodes, sharper and slower", profile.name,
        )  # fmt: skip
        return None
    return load_tiny_decoder(weights, dtype if device == "cuda" else torch.float32)


def _accelerate(
    wan: WanVideo, profile: Profile, device: str, dtype: torch.dtype, tuning: Tuning
) -> tuple[str, str]:
    """Choose attention and compilation for the device; a block cache comes after both."""
    with wan.transformer_at_hand() as transformer:
        attention = choose_attention(transformer, profile.defaults.tokens, device, dtype)
        # Compiled code and skipped blocks together are slower than either.
        compiled = "no: a block cache is used"
        if device == "cpu":
            compiled = "no: minutes to compile, for seconds"
        elif tuning.block_cache is BlockCache.NONE:
            compiled = compile_blocks(transformer, profile.compile, device, dtype)
        enable_block_cache(transformer, tuning.block_cache, tuning.block_cache_threshold)
    return attention, compiled


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _dtype_of_prepared(dtype: str, directory: Path) -> str:
    """What a prepared transformer computes in: no setting changes it."""
    compute = DTYPES[Precision(read_manifest(directory).networks["transformer"].compute)]
    prepared = next(name for name, one in _DTYPES.items() if one is compute)
    if dtype not in ("auto", prepared):
        raise CheckpointError(
            f"{directory} was prepared to compute in {prepared}, and T2V_DTYPE is {dtype}: "
            "unset that, or prepare it for another profile"
        )
    return prepared


def _resolve_dtype(dtype: str, device: str, model: str, profile: Profile) -> str:
    """What transformer and text encoder compute in."""
    if dtype != "auto":
        return dtype
    if device == "cpu" or model == TINY_MODEL:
        return "float32"
    if profile.precisions.compute is Precision.FP16:
        return "float16"
    # Before Ampere (a T4, say) bfloat16 is emulated and slow.
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"
