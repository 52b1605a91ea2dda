"""Image files: written atomically, and read as pixels or tensors."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mu.core.errors import DataError
from mu.core.files import atomic_path
from mu.core.images import rgb, shown_size

PNG_LEVEL = 1
"""Files of Pillow's own level, 6, are a tenth smaller and take up to three times as long to write."""


def save_image(image: Tensor, path: Path) -> None:
    """Write ``image`` (3, H, W), in 0..1, atomically, as `encoded_image`."""
    with atomic_path(path) as partial:
        partial.write_bytes(encoded_image(image, path.name))


def encoded_image(image: Tensor, name: str) -> bytes:
    """The file of ``image`` (3, H, W), in 0..1: PNG, or JPEG of Pillow's own quality for a ``name`` with ``.jpg``."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    encoded = io.BytesIO()
    if name.endswith(".jpg"):
        Image.fromarray(pixels).save(encoded, "JPEG")
    else:
        Image.fromarray(pixels).save(encoded, "PNG", compress_level=PNG_LEVEL)
    return encoded.getvalue()


def read_images(paths: Sequence[Path]) -> Tensor:
    """Read image files of one size as (n, 3, H, W) in 0..1. Raises `DataError` for a file that cannot be read."""
    return as_images([read_pixels(path) for path in paths])


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) in 0..255. Raises `DataError` for a file that cannot be read."""
    with _opened(path) as image:
        return np.asarray(rgb(image))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the head of the file. Raises `DataError` for a file that cannot be read."""
    with _opened(path) as image:
        return shown_size(image)


def as_images(pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Pixels of one size, (H, W, 3) in 0..255 each, as (n, 3, H, W) in 0..1."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise many types on garbled bytes
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"image {path} cannot be read ({told}): remove it and run again") from None
