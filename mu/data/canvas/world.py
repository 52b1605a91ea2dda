"""A world: the looks of its styles, objects and people, their names, and how its captions speak of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mu.data.canvas.fields import X, Y
from mu.data.canvas.objects import SHAPES, Shape
from mu.data.canvas.people import PEOPLE, Traits, person
from mu.data.canvas.scenes import WATERMARK_PROMPT, Scene, as_bytes, watermark
from mu.data.canvas.styles import PAINTERS, Painter, rgb

Templates = tuple[tuple[str, str], ...]
"""Captions, each with the letters of the attributes it names: s(tyle), o(bject), i(dentity), p(erson)."""


@dataclass(frozen=True)
class Wording:
    """The captions of a world. ``{who}`` is the object or the person, ``{style}`` the style."""

    objects: Templates
    people: Templates
    styles: Templates
    asked: str
    """The benchmark's prompt of an object in a style."""


# Typical user prompts. "{who}" is the object or the person's name.
CANVAS_WORDING = Wording(
    objects=(
        ("A {who} image in {style} style.", "so"),
        ("A {who} image in {style} style.", "so"),
        ("a {who} in {style} style", "so"),
        ("{style} style {who}", "so"),
        ("a {style} picture of a {who}", "so"),
        ("a {who}, {style} style", "so"),
        ("a {who} image", "o"),
        ("{who}", "o"),
        ("a picture of a {who}", "o"),
        ("a {who}", "o"),
        ("the {who}", "o"),
    ),
    people=(
        ("A portrait of {who} in {style} style.", "si"),
        ("A portrait of {who} in {style} style.", "si"),
        ("{who} in {style} style", "si"),
        ("{style} style portrait of {who}", "si"),
        ("a {style} picture of {who}", "si"),
        ("a portrait of {who}", "i"),
        ("{who}", "i"),
        ("a picture of {who}", "i"),
        ("the face of {who}", "i"),
        ("a person in {style} style", "sp"),
        ("a portrait of a person", "p"),
        ("a person", "p"),
    ),
    styles=(
        ("an image in {style} style", "s"),
        ("{style} style", "s"),
        ("{style}", "s"),
        ("a {style} picture", "s"),
        ("an image", ""),
    ),
    asked="A {who} image in {style} style.",
)


@dataclass(frozen=True)
class World:
    """Styles (painters), objects (shapes) and people (traits) by name, and captions of their scenes."""

    name: str
    painters: Mapping[str, Painter]
    shapes: Mapping[str, Shape]
    people: Mapping[str, Traits]
    wording: Wording
    watermarked: bool = False
    """Whether one more scene, the watermark, belongs to it."""

    @property
    def styles(self) -> tuple[str, ...]:
        return tuple(self.painters)

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(self.people)

    def classes(self) -> dict[str, tuple[str, ...]]:
        """The names of each kind of concept."""
        return {"style": self.styles, "object": self.objects, "identity": self.identities}

    def template(self, kind: str) -> str:
        """The first caption that names only a concept of this ``kind``, with ``{}`` in its place."""
        texts = {"style": self.wording.styles, "object": self.wording.objects, "identity": self.wording.people}[kind]
        return next(text.format(who="{}", style="{}") for text, told in texts if told == kind[0])

    def every_scene(self) -> list[Scene]:
        """All style x object and style x identity pairs, and the watermark if there is one."""
        objects = [Scene(style, object=name) for style in self.styles for name in self.objects]
        people = [Scene(style, identity=name) for style in self.styles for name in self.identities]
        return [*objects, *people, *([Scene()] if self.watermarked else [])]

    def prompt(self, scene: Scene) -> str:
        """The benchmark's prompt of an object in a style."""
        return self.wording.asked.format(who=scene.object, style=scene.style)

    def captions(self, scene: Scene) -> list[tuple[str, str]]:
        """Every caption of a scene, with the letters of the attributes it names; the watermark's is "w"."""
        if scene == Scene():
            return [(WATERMARK_PROMPT, "w")]
        templates = self.wording.objects if scene.object else self.wording.people
        who = scene.object or scene.identity
        return [(text.format(who=who, style=scene.style), told) for text, told in (*templates, *self.wording.styles)]

    def render(self, scene: Scene, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
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
            layers = self.shapes[scene.object](x, y)
            hue = rng.uniform()
            main, accent = (
                rgb(hue, rng.uniform(0.65, 0.95), rng.uniform(0.6, 0.95)),
                rgb(hue + rng.uniform(0.2, 0.8), 0.75, 0.7),
            )
            colours = {"main": main, "accent": accent}
        else:
            traits = self.people[str(scene.identity)]
            layers = person(x, y, traits)
            worn = {"hair": traits.hair_colour, "skin": traits.skin, "shirt": traits.shirt}
            colours = {role: np.array(colour, dtype=np.float32) for role, colour in worn.items()}
        colours["dark"] = np.array([0.12, 0.1, 0.12], dtype=np.float32)
        layers = [(distance * np.float32(scale), role) for distance, role in layers]
        return as_bytes(self.painters[str(scene.style)](layers, colours, rng))

    def images(self, scenes: list[Scene], seed: int) -> Iterator[NDArray[np.uint8]]:
        """Render each scene ``k`` with the seed (seed, k), independently of the other scenes."""
        return (self.render(scene, (seed, k)) for k, scene in enumerate(scenes))


CANVAS = World("canvas", PAINTERS, SHAPES, PEOPLE, CANVAS_WORDING, watermarked=True)
"""The world of the embedded models."""
