"""UniPC for flow matching, as ``diffusers.UniPCMultistepScheduler`` does it, without its waits.

Zhao et al., UniPC (2023), https://arxiv.org/abs/2302.04867, in the variant that Wan2.2 is
published with: order 2, B(h) = expm1(h), data prediction. The arithmetic is that of diffusers,
operation by operation, so that on a CPU the samples are the same to the last bit. The scalars of
a step stay on the CPU: diffusers moves each of them to the GPU, where every move, and the 2x2
system that it solves there, waits until all that was queued on the GPU is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch


class Scheduler(Protocol):
    """What is used of a diffusers scheduler."""

    @property
    def config(self) -> Mapping[str, object]: ...

    @property
    def timesteps(self) -> torch.Tensor: ...

    @property
    def sigmas(self) -> torch.Tensor: ...

    def set_timesteps(self, num_inference_steps: int) -> None: ...


_SUPPORTED = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "predict_x0": True,
    "solver_order": 2,
    "solver_type": "bh2",
    "lower_order_final": True,
    "thresholding": False,
    "solver_p": None,
    "disable_corrector": [],
}


class FlowUniPC:
    """The samples of one generation, step by step."""

    def __init__(self, scheduler: Scheduler, num_inference_steps: int) -> None:
        """Take the noise levels of ``scheduler`` for that many steps."""
        scheduler.set_timesteps(num_inference_steps)
        self.timesteps = scheduler.timesteps.cpu()
        self._sigmas = scheduler.sigmas.cpu()
        self._index = 0
        self._outputs: list[torch.Tensor] = []  # the last two, in x0
        self._last_sample: torch.Tensor | None = None
        self._last_order = 0

    @staticmethod
    def does(scheduler: Scheduler) -> bool:
        """Whether this is the variant that is implemented here."""
        config = scheduler.config
        return all(config.get(name) == value for name, value in _SUPPORTED.items())

    def step(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """From the sample of this step, and the model's output for it, to the next sample."""
        x0 = sample - self._sigmas[self._index] * velocity
        if self._last_sample is not None:
            sample = self._correct(x0, self._last_sample)
        order = min(2, len(self.timesteps) - self._index, len(self._outputs) + 1)
        self._outputs = [*self._outputs[-1:], x0]
        self._last_sample, self._last_order = sample, order
        following = self._predict(sample, order)
        self._index += 1
        return following.to(sample.dtype)

    def _predict(self, sample: torch.Tensor, order: int) -> torch.Tensor:
        index = self._index
        levels = _Levels(self._sigmas[index + 1], self._sigmas[index])
        newest = self._outputs[-1]
        base = levels.base(sample, newest)
        if order == 1:
            return base - levels.alpha * levels.b_h * 0
        ratio = levels.ratio(self._sigmas[index - 1])
        slope = (self._outputs[-2] - newest) / ratio
        half = torch.ones((), dtype=sample.dtype) * 0.5
        return base - levels.alpha * levels.b_h * (half * slope)

    def _correct(self, x0: torch.Tensor, last_sample: torch.Tensor) -> torch.Tensor:
        index = self._index
        levels = _Levels(self._sigmas[index], self._sigmas[index - 1])
        newest = self._outputs[-1]
        base = levels.base(last_sample, newest)
        change = x0 - newest
        if self._last_order == 1:
            half = torch.ones((), dtype=last_sample.dtype) * 0.5
            correction = half * change
        else:
            ratio = levels.ratio(self._sigmas[index - 2])
            slope = (self._outputs[-2] - newest) / ratio
            rhos = levels.rhos(ratio).to(last_sample.dtype)
            correction = rhos[0] * slope + rhos[1] * change
        return (base - levels.alpha * levels.b_h * correction).to(last_sample.dtype)


class _Levels:
    """The scalars between two noise levels, from ``sigma_s0`` to ``sigma_t``."""

    def __init__(self, sigma_t: torch.Tensor, sigma_s0: torch.Tensor) -> None:
        self.alpha, self._sigma_t, self._sigma_s0 = 1 - sigma_t, sigma_t, sigma_s0
        self._lambda_s0 = _lambda(sigma_s0)
        self._h = _lambda(sigma_t) - self._lambda_s0
        self._hh = -self._h
        self._h_phi_1 = torch.expm1(self._hh)
        self.b_h = torch.expm1(self._hh)

    def base(self, sample: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        return self._sigma_t / self._sigma_s0 * sample - self.alpha * self._h_phi_1 * x0

    def ratio(self, sigma: torch.Tensor) -> torch.Tensor:
        return (_lambda(sigma) - self._lambda_s0) / self._h

    def rhos(self, ratio: torch.Tensor) -> torch.Tensor:
        """The weights of the corrector's two differences."""
        ratios = torch.stack([ratio, torch.ones(())])
        h_phi_k = self._h_phi_1 / self._hh - 1
        first = h_phi_k * 1 / self.b_h
        h_phi_k = h_phi_k / self._hh - 1 / 2
        second = h_phi_k * 2 / self.b_h
        system = torch.stack([torch.pow(ratios, 0), torch.pow(ratios, 1)])
        return cast(torch.Tensor, torch.linalg.solve(system, torch.stack([first, second])))


def _lambda(sigma: torch.Tensor) -> torch.Tensor:
    return torch.log(1 - sigma) - torch.log(sigma)
