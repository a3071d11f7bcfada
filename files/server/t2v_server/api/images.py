"""Pictures that videos begin with: looked at before anything is queued."""

from __future__ import annotations

import io
import warnings
from http import HTTPStatus

from PIL import Image

from t2v_server.api.errors import ApiError

IMAGE = "input_reference"
_FORMATS = ("JPEG", "PNG", "WEBP")
_MOST_PIXELS = 50_000_000  # more is no photograph, and would take its memory when it is opened


def check_image(data: bytes) -> None:
    """Refuse what the engine could not open.

    Raises:
        ApiError: 400, with what is wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height <= _MOST_PIXELS:
                    image.load()
    except Exception as error:  # whatever a decoder makes of bytes that are no picture
        raise _bad("must be a JPEG, PNG or WebP image") from error
    if width * height > _MOST_PIXELS:
        raise _bad(f"must have at most {_MOST_PIXELS} pixels, not {width}x{height}")


def _bad(sentence: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, "invalid_parameter", f"{IMAGE} {sentence}", param=IMAGE)
