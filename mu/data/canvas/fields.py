"""Signed distance fields: negative inside, unit slope, in pixels.

Each function takes the points as x and y, both (h, w), and returns their distances (h, w).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIZE = 64
"""Height and width of every image."""
Array = NDArray[np.floating]
Layers = list[tuple[Array, str]]
"""Layers to paint, from back to front: distance (64, 64) and the role of its colour."""

Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
"""Centres of the pixels, each (64, 64)."""


def circle(x: Array, y: Array, cx: float, cy: float, r: float) -> Array:
    """Centre (cx, cy), radius ``r``."""
    return np.hypot(x - cx, y - cy) - r


def box(x: Array, y: Array, cx: float, cy: float, w: float, h: float) -> Array:
    """Centre (cx, cy), half width ``w``, half height ``h``."""
    dx, dy = np.abs(x - cx) - w, np.abs(y - cy) - h
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def ellipse(x: Array, y: Array, cx: float, cy: float, a: float, b: float) -> Array:
    """Centre (cx, cy), half axes ``a`` and ``b``. First-order distance f / |grad f|: exact slope at the
    outline, which suffices for painting."""
    u, v = (x - cx) / a, (y - cy) / b
    k = np.sqrt(u * u + v * v) + 1e-6
    return k * (k - 1) / np.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-9)


def polygon(x: Array, y: Array, points: Sequence[tuple[float, float]]) -> Array:
    """Corners ``points`` in order, clockwise or not."""
    p = np.asarray(points, dtype=np.float32)[:, :, None, None]
    q = np.roll(p, -1, axis=0)
    ex, ey = q[:, 0] - p[:, 0], q[:, 1] - p[:, 1]
    wx, wy = x - p[:, 0], y - p[:, 1]
    t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
    distance = np.sqrt(((wx - ex * t) ** 2 + (wy - ey * t) ** 2).min(axis=0))
    above, below = wy >= 0, y < q[:, 1]
    side = ex * wy > ey * wx
    crossings = (above & below & side) | (~above & ~below & ~side)
    return np.where(crossings.sum(axis=0) % 2 == 1, -distance, distance)


def union(*fields: Array) -> Array:
    """The union of ``fields``: inside if inside any of them."""
    return np.minimum.reduce(fields)
