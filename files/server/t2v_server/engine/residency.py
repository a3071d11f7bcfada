"""Which network is on the device, and when.

A network that leaves the device is not copied back: its weights never change, so the tensors on
the host, which may be mapped from the checkpoint's file, are simply taken again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from t2v_server.profiles import Residency


@dataclass(frozen=True)
class _Home:
    """One tensor of a module, and the host's tensor that it is when the module is away."""

    tensor: torch.Tensor
    host: torch.Tensor


class Berth:
    """One network that may come to the device and leave it again."""

    def __init__(self, module: torch.nn.Module, device: str, residency: Residency) -> None:
        """Resident networks come at once and stay; on a CPU there is nowhere to go."""
        self.module = module
        self._device = torch.device(device)
        self._staged = residency is Residency.STAGED and self._device.type != "cpu"
        self._homes: list[_Home] | None = None
        if not self._staged:
            module.to(self._device)

    @property
    def staged(self) -> bool:
        """Whether the network leaves the device when it is not used."""
        return self._staged

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
        homes = list[_Home]()
        self._homes = homes
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.device != self._device:
                homes.append(_Home(tensor, tensor.data))
                tensor.data = tensor.data.to(self._device, non_blocking=True)

    def leave(self) -> None:
        """Free what the network holds on the device, if it is staged."""
        if self._homes is None:
            return
        for home in self._homes:
            home.tensor.data = home.host
        self._homes = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
