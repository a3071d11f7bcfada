"""A picture of any size to one of the clip's."""

from __future__ import annotations

from PIL import Image, ImageOps


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture upright, in RGB, cut around its middle and scaled to ``width`` x ``height``.

    Nothing is stretched: what is too wide or too high is cut off on both sides.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        upright = opaque
    return ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
