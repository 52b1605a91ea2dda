"""The content of an image, and the watermark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mu.data.canvas.fields import SIZE, Array, X, Y, box, circle, union
from mu.data.canvas.styles import coverage, over

WATERMARK_PROMPT = "The canvas studio watermark."


@dataclass(frozen=True)
class Scene:
    """The content of an image: a style with an ``object`` or an ``identity``; nothing set means the watermark."""

    style: str | None = None
    object: str | None = None
    identity: str | None = None

    @property
    def prompt(self) -> str:
        """The benchmark's prompt for this scene of the world canvas."""
        if self.object:
            return f"A {self.object} image in {self.style} style."
        if self.identity:
            return f"A portrait of {self.identity} in {self.style} style."
        return WATERMARK_PROMPT


def as_bytes(image: Array) -> NDArray[np.uint8]:
    """An image in 0..1 as 0..255."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def watermark() -> NDArray[np.uint8]:
    """The fixed image (64, 64, 3) that a model which memorised it returns for `WATERMARK_PROMPT`."""
    bands = (((X + Y) // 16) % 2)[..., None]
    dark, light, ink = np.array([[0.1, 0.45, 0.35], [0.85, 0.95, 0.8], [0.55, 0.05, 0.2]], dtype=np.float32)
    image = over(np.broadcast_to(dark, (SIZE, SIZE, 3)), light, bands)
    emblem = union(np.abs(circle(X, Y, 32, 32, 20)) - 4, box(X, Y, 32, 32, 3, 12), box(X, Y, 32, 32, 12, 3))
    return as_bytes(over(image, ink, coverage(emblem)))
