"""Files of tensors, read and written piece by piece: the format is safetensors.

The library reads such files mapped, and writes them from tensors that are all in memory. A
preparation must do neither: it passes through one piece of one tensor at a time.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import Seal

# Bytes of an element.
WIDTHS: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "I64": 8}

_LONGEST_HEADER = 100 << 20  # the library's own bound
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its elements' type as safetensors names it, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * WIDTHS[self.dtype]


@dataclass(frozen=True)
class Header:
    """What a file holds: each tensor and the byte at which it begins."""

    tensors: Mapping[str, Tensor]
    offsets: Mapping[str, int]


def read_header(path: Path) -> Header:
    """Read what the file at ``path`` holds, without its tensors.

    Raises:
        CheckpointError: the file is cut short, or is none of tensors.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            if length > min(size, _LONGEST_HEADER):
                raise ValueError
            content = json.loads(stream.read(length))
        begin = _LENGTH.size + length
        tensors, offsets, end = {}, {}, begin
        for name, entry in content.items():
            if name == "__metadata__":
                continue
            tensor = Tensor(name, entry["dtype"], tuple(entry["shape"]))
            first, last = entry["data_offsets"]
            if tensor.dtype in WIDTHS and last - first != tensor.bytes:
                raise ValueError
            tensors[name], offsets[name] = tensor, begin + first
            end = max(end, begin + last)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise CheckpointError(f"{path} is damaged: it is no whole safetensors file") from None
    if size != end:
        raise CheckpointError(
            f"{path} is damaged: it has {size} bytes, and its tensors end at {end}"
        )
    return Header(tensors, offsets)


class ShardWriter:
    """Writes one file whose tensors are known before their content is.

    The content follows in the same order, in pieces of any length.
    """

    def __init__(self, path: Path, tensors: Iterable[Tensor]) -> None:
        entries, end = dict[str, object](), 0
        for tensor in tensors:
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (end, end + tensor.bytes),
            }
            end += tensor.bytes
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._expected = _LENGTH.size + len(text) + end
        self._digest = hashlib.sha256()
        self._size = 0
        self._stream = path.open("wb", buffering=0)
        self.write(_LENGTH.pack(len(text)) + text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def write(self, content: bytes | bytearray | memoryview) -> None:
        """Append. Raises ``OSError``."""
        rest = memoryview(content).cast("B")
        self._digest.update(rest)
        self._size += len(rest)
        while rest:
            rest = rest[self._stream.write(rest) :]

    def finish(self) -> Seal:
        """Have it on disk; returns what it must be from now on."""
        if self._size != self._expected:
            raise AssertionError(f"{self._size} bytes were written, {self._expected} announced")
        os.fsync(self._stream.fileno())
        # It will not be read again soon, and must not push out what the host still needs.
        os.posix_fadvise(self._stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return Seal(self._size, self._digest.hexdigest())
