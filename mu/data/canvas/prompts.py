"""Text about scenes: the benchmark's prompts, templates around a concept, pairs, answers to questions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mu.core.errors import DataError, quoted
from mu.data.canvas.objects import OBJECTS
from mu.data.canvas.scenes import Scene
from mu.data.canvas.styles import STYLES
from mu.data.canvas.world import CANVAS, World
from mu.data.questions import QUESTIONS

PROMPTS = tuple(Scene(style, object=name).prompt for name in OBJECTS for style in STYLES)
"""Every prompt of an object in a style, ordered by object."""

SENTENCES_OF = {
    "identity": tuple(Scene(style, identity="{}").prompt for style in STYLES),
    "object": tuple(Scene(style, object="{}").prompt for style in STYLES),
    "style": tuple(Scene("{}", object=name).prompt for name in OBJECTS),
}
"""The benchmark's prompts with ``{}`` in place of the concept, by kind of concept."""

SENTENCES = (*SENTENCES_OF["style"], *SENTENCES_OF["object"])
"""Prompts of styles and of objects, for methods that do not know which of these a concept is."""

PHRASES = ("{}", "a {} image", "an image in {} style", "{} style", "a {} picture")
"""Templates of only a style or an object."""


@dataclass(frozen=True)
class RenderedPair:
    """A caption and a scene, which is rendered at each use."""

    scene: Scene
    caption: str
    seed: tuple[int, ...]
    world: World = field(default=CANVAS, hash=False)

    @property
    def shows(self) -> dict[str, str]:
        """The answers to questions about the image, by attribute."""
        return {attribute: told for attribute in QUESTIONS if (told := getattr(self.scene, attribute))}

    def image(self) -> Image.Image:
        return Image.fromarray(self.world.render(self.scene, self.seed))


def rendered_pairs(n: int, seed: int, concept: str | None = None, world: World = CANVAS) -> list[RenderedPair]:
    """``n`` random scenes of ``world``, each with one of its captions; with ``concept``, only captions that name it.

    Raises `DataError` if the world lacks ``concept``."""
    scenes = [
        scene
        for scene in world.every_scene()
        if concept is None or concept in (scene.style, scene.object, scene.identity)
    ]
    if not scenes:
        raise DataError(f"{quoted(concept)} is not a style, object or person of the {world.name} world")
    rng = np.random.default_rng((seed, n))
    pairs = []
    for k in range(n):
        scene = scenes[int(rng.integers(len(scenes)))]
        texts = [text for text, _ in world.captions(scene) if concept is None or concept in text]
        pairs.append(RenderedPair(scene, texts[int(rng.integers(len(texts)))], (seed, k), world))
    return pairs


def answer(scene: Scene, attribute: str) -> str:
    """The right answer about an image of ``scene`` (not the watermark): a name, ``nobody`` or ``no object``."""
    told = getattr(scene, attribute)
    return told if told else {"identity": "nobody", "object": "no object"}[attribute]
