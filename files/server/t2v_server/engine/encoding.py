"""Frames to an mp4 that every browser plays, and to a thumbnail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2v_server.engine.errors import EncodingError

Frames = NDArray[np.uint8]  # (num_frames, height, width, 3), RGB

# An engine that is killed takes its encoder with it.
_SETPRIV = shutil.which("setpriv")
_DIES_WITH_US = [_SETPRIV, "--pdeathsig", "KILL"] if _SETPRIV else []
_QUALITY_CRF = "18"  # x264's "visually lossless"
_THUMBNAIL_SIDE = 480  # pixels of the longer side; sharp on a phone's screen
_THUMBNAIL_QUALITY = 82


def encode_mp4(frames: Frames, path: Path, fps: int) -> None:
    """Write ``frames`` (T, H, W, 3) to ``path`` as H.264, yuv420p, index first (faststart).

    ``path`` may have any suffix. ffmpeg is run here rather than through imageio's writer,
    which does not look at its exit status: a full disk would pass for success.

    Raises:
        EncodingError: with the last line that ffmpeg said.
    """
    height, width = frames.shape[1:3]
    command = [
        *_DIES_WITH_US,
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps),
        "-i", "pipe:0",
        "-an", "-c:v", "libx264", "-crf", _QUALITY_CRF, "-pix_fmt", "yuv420p",
        "-movflags", "+faststart", "-f", "mp4", str(path),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            # As bytes: of an array with more dimensions subprocess counts the first one only,
            # and takes a write that a signal cut short for all of it.
            input=np.ascontiguousarray(frames).data.cast("B"),
            capture_output=True,
            check=False,
            start_new_session=True,  # Ctrl-C on the terminal is for the server alone
        )
    except OSError as error:
        raise EncodingError(f"ffmpeg did not start: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise EncodingError(f"ffmpeg: {said[-1] if said else f'exit status {done.returncode}'}")


def encode_thumbnail(frames: Frames, path: Path) -> None:
    """Write the middle one of ``frames`` (T, H, W, 3) to ``path`` as a small JPEG.

    The first frame of a clip is often darker and emptier than what follows.

    Raises:
        OSError: when the file cannot be written.
    """
    image = Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(path, format="JPEG", quality=_THUMBNAIL_QUALITY)
