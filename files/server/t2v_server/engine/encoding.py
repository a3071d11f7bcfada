"""Frames to an mp4 that every browser plays, and to a thumbnail, while they are being made."""

from __future__ import annotations

import functools
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2v_server.engine.errors import EncodingError

Frames = NDArray[np.uint8]  # (num_frames, height, width, 3), RGB

# An engine that is killed takes its encoder with it.
_SETPRIV = shutil.which("setpriv")
_DIES_WITH_US = [_SETPRIV, "--pdeathsig", "KILL"] if _SETPRIV else []
_SOFTWARE, _NVENC = "libx264", "h264_nvenc"
ENCODERS = (_SOFTWARE, _NVENC)
# x264's CRF 18 is its "visually lossless"; NVENC's constant quality 19 is what is nearest to it.
_QUALITY = {
    _SOFTWARE: ["-crf", "18"],
    _NVENC: ["-preset", "p5", "-rc", "vbr", "-cq", "19", "-b:v", "0"],
}
_NVENC_LEAST = 160  # pixels of a side; smaller frames are refused by the hardware
_PROBE_SECONDS = 30
_THUMBNAIL_SIDE = 480  # pixels of the longer side; sharp on a phone's screen
_THUMBNAIL_QUALITY = 82
# Chunks of four frames that wait for the encoder. It is the faster one: this evens out hiccups.
_WAITING = 2


class Mp4Writer:
    """Writes H.264, yuv420p, index first (faststart), from a thread: nobody waits for ffmpeg.

    ffmpeg is run here rather than through imageio's writer, which does not look at its exit
    status: a full disk would pass for success.
    """

    def __init__(
        self, path: Path, width: int, height: int, fps: int, encoder: str = _SOFTWARE
    ) -> None:
        """``path`` may have any suffix.

        Raises:
            EncodingError: ffmpeg does not start.
        """
        if encoder == _NVENC and min(width, height) < _NVENC_LEAST:
            encoder = _SOFTWARE
        command = [
            *_DIES_WITH_US,
            imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y",
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps),
            "-i", "pipe:0",
            "-an", "-c:v", encoder, *_QUALITY[encoder], "-pix_fmt", "yuv420p",
            "-movflags", "+faststart", "-f", "mp4", str(path),
        ]  # fmt: skip
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C on the terminal is for the server alone
            )
        except OSError as error:
            self._said.close()
            raise EncodingError(f"ffmpeg did not start: {error.strerror}") from error
        assert self._process.stdin is not None
        self._chunks: queue.Queue[Frames | None] = queue.Queue(_WAITING)
        self._broken = threading.Event()
        self._thread = threading.Thread(
            target=self._feed, args=(self._process.stdin,), name="t2v-encode", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finish the file, or drop it if the block has failed.

        Raises:
            EncodingError: with what ffmpeg said first.
        """
        try:
            if kind is not None:
                self._process.kill()
            self._chunks.put(None)
            self._thread.join()
            status = self._process.wait()
            if kind is None and status != 0:
                raise self._failure()
        finally:
            self._said.close()

    def write(self, frames: Frames) -> None:
        """Take ``frames`` (T, H, W, 3), in order; waits only if the encoder is far behind.

        Raises:
            EncodingError: with what ffmpeg said first.
        """
        if self._broken.is_set():
            self._process.wait()
            raise self._failure()
        self._chunks.put(frames)

    def _feed(self, pipe: IO[bytes]) -> None:
        while (frames := self._chunks.get()) is not None:
            if self._broken.is_set():
                continue  # so that whoever writes never waits for nobody
            try:
                # As bytes: of an array with more dimensions a write counts the first one only.
                pipe.write(np.ascontiguousarray(frames).data.cast("B"))
            except OSError:
                self._broken.set()
        try:
            pipe.close()
        except OSError:
            self._broken.set()

    def _failure(self) -> EncodingError:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        # The reason comes first; of a full disk the last line is that nothing was written.
        return EncodingError(
            f"ffmpeg: {said[0] if said else f'exit status {self._process.returncode}'}"
        )


def encode_clip(
    chunks: Iterable[Frames],
    num_frames: int,
    path: Path,
    thumbnail: Path | None,
    fps: int,
    encoder: str = _SOFTWARE,
) -> None:
    """Write ``num_frames`` frames to ``path`` as they come, their middle one to ``thumbnail``.

    No more than a few are held at a time.

    Raises:
        EncodingError: with what ffmpeg said first.
        OSError: when the thumbnail cannot be written.
    """
    chunks = iter(chunks)
    first = next(chunks)
    height, width = first.shape[1:3]
    seen, middle = 0, num_frames // 2
    picture: Frames | None = None
    with Mp4Writer(path, width, height, fps, encoder) as writer:
        for frames in _after(first, chunks):
            if seen <= middle:  # of a clip that ends early, its last one
                picture = frames[min(middle - seen, len(frames) - 1)].copy()
            seen += len(frames)
            writer.write(frames)
    if thumbnail is not None and picture is not None:
        encode_thumbnail(picture[None], thumbnail)


def encode_mp4(frames: Frames, path: Path, fps: int) -> None:
    """Write ``frames`` (T, H, W, 3) to ``path``.

    Raises:
        EncodingError: with what ffmpeg said first.
    """
    encode_clip(iter([frames]), len(frames), path, None, fps)


def encode_thumbnail(frames: Frames, path: Path) -> None:
    """Write the middle one of ``frames`` (T, H, W, 3) to ``path`` as a small JPEG.

    The first frame of a clip is often darker and emptier than what follows.

    Raises:
        OSError: when the file cannot be written.
    """
    image = Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(path, format="JPEG", quality=_THUMBNAIL_QUALITY)


@functools.cache
def choose_encoder(wanted: str) -> str:
    """``wanted``; for ``auto`` the GPU's encoder if it encodes a few frames, else libx264."""
    if wanted != "auto":
        return wanted
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error",
        "-f", "lavfi", "-i", "color=size=256x256:rate=8:duration=1",
        "-c:v", _NVENC, *_QUALITY[_NVENC], "-pix_fmt", "yuv420p", "-f", "null", "-",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return _SOFTWARE
    return _NVENC if done.returncode == 0 else _SOFTWARE


def _after(first: Frames, rest: Iterator[Frames]) -> Iterator[Frames]:
    yield first
    yield from rest
