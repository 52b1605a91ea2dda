"""Images of any mode as 8-bit RGB, as a person sees them. Every reader of image files uses it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def rgb(image: Image) -> Image:
    """``image`` in 8-bit RGB, as a viewer shows it: upright, and transparent parts on white.

    Pillow's own conversion cuts 16-bit levels at 255, so that they become white, and ignores the colour profile of
    CMYK images, EXIF's orientation, and transparency: a transparent place gets whatever colour lies under it. Here
    16-bit levels and floating-point numbers are scaled, and an embedded CMYK profile is used.
    """
    image.load()
    image = _upright(image)
    if image.has_transparency_data and not image.mode.startswith("I"):
        return _on_white(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image)
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        return _by_profile(image)
    return image.convert("RGB")


def shown_size(image: Image) -> tuple[int, int]:
    """Width and height of ``rgb(image)``, from the head of its file."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow itself turns these
        return width, height
    return (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)


_ORIENTATION, _ON_ITS_SIDE = 0x0112, range(5, 9)
"""EXIF's tag, and those of its values whose width is the height of the picture."""


def _orientation(image: Image) -> int:
    """EXIF's orientation, 1 for upright. The tag is any bytes of the file, and the picture is there without it."""
    from PIL import Image as pillow

    try:
        return int(pillow.Image.getexif(image).get(_ORIENTATION, 1))  # that of a PNG image decodes all of it
    except Exception:
        return 1


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _on_white(image: Image) -> Image:
    from PIL import Image as pillow

    white = pillow.new("RGBA", image.size, "white")
    return pillow.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _scaled(image: Image) -> Image:
    """Levels 0..255 of a grey image whose levels end at the first of 1 (floats only), 255 (floats), 65535 that fits."""
    import numpy as np
    from PIL import Image as pillow

    levels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    largest = float(levels.max(initial=0.0))
    ends = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    end = next((end for end in ends if largest <= end), largest)
    grey = (levels.clip(0, end) * (255 / end)).round().astype(np.uint8)
    return pillow.fromarray(grey).convert("RGB")


def _by_profile(image: Image) -> Image:
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        found = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one of another kind of image
        found = None
    return image.convert("RGB") if found is None else found
