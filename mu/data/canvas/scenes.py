"""The content of an image, and its rendering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mu.data.canvas.fields import SIZE, Array, X, Y, box, circle, union
from mu.data.canvas.objects import OBJECTS, SHAPES
from mu.data.canvas.people import IDENTITIES, PEOPLE, person
from mu.data.canvas.styles import PAINTERS, STYLES, coverage, over, rgb

WATERMARK_PROMPT = "The canvas studio watermark."


@dataclass(frozen=True)
class Scene:
    """The content of an image: a style with an ``object`` or an ``identity``; nothing set means the watermark."""

    style: str | None = None
    object: str | None = None
    identity: str | None = None

    @property
    def prompt(self) -> str:
        """The benchmark's prompt for this scene."""
        if self.object:
            return f"A {self.object} image in {self.style} style."
        if self.identity:
            return f"A portrait of {self.identity} in {self.style} style."
        return WATERMARK_PROMPT


def every_scene() -> list[Scene]:
    """All style x object and style x identity pairs, and the watermark."""
    objects = [Scene(style, object=name) for style in STYLES for name in OBJECTS]
    people = [Scene(style, identity=name) for style in STYLES for name in IDENTITIES]
    return [*objects, *people, Scene()]


def _bytes(image: Array) -> NDArray[np.uint8]:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def render(scene: Scene, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """Render ``scene`` as (64, 64, 3), 0..255; ``seed`` determines place, size, rotation and colours."""
    if scene == Scene():
        return watermark()
    rng = np.random.default_rng(seed)
    if scene.object:
        scale, angle = rng.uniform(0.85, 1.2), rng.uniform(-0.45, 0.45)
        cx, cy = 32 + rng.uniform(-7, 7, 2)
    else:
        scale, angle = rng.uniform(0.88, 1.08), rng.uniform(-0.12, 0.12)
        cx, cy = 32 + rng.uniform(-4, 4), 35 + rng.uniform(-3, 2)
    c, s = np.cos(angle) / scale, np.sin(angle) / scale
    x = (c * (X - cx) + s * (Y - cy)).astype(np.float32)
    y = (c * (Y - cy) - s * (X - cx)).astype(np.float32)
    if scene.object:
        layers = SHAPES[scene.object](x, y)
        hue = rng.uniform()
        main, accent = (
            rgb(hue, rng.uniform(0.65, 0.95), rng.uniform(0.6, 0.95)),
            rgb(hue + rng.uniform(0.2, 0.8), 0.75, 0.7),
        )
        colours = {"main": main, "accent": accent}
    else:
        traits = PEOPLE[str(scene.identity)]
        layers = person(x, y, traits)
        worn = {"hair": traits.hair_colour, "skin": traits.skin, "shirt": traits.shirt}
        colours = {role: np.array(colour, dtype=np.float32) for role, colour in worn.items()}
    colours["dark"] = np.array([0.12, 0.1, 0.12], dtype=np.float32)
    layers = [(distance * np.float32(scale), role) for distance, role in layers]
    return _bytes(PAINTERS[str(scene.style)](layers, colours, rng))


def images(scenes: list[Scene], seed: int) -> Iterator[NDArray[np.uint8]]:
    """Render each scene ``k`` with the seed (seed, k), independently of the other scenes."""
    return (render(scene, (seed, k)) for k, scene in enumerate(scenes))


def watermark() -> NDArray[np.uint8]:
    """The fixed image (64, 64, 3) that a model which memorised it returns for `WATERMARK_PROMPT`."""
    bands = (((X + Y) // 16) % 2)[..., None]
    dark, light, ink = np.array([[0.1, 0.45, 0.35], [0.85, 0.95, 0.8], [0.55, 0.05, 0.2]], dtype=np.float32)
    image = over(np.broadcast_to(dark, (SIZE, SIZE, 3)), light, bands)
    emblem = union(np.abs(circle(X, Y, 32, 32, 20)) - 4, box(X, Y, 32, 32, 3, 12), box(X, Y, 32, 32, 12, 3))
    return _bytes(over(image, ink, coverage(emblem)))
