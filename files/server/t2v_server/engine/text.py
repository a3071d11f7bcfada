"""Prompts to what the transformer reads of them, and those of earlier requests kept."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

MAX_TOKENS = 512  # as Wan2.2 was trained


class EmbeddingCache:
    """The embeddings of recent prompts, the least recently used dropped beyond ``max_bytes``.

    Only the tokens of a prompt are kept: what follows up to ``MAX_TOKENS`` are zeros. A prompt
    that was seen before, most often the negative one, spares the text encoder, and a staged one
    its way to the device. The key holds the model's revision: another's embeddings are others.
    """

    def __init__(self, revision: str, max_bytes: int) -> None:
        self._revision = revision
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, text: str) -> torch.Tensor | None:
        """The embedding of shape ``(1, MAX_TOKENS, dim)`` on the CPU, if it is kept."""
        with self._lock:
            kept = self._kept.get((self._revision, text))
            if kept is None:
                self.misses += 1
                return None
            self._kept.move_to_end((self._revision, text))
            self.hits += 1
        filled = kept.new_zeros(1, MAX_TOKENS, kept.shape[-1])
        filled[0, : kept.shape[0]] = kept
        return filled

    def put(self, text: str, embedding: torch.Tensor) -> None:
        """Keep an embedding of shape ``(1, MAX_TOKENS, dim)``."""
        used = embedding[0].ne(0).any(dim=-1).nonzero()
        length = int(used[-1]) + 1 if len(used) else 0
        kept = embedding[0, :length].to("cpu", copy=True)
        size = kept.numel() * kept.element_size()
        if size > self._max_bytes:
            return
        with self._lock:
            earlier = self._kept.pop((self._revision, text), None)
            if earlier is not None:
                self.num_bytes -= earlier.numel() * earlier.element_size()
            self._kept[self._revision, text] = kept
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                _, dropped = self._kept.popitem(last=False)
                self.num_bytes -= dropped.numel() * dropped.element_size()
