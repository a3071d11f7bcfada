"""Sampling with a model that was distilled to a few fixed timesteps.

Distribution matching distillation (Yin et al., DMD2, 2024, https://arxiv.org/abs/2405.14867): each
step predicts the clean video at once and puts it back to the next noise level with fresh noise.
The timesteps are those that the weights were trained for, the noise level of ``t`` is ``t / 1000``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_TRAINED_TIMESTEPS = 1000


class FewStep:
    """The samples of one generation, step by step."""

    def __init__(self, schedule: Sequence[int], generator: torch.Generator) -> None:
        """``generator`` is the one that made the first noise, on the CPU."""
        self.timesteps = torch.tensor(schedule, dtype=torch.int64)
        self._levels = [timestep / _TRAINED_TIMESTEPS for timestep in schedule]
        self._generator = generator
        self._index = 0

    def step(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """From the sample of this step, and the model's output for it, to the next sample."""
        x0 = sample - self._levels[self._index] * velocity.to(sample.dtype)
        self._index += 1
        if self._index == len(self._levels):
            return x0
        level = self._levels[self._index]
        noise = torch.randn(x0.shape, generator=self._generator, dtype=x0.dtype).to(x0.device)
        return (1 - level) * x0 + level * noise
