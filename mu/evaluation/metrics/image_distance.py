"""How far two images, or two equal batches of images, are from each other, byte by byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mu.core.errors import DataError


def max_difference(a: ArrayLike, b: ArrayLike) -> int:
    """Largest |a - b| in units of 1/255: 0 (equal) .. 255. ``a`` and ``b``: uint8 of one shape, any layout.

    Arrays, CPU tensors or PIL images. Raises `DataError` for other types, unequal shapes or no pixels; convert values
    in 0..1 to bytes first, or distances would be 255 times too small. The same holds for all of this file.

    >>> max_difference(np.uint8([[0, 10]]), np.uint8([[255, 13]]))
    255
    """
    return int(np.abs(_difference(a, b)).max())


def mean_difference(a: ArrayLike, b: ArrayLike) -> float:
    """Mean |a - b| over pixels and channels in units of 1/255: 0 (equal) .. 255.

    >>> mean_difference(np.uint8([[0, 10]]), np.uint8([[255, 13]]))
    129.0
    """
    return float(np.abs(_difference(a, b)).mean())


def _difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    first, second = np.asarray(a), np.asarray(b)
    if first.dtype != np.uint8 or second.dtype != np.uint8:
        raise DataError(f"images must be bytes (uint8, 0..255), not {first.dtype} and {second.dtype}")
    if first.shape != second.shape or not first.size:
        raise DataError(f"images must have one shape and some pixels, not {first.shape} and {second.shape}")
    return first.astype(np.float64) - second
