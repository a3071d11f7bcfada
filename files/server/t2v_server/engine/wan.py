"""Our pipeline for Wan2.2-TI2V: diffusers' components, driven without what can be left out.

What is done and what each part of it does to the result is in docs/engine.md; tests compare all
of it with ``diffusers.WanPipeline`` and ``WanImageToVideoPipeline``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, cast

import torch
from diffusers import WanTransformer3DModel
from PIL import Image

from t2v_server.engine.decoding import decode_frames, statistics, whole_latents
from t2v_server.engine.denoiser import Denoiser, PreparedText
from t2v_server.engine.encoding import Frames
from t2v_server.engine.fewstep import FewStep
from t2v_server.engine.pipeline import TextToVideoPipeline, Vae
from t2v_server.engine.residency import Berth
from t2v_server.engine.text import MAX_TOKENS, EmbeddingCache
from t2v_server.engine.tinydecoder import TinyDecoder
from t2v_server.engine.unipc import FlowUniPC
from t2v_server.jobs.record import PERCENT_BEFORE, Parameters, Progress, Stage
from t2v_server.profiles import FRAMES_STEP, Residency

# Called after each unit of work; what it raises ends the generation.
Watch = Callable[[Progress], None]

# Up to so many tokens one pass over both prompts is faster on a GPU than two; beyond them it
# fills the GPU either way, and only takes twice the memory.
BATCHED_TOKENS = 8192


class Guidance(StrEnum):
    """How classifier-free guidance runs the transformer on both prompts."""

    AUTO = "auto"
    TWO = "two"
    BATCHED = "batched"


@dataclass(frozen=True)
class Choices:
    """What can be switched off, to see what it does. All but ``block_caches`` are exact.

    Exact means equal to diffusers' result up to rounding; docs/engine.md says how far.
    """

    plain_timesteps: bool = True  # one timestep for all tokens, where they do not differ
    prepared_text: bool = True  # projections of the text once, not in every step
    host_scheduler: bool = True  # UniPC without waits for the GPU
    guidance: Guidance = Guidance.AUTO
    block_caches: bool = False  # the transformer has a block cache: passes are kept apart


class Sampler(Protocol):
    """Timesteps on the CPU, and from one sample to the next."""

    timesteps: torch.Tensor

    def step(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor: ...


class _StockSampler:
    """diffusers' own scheduler."""

    def __init__(self, scheduler: object, steps: int, device: torch.device) -> None:
        self._scheduler = cast(Any, scheduler)
        self._scheduler.set_timesteps(steps, device=device)
        self._scheduler.set_begin_index(0)
        self.timesteps: torch.Tensor = self._scheduler.timesteps
        self._index = 0

    def step(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        timestep = self.timesteps[self._index]
        self._index += 1
        return cast(
            torch.Tensor, self._scheduler.step(velocity, timestep, sample, return_dict=False)[0]
        )


@dataclass
class StageSeconds:
    """How long each stage of the last generation took."""

    seconds: dict[Stage, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: Stage, device: torch.device) -> Iterator[None]:
        """Time the block, and what it queued on the GPU."""
        started = time.perf_counter()
        try:
            yield
            if device.type == "cuda":
                torch.cuda.synchronize()
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class WanVideo:
    """One model on one device. Not thread-safe: one generation at a time."""

    def __init__(
        self,
        pipeline: TextToVideoPipeline,
        device: str,
        *,
        residency: Residency = Residency.RESIDENT,
        schedule: tuple[int, ...] | None = None,
        decoder: TinyDecoder | None = None,
        embeddings: EmbeddingCache | None = None,
        choices: Choices | None = None,
    ) -> None:
        """``schedule`` is the fixed timesteps of a distilled model.

        ``decoder`` takes the place of the VAE's.
        """
        self.pipeline = pipeline
        self.choices = choices or Choices()
        self.last = StageSeconds()
        self._device = torch.device(device)
        self._schedule = schedule
        self._embeddings = embeddings or EmbeddingCache("", 0)
        parts = pipeline.components
        self._vae = cast(Vae, parts["vae"])
        self._denoiser = Denoiser(cast(WanTransformer3DModel, parts["transformer"]))

        def berth(name: str) -> Berth:
            return Berth(cast(torch.nn.Module, parts[name]), device, residency)

        self._text_berth = berth("text_encoder")
        self._transformer_berth = berth("transformer")
        self._vae_berth = berth("vae")
        self._decoder = None if decoder is None else decoder.to(self._device)

    def stream(
        self, parameters: Parameters, watch: Watch, image: Image.Image | None = None
    ) -> Iterator[Frames]:
        """Generate one clip; yields its frames, ``(n, H, W, 3)``, as they are decoded.

        ``image`` is what it begins with, in any size. ``watch`` hears of every denoising step and
        every decoded latent frame.

        Raises:
            GenerationError: the model gave no numbers.
        """
        self.last = StageSeconds()
        try:
            latents = self.denoise(parameters, watch, image)
            yield from self._decode(latents, parameters.video.num_frames, watch)
        finally:
            self._denoiser.forget()
            for berth in (self._text_berth, self._transformer_berth, self._vae_berth):
                berth.leave()

    @contextmanager
    def transformer_at_hand(self) -> Iterator[WanTransformer3DModel]:
        """The transformer, on the device for as long as the block lasts."""
        with self._transformer_berth.occupied():
            yield self._denoiser.transformer

    # Text.

    def _embedded(self, parameters: Parameters, guided: bool) -> list[torch.Tensor]:
        """The embeddings of the prompt and, if there is guidance, of the negative one."""
        texts = [parameters.prompt, *([parameters.negative_prompt] if guided else [])]
        found = [self._embeddings.get(text) for text in texts]
        if any(one is None for one in found):
            with self._text_berth.occupied():
                found = [
                    self._embed(text) if one is None else one
                    for text, one in zip(texts, found, strict=True)
                ]
        dtype = self._denoiser.dtype
        return [one.to(self._device, dtype) for one in found if one is not None]

    def _embed(self, text: str) -> torch.Tensor:
        embedding = cast(Any, self.pipeline)._get_t5_prompt_embeds(
            prompt=text, max_sequence_length=MAX_TOKENS, device=self._device
        )
        self._embeddings.put(text, embedding)
        return cast(torch.Tensor, embedding)

    # Denoising.

    @torch.no_grad()
    def denoise(
        self, parameters: Parameters, watch: Watch, image: Image.Image | None = None
    ) -> torch.Tensor:
        """The finished latents, as the transformer left them."""
        video = parameters.video
        watch(Progress(Stage.PROMPT, 0, 1, PERCENT_BEFORE[Stage.PROMPT]))
        guided = video.guidance_scale > 1 and self._schedule is None
        with self.last.of(Stage.PROMPT, self._device):
            embeddings = self._embedded(parameters, guided)
        # On the CPU, so that a seed means the same on every device.
        generator = torch.Generator("cpu").manual_seed(parameters.seed)
        latents = self._noise(video.num_frames, video.height, video.width, generator)
        condition = None
        if image is not None:
            with self.last.of(Stage.PROMPT, self._device):
                condition = self._condition(image, latents, video.height, video.width)
        with self.last.of(Stage.DENOISING, self._device), self._transformer_berth.occupied():
            sampler = self._sampler(video.num_inference_steps, video.flow_shift, generator)
            predict = self._predictor(embeddings, video.guidance_scale, latents, condition)
            steps = len(sampler.timesteps)
            pace = Pace(self._device)
            # All at once: to move one of them would wait for all that is queued.
            timesteps = sampler.timesteps.to(self._device)
            for index in range(steps):
                velocity = predict(index, steps, timesteps[index], latents)
                latents = sampler.step(velocity, latents)
                for done in pace.queued(index):
                    watch(_between(Stage.DENOISING, Stage.DECODING, done, steps))
            for done in pace.rest():
                watch(_between(Stage.DENOISING, Stage.DECODING, done, steps))
            return latents if condition is None else condition.applied(latents)

    def _noise(
        self, num_frames: int, height: int, width: int, generator: torch.Generator
    ) -> torch.Tensor:
        config = self._vae.config
        shape = (
            1,
            config.z_dim,
            (num_frames - 1) // config.scale_factor_temporal + 1,
            height // config.scale_factor_spatial,
            width // config.scale_factor_spatial,
        )
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(self._device)

    def _sampler(self, steps: int, flow_shift: float, generator: torch.Generator) -> Sampler:
        if self._schedule is not None:
            return FewStep(self._schedule, generator)
        scheduler = self.pipeline.scheduler
        if scheduler.config.flow_shift != flow_shift:
            scheduler = scheduler.from_config(scheduler.config, flow_shift=flow_shift)
            self.pipeline.scheduler = scheduler
        if self.choices.host_scheduler and FlowUniPC.does(scheduler):
            return FlowUniPC(scheduler, steps)
        return _StockSampler(scheduler, steps, self._device)

    def _predictor(
        self,
        embeddings: list[torch.Tensor],
        scale: float,
        latents: torch.Tensor,
        condition: Condition | None,
    ) -> Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]:
        """A function of step, steps, timestep and latents that gives the guided velocity."""
        dtype = self._denoiser.dtype
        batched = len(embeddings) > 1 and self._batches(latents)
        passes = [torch.cat(embeddings)] if batched else embeddings
        texts: list[PreparedText | torch.Tensor] = [
            self._denoiser.prepare(one) if self.choices.prepared_text else one for one in passes
        ]

        def predict(
            index: int, steps: int, timestep: torch.Tensor, latents: torch.Tensor
        ) -> torch.Tensor:
            inputs = (latents if condition is None else condition.applied(latents)).to(dtype)
            times = self._times(timestep, latents, condition)
            if batched:
                inputs, times = inputs.expand(2, -1, -1, -1, -1), times.expand(2, *times.shape[1:])
            velocities = []
            for name, text in zip(("cond", "uncond"), texts, strict=False):
                with self._denoiser.cached(name, index, steps):
                    velocities.append(self._denoiser.velocity(inputs, times, text))
            if batched:
                velocities = list(velocities[0].chunk(2))
            if len(velocities) == 1:
                return velocities[0]
            wanted, unwanted = velocities
            return unwanted + scale * (wanted - unwanted)

        return predict

    def _batches(self, latents: torch.Tensor) -> bool:
        choice = self.choices.guidance
        if choice is not Guidance.AUTO:
            return choice is Guidance.BATCHED
        tokens = latents.shape[2] * latents.shape[3] * latents.shape[4] // 4
        fits = self._device.type == "cuda" and tokens <= BATCHED_TOKENS
        return fits and not self.choices.block_caches

    def _times(
        self, timestep: torch.Tensor, latents: torch.Tensor, condition: Condition | None
    ) -> torch.Tensor:
        """One timestep, or one for each token where tokens differ in their noise."""
        if condition is not None:
            mask = condition.mask
        elif self.choices.plain_timesteps:
            return timestep.reshape(1)
        else:  # as diffusers does for this model, whether or not there is an image
            mask = torch.ones((1, 1, *latents.shape[2:]), device=latents.device)
        return (mask[0, 0, :, ::2, ::2] * timestep).flatten().unsqueeze(0)

    # Image.

    def _condition(
        self, image: Image.Image, latents: torch.Tensor, height: int, width: int
    ) -> Condition:
        processor = cast(Any, self.pipeline).video_processor
        pixels = processor.preprocess(image, height=height, width=width)
        with self._vae_berth.occupied():
            pixels = pixels.unsqueeze(2).to(self._device, self._vae.dtype)
            first = cast(Any, self._vae).encode(pixels).latent_dist.mode().to(latents)
        mean, inverse = statistics(self._vae.config, latents)
        mask = torch.ones((1, 1, *latents.shape[2:]), device=latents.device)
        mask[:, :, 0] = 0
        return Condition((first - mean) * inverse, mask)

    # Decoding.

    def _decode(self, latents: torch.Tensor, num_frames: int, watch: Watch) -> Iterator[Frames]:
        total = (num_frames - 1) // FRAMES_STEP + 1

        def begin(index: int) -> None:
            watch(_between(Stage.DECODING, Stage.WRITING, index, total))

        with nullcontext() if self._decoder else self._vae_berth.occupied():
            started = time.perf_counter()
            if self._decoder:
                chunks = self._decoder.frames(latents, begin)
            else:
                chunks = decode_frames(whole_latents(latents, self._vae), self._vae, begin)
            # Not around the whole: whoever takes the frames is not to run without gradients.
            while (frames := _next_without_gradients(chunks)) is not None:
                # Without what whoever takes them does meanwhile.
                self.last.add(Stage.DECODING, time.perf_counter() - started)
                yield frames
                started = time.perf_counter()


@dataclass(frozen=True)
class Condition:
    """The first frame, which is given and not made.

    ``first`` is its latents, ``(1, channels, 1, height, width)``; ``mask`` is 0 there and 1
    elsewhere, ``(1, 1, frames, height, width)``.
    """

    first: torch.Tensor
    mask: torch.Tensor

    def applied(self, latents: torch.Tensor) -> torch.Tensor:
        """``latents`` with the first frame in its place."""
        return (1 - self.mask) * self.first + self.mask * latents


class Pace:
    """Says which steps are done, and keeps the queue of a GPU short.

    A step without waits is queued in no time: the next one is queued while it runs, and then it
    is waited for. So progress is true, and a wish to stop is heard within one step.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._events: list[tuple[int, torch.cuda.Event]] = []

    def queued(self, index: int) -> Iterator[int]:
        """Call after step ``index`` was queued; yields how many steps are done, if more are."""
        if not self._gpu:
            yield index + 1
            return
        event = torch.cuda.Event()
        event.record()
        self._events.append((index, event))
        if len(self._events) > 1:
            yield self._oldest()

    def rest(self) -> Iterator[int]:
        """The steps that were not said to be done yet."""
        while self._events:
            yield self._oldest()

    def _oldest(self) -> int:
        index, event = self._events.pop(0)
        event.synchronize()
        return index + 1


@torch.no_grad()
def _next_without_gradients(chunks: Iterator[Frames]) -> Frames | None:
    return next(chunks, None)


def _between(stage: Stage, following: Stage, done: int, total: int) -> Progress:
    begin, end = PERCENT_BEFORE[stage], PERCENT_BEFORE[following]
    return Progress(stage, done, total, begin + (end - begin) * done // total)
