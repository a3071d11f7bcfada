"""Which network is on the device, and when.

A network that leaves the device is not copied back: its weights never change, so the tensors on
the host, which may be mapped from the checkpoint's file, are simply taken again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from t2v_server.profiles import Residency

Tensors = dict[str, torch.Tensor | None]


@dataclass(frozen=True)
class _Home:
    """Where a tensor is kept in its layer, and what is there while the network is away."""

    tensors: Tensors
    name: str
    host: torch.Tensor


class Berth:
    """One network that may come to the device and leave it again."""

    def __init__(self, module: nn.Module, device: str, residency: Residency) -> None:
        """Resident networks come at once and stay; on a CPU there is nowhere to go."""
        self.module = module
        self._device = torch.device(device)
        self._staged = residency is Residency.STAGED and self._device.type != "cpu"
        self._homes: list[_Home] | None = None
        if not self._staged:
            module.to(self._device)

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """The network is on the device inside the block, and gone after it if it is staged."""
        self.board()
        try:
            yield
        finally:
            self.leave()

    def board(self) -> None:
        """Bring the network to the device, if it is not there."""
        if not self._staged or self._homes is not None:
            return
        homes = self._homes = list[_Home]()
        moved = dict[int, torch.Tensor]()  # tied weights stay tied
        for layer in self.module.modules():
            tables: tuple[Tensors, ...] = (layer._parameters, layer._buffers)  # type: ignore[assignment]
            for tensors in tables:
                for name, tensor in tensors.items():
                    if tensor is None or tensor.device.type == self._device.type:
                        continue
                    homes.append(_Home(tensors, name, tensor))
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _copy(tensor, self._device)
                    tensors[name] = moved[id(tensor)]

    def leave(self) -> None:
        """Free what the network holds on the device, if it is staged."""
        if self._homes is None:
            return
        for home in self._homes:
            home.tensors[home.name] = home.host
        self._homes = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        # bitsandbytes moves what belongs to a packed weight in place: the host keeps its own.
        at_home = copy.copy(state)
        moved = tensor.to(device)
        tensor.quant_state = at_home  # type: ignore[attr-defined]
        return moved
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data.to(device, non_blocking=True), requires_grad=False)
    return tensor.to(device, non_blocking=True)
