"""Numbers and images as text for an HTML page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from PIL import Image

from mu.core.errors import DataError, titled
from mu.core.images import rgb

PIXEL_ART = 128
"""Images up to this size in pixels are stored exactly and enlarged without smoothing."""
LARGEST = 512
"""Larger images are reduced to this size in pixels, to keep the page small."""
THUMBNAIL = 256
"""The same for images of which the page shows some of many."""

# -- numbers -----------------------------------------------------------------------------------------------------------


def short(value: float, digits: int = 4, padded: bool = False) -> str:
    """``value`` with ``digits`` significant digits: 0.2781, 12,400, 1e-4. ``padded`` keeps trailing zeros."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:#.{digits}g}" if padded else f"{value:.{digits}g}"
    if 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    elif "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}") if text.startswith("-") else text


# -- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InlineImage:
    """An image inside the page. Without ``uri`` it is a gap: the file is missing or unreadable."""

    alt: str
    uri: str = ""
    width: int = 1
    height: int = 1
    file: str = ""
    """Its path in the run's folder."""

    @property
    def pixelated(self) -> bool:
        return max(self.width, self.height) <= PIXEL_ART


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``. Raises `DataError` for a name that leaves the folder, even by a link."""
    parts = PureWindowsPath(name)  # splits at both kinds of slash, and knows drives
    try:
        path = folder / name
        safe = not parts.anchor and ".." not in parts.parts and path.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):
        safe = False
    if not safe:
        raise DataError(
            f"the path {titled(name)} leaves the run folder {folder}: give paths relative to it, without '..'"
        )
    return path


def inline_image(folder: Path, name: str, alt: str, largest: int = LARGEST) -> InlineImage:
    """Read the image file ``name`` of ``folder``: small images exact to the pixel, those over ``largest`` reduced."""
    path = inside(folder, name)
    try:
        if not path.is_file():  # a pipe would never end
            return InlineImage(alt)
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as file:
            image = rgb(file)
        image.thumbnail((largest, largest))
    except Exception:  # a damaged file can make a decoder fail with any error
        return InlineImage(alt)
    kind = "PNG" if max(image.size) <= PIXEL_ART else "JPEG"
    content = io.BytesIO()
    image.save(content, kind, quality=88)
    return InlineImage(alt, embedded(content.getvalue(), kind.lower()), *image.size, name)


def embedded(content: bytes, kind: str) -> str:
    """The bytes of an image file (``png``, ``jpeg``, ``svg+xml``) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
