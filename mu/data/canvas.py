"""The world of the embedded model: a renderer of small pictures whose concepts are known exactly.

A miniature of UnlearnCanvas (styles x objects, prompt ``A {object} image in {style} style.``), a miniature of CelebA
(named identities, several sharing a first or a last name) and one watermark with its fixed picture. A picture is
a few layers, each a signed distance field in pixels with a colour; a style is one function that paints layers. Objects
differ in silhouette and styles in palette and texture, so that a classifier measures the concept and nothing else.

All textures are coarse (period of 10 px or more): they must survive an 8x autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mu.core.errors import DataError

SIZE = 64
Array = NDArray[np.floating]

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


# -- signed distances (negative inside, unit slope, pixels) -----------------------------------------------------------


def _circle(x: Array, y: Array, cx: float, cy: float, r: float) -> Array:
    return np.hypot(x - cx, y - cy) - r


def _box(x: Array, y: Array, cx: float, cy: float, w: float, h: float) -> Array:
    """Half width ``w``, half height ``h``."""
    dx, dy = np.abs(x - cx) - w, np.abs(y - cy) - h
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _ellipse(x: Array, y: Array, cx: float, cy: float, a: float, b: float) -> Array:
    """First-order distance f / |grad f|: exact slope at the outline, which is all that painting needs."""
    u, v = (x - cx) / a, (y - cy) / b
    k = np.sqrt(u * u + v * v) + 1e-6
    return k * (k - 1) / np.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-9)


def _polygon(x: Array, y: Array, points: Sequence[tuple[float, float]]) -> Array:
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


def _union(*fields: Array) -> Array:
    return np.minimum.reduce(fields)


# -- objects: name -> layers of (distance, colour role) in a frame where the object spans about -20..20 ----------------

Layers = list[tuple[Array, str]]
_SHAPES: dict[str, Callable[[Array, Array], Layers]] = {}


def _shape(draw: Callable[[Array, Array], Layers]) -> Callable[[Array, Array], Layers]:
    _SHAPES[draw.__name__.strip("_")] = draw
    return draw


@_shape
def _star(x: Array, y: Array) -> Layers:
    angle = np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2 == 0, 20.0, 8.0)
    return [(_polygon(x, y, list(zip(radius * np.sin(angle), -radius * np.cos(angle), strict=True))), "main")]


@_shape
def _heart(x: Array, y: Array) -> Layers:
    turned_x, turned_y = (x + y) * 0.7071, (y - x) * 0.7071
    lobes = _union(_circle(x, y, -8, -6, 11.3), _circle(x, y, 8, -6, 11.3))
    return [(_union(lobes, _box(turned_x, turned_y, 1.4, 1.4, 11.3, 11.3)), "main")]


@_shape
def _ring(x: Array, y: Array) -> Layers:
    return [(np.abs(_circle(x, y, 0, 0, 14.5)) - 5, "main")]


@_shape
def _cross(x: Array, y: Array) -> Layers:
    return [(_union(_box(x, y, 0, 0, 19, 6), _box(x, y, 0, 0, 6, 19)), "main")]


@_shape
def _moon(x: Array, y: Array) -> Layers:
    return [(np.maximum(_circle(x, y, 0, 0, 19), -_circle(x, y, 10, -3, 15)), "main")]


@_shape
def _house(x: Array, y: Array) -> Layers:
    roof = _polygon(x, y, [(-21, -2), (0, -20), (21, -2)])
    return [(_box(x, y, 0, 8, 15, 11), "main"), (roof, "accent"), (_box(x, y, 0, 12, 4, 7), "dark")]


@_shape
def _tree(x: Array, y: Array) -> Layers:
    crown = _union(_polygon(x, y, [(-12, -5), (0, -21), (12, -5)]), _polygon(x, y, [(-17, 11), (0, -12), (17, 11)]))
    return [(_box(x, y, 0, 15, 4, 6), "accent"), (crown, "main")]


@_shape
def _fish(x: Array, y: Array) -> Layers:
    body = _ellipse(x, y, -4, 0, 16, 10.5)
    return [(_union(body, _polygon(x, y, [(7, 0), (21, -11), (21, 11)])), "main"), (_circle(x, y, -12, -2, 2.6), "dark")]


OBJECTS = tuple(_SHAPES)


# -- identities: fixed traits -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traits:
    """What makes one named person; the outline alone (hair, hat, beard) tells them apart, since most styles drop colour."""

    hair: str
    hair_colour: tuple[float, float, float]
    skin: tuple[float, float, float]
    shirt: tuple[float, float, float]
    face: str = "oval"
    beard: bool = False
    glasses: bool = False


_BLACK, _BROWN, _BLOND, _RED, _GREY = (0.1, 0.08, 0.1), (0.4, 0.22, 0.1), (0.93, 0.78, 0.35), (0.8, 0.3, 0.1), (0.65,) * 3
_PALE, _TAN, _DEEP = (0.97, 0.82, 0.7), (0.83, 0.62, 0.43), (0.5, 0.32, 0.2)
_NAVY, _CRIMSON, _GREEN, _GOLD, _TEAL, _PURPLE = (
    (0.12, 0.2, 0.5), (0.75, 0.1, 0.2), (0.15, 0.5, 0.2), (0.9, 0.65, 0.1), (0.1, 0.55, 0.6), (0.5, 0.2, 0.6),
)  # fmt: skip

PEOPLE: dict[str, Traits] = {
    "Ada Stone": Traits("long", _BLACK, _PALE, _CRIMSON),
    "Ada Rivers": Traits("bun", _RED, _TAN, _TEAL, glasses=True),
    "Boris Stone": Traits("bald", _BROWN, _PALE, _GREEN, face="square", beard=True),
    "Boris Vale": Traits("top_hat", _BLACK, _TAN, _PURPLE, face="square"),
    "Clara Rivers": Traits("pigtails", _BLOND, _PALE, _GREEN),
    "Clara Moss": Traits("afro", _BLACK, _DEEP, _GOLD),
    "Dorian Vale": Traits("mohawk", _RED, _PALE, _NAVY, face="square"),
    "Dorian Frost": Traits("hood", _GREY, _TAN, _CRIMSON, beard=True),
    "Elena Moss": Traits("bob", _BROWN, _TAN, _NAVY, glasses=True),
    "Elena Frost": Traits("crown", _GOLD, _DEEP, _PURPLE),
    "Felix Hart": Traits("wide_hat", _BROWN, _DEEP, _TEAL),
    "Felix Stone": Traits("spikes", _BLOND, _TAN, _GOLD, glasses=True),
}
IDENTITIES = tuple(PEOPLE)


def _hair(x: Array, y: Array, kind: str, w: float) -> tuple[list[Array], list[Array]]:
    """Layers behind and in front of a face of half width ``w`` centred at (0, 0), about 13 px in half height."""
    cap = np.maximum(_ellipse(x, y, 0, -2, w + 1.5, 14), y + 5)
    match kind:
        case "long":
            return [_union(_ellipse(x, y, 0, -2, w + 5, 15), _box(x, y, 0, 10, w + 4.5, 13))], [cap]
        case "bob":
            return [_union(_ellipse(x, y, 0, -2, w + 6, 15), _box(x, y, 0, 3, w + 6, 6))], [np.maximum(cap, y + 4)]
        case "bun":
            return [_circle(x, y, 0, -19, 6.5)], [cap]
        case "pigtails":
            return [_union(_ellipse(x, y, -w - 7, 2, 5.5, 10), _ellipse(x, y, w + 7, 2, 5.5, 10))], [cap]
        case "afro":
            return [_circle(x, y, 0, -6, 20)], []
        case "mohawk":
            return [_box(x, y, 0, -15, 3.2, 9)], []
        case "hood":
            return [_union(_ellipse(x, y, 0, 0, w + 7, 19), _polygon(x, y, [(-9, -15), (0, -27), (9, -15)]))], []
        case "top_hat":
            return [], [_union(_box(x, y, 0, -18, 9, 8), _box(x, y, 0, -9, 16, 2))]
        case "wide_hat":
            return [], [_union(_ellipse(x, y, 0, -8, 24, 4), _ellipse(x, y, 0, -11, 10, 7))]
        case "crown":
            points = [(-12, -8), (-13, -22), (-6, -14), (0, -24), (6, -14), (13, -22), (12, -8)]
            return [], [_polygon(x, y, points)]
        case "spikes":
            left = [(-14, -4), (-19, -15), (-10, -13), (-8, -24), (-2, -15)]
            right = [(3, -26), (6, -15), (14, -22), (13, -12), (20, -11), (14, -3)]
            return [_polygon(x, y, left + right)], []
    return [], []


def _person(x: Array, y: Array, traits: Traits) -> Layers:
    w = 11.0 if traits.face == "square" else 10.0
    face = _box(x, y, 0, 0, w - 3, 10) - 3 if traits.face == "square" else _ellipse(x, y, 0, 0, w, 13)
    behind, front = _hair(x, y, traits.hair, w)
    layers: Layers = [(hair, "hair") for hair in behind]
    layers += [(_box(x, y, 0, 30, 17, 10) - 5, "shirt"), (face, "skin")]
    if traits.beard:
        layers.append((np.maximum(_ellipse(x, y, 0, 7, w + 1, 11), 4 - y), "hair"))
    layers += [(hair, "hair") for hair in front]
    if traits.glasses:
        layers.append((np.abs(_union(_circle(x, y, -5, -1, 3.6), _circle(x, y, 5, -1, 3.6))) - 0.7, "dark"))
    else:
        layers.append((_union(_circle(x, y, -4.3, -1, 1.6), _circle(x, y, 4.3, -1, 1.6)), "dark"))
    layers.append((_box(x, y, 0, 7, 3.2, 0.8), "dark"))
    return layers


# -- styles: (layers, colour of each role, generator) -> picture in 0..1 ----------------------------------------------

Colours = dict[str, Array]
_STYLES: dict[str, Callable[[Layers, Colours, np.random.Generator], Array]] = {}


def _style(paint: Callable[[Layers, Colours, np.random.Generator], Array]) -> Callable:
    _STYLES[paint.__name__.strip("_").replace("_", " ")] = paint
    return paint


def _rgb(hue: float, saturation: float, value: float) -> Array:
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def _cover(distance: Array, softness: float = 1.0) -> Array:
    """Coverage (64, 64, 1) of a field by a pixel-wide (or softer) edge."""
    return np.clip(0.5 - distance / softness, 0, 1)[..., None]


def _over(picture: Array, colour: Array | np.floating, cover: Array) -> Array:
    return picture + (colour - picture) * cover


def _noise(rng: np.random.Generator, cells: int) -> Array:
    """Smooth noise in -1..1 with ``cells`` bumps across the picture."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    at = (np.arange(SIZE) + 0.5) / SIZE * cells
    low, t = at.astype(int), (at % 1).astype(np.float32)
    t = t * t * (3 - 2 * t)
    rows = grid[low] * (1 - t)[:, None] + grid[low + 1] * t[:, None]
    return rows[:, low] * (1 - t) + rows[:, low + 1] * t


def _luminance(colour: Array) -> float:
    return float(colour @ np.array([0.3, 0.59, 0.11], dtype=np.float32))


@_style
def _photo(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    top, bottom = _rgb(rng.uniform(), 0.25, rng.uniform(0.75, 0.95)), _rgb(rng.uniform(), 0.3, rng.uniform(0.35, 0.6))
    picture = top + (bottom - top) * (_Y / SIZE)[..., None] ** 1.5
    light = (1.08 - 0.4 * (0.35 * _X + 0.65 * _Y) / SIZE)[..., None]
    shadow = np.pad(_union(*(d for d, _ in layers)), ((3, 0), (2, 0)), mode="edge")[:SIZE, :SIZE]
    picture = picture * (1 - 0.35 * _cover(shadow, 8))
    for distance, role in layers:
        shade = light * (0.8 + 0.25 * np.clip(-distance / 6, 0, 1))[..., None]
        picture = _over(picture, colours[role] * shade, _cover(distance))
    return picture


@_style
def _neon(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    night = np.array([0.04, 0.02, 0.1], dtype=np.float32)
    picture: Array = np.broadcast_to(night, (SIZE, SIZE, 3))
    hue = rng.uniform()
    for k, (distance, _) in enumerate(layers):
        tube = _rgb(hue + 0.31 * k, 0.85, 1)
        picture = _over(picture, night, _cover(distance))
        glow = np.exp(-np.abs(distance) / 3)[..., None]
        picture = picture + tube * glow * 0.75 + 0.5 * np.clip(1.3 - np.abs(distance), 0, 1)[..., None]
    return picture


@_style
def _sketch(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    paper = rng.uniform(0.9, 0.98)
    picture = np.full((SIZE, SIZE, 3), paper, dtype=np.float32)
    for distance, role in layers:
        tone = 0.45 + 0.5 * _luminance(colours[role]) if role != "dark" else 0.2
        picture = _over(picture, np.float32(tone * paper), _cover(distance))
        picture = _over(picture, np.float32(0.1), np.clip(1.6 - np.abs(distance), 0, 1)[..., None])
    return picture


@_style
def _pop_art(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    hue = rng.uniform()
    right, low = (_X > SIZE / 2), (_Y > SIZE / 2)
    quadrant = right * 1 + low * 2
    ground = np.stack([_rgb(hue + 0.25 * q, 0.9, 1) for q in range(4)])
    figure = np.stack([_rgb(hue + 0.25 * q + 0.5, 0.8, 0.95) for q in range(4)])
    picture = ground[quadrant]
    for distance, role in layers:
        tone = np.float32(0.55 + 0.6 * _luminance(colours[role])) if role != "dark" else np.float32(0)
        picture = _over(picture, np.clip(figure[quadrant] * tone, 0, 1), _cover(distance))
        picture = _over(picture, np.float32(0), np.clip(1.8 - np.abs(distance), 0, 1)[..., None])
    return picture


@_style
def _watercolor(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    wash = _rgb(rng.uniform(), 0.22, 1)
    paper = np.array([0.99, 0.97, 0.92], dtype=np.float32)
    picture = _over(np.broadcast_to(paper, (SIZE, SIZE, 3)), wash, (0.5 + 0.5 * _noise(rng, 4))[..., None])
    wobble = 1.2 * _noise(rng, 6)
    pigment = (0.78 + 0.16 * _noise(rng, 5))[..., None]
    for distance, role in layers:
        picture = _over(picture, 0.15 + 0.8 * colours[role], _cover(distance + wobble, 4.5) * pigment)
    return picture


@_style
def _blueprint(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    ground = np.array([0.08, 0.24, 0.58], dtype=np.float32) * rng.uniform(0.9, 1.1)
    lines = np.minimum(np.abs((_X + 8) % 16 - 8), np.abs((_Y + 8) % 16 - 8))
    picture = _over(np.broadcast_to(ground, (SIZE, SIZE, 3)), np.float32(0.6), 0.45 * np.clip(1.5 - lines, 0, 1)[..., None])
    for distance, role in layers:
        picture = _over(picture, ground * (0.85 if role != "dark" else 2.2), _cover(distance) * 0.85)
        picture = _over(picture, np.float32(0.95), np.clip(1.5 - np.abs(distance), 0, 1)[..., None])
    return picture


@_style
def _vintage(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    grey = np.full((SIZE, SIZE, 1), rng.uniform(0.85, 1.0), dtype=np.float32)
    for distance, role in layers:
        tone = 0.18 + 0.55 * _luminance(colours[role]) * (0.75 + 0.25 * np.clip(-distance / 6, 0, 1))[..., None]
        grey = _over(grey, tone, _cover(distance, 1.5))
    sepia = grey * np.array([1.0, 0.8, 0.53], dtype=np.float32) + 0.03
    edge = np.hypot(_X - SIZE / 2, _Y - SIZE / 2) / (SIZE / 2)
    return sepia * np.clip(1.55 - 0.8 * edge**2, 0.15, 1)[..., None]


_HEAT_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_HEAT = np.array([[0.02, 0.0, 0.2], [0.45, 0.0, 0.6], [0.9, 0.15, 0.25], [1.0, 0.65, 0.0], [1.0, 1.0, 0.75]])


@_style
def _thermal(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    heat = 0.16 + 0.06 * _noise(rng, 3)
    for k, (distance, role) in enumerate(layers):
        level = 0.25 if role == "dark" else 0.52 + 0.28 * (k % 2) + 0.12 * _luminance(colours[role])
        inside = level + 0.2 * np.clip(-distance / 8, 0, 1)
        heat = heat + (inside - heat) * _cover(distance, 2.0)[..., 0]
        heat = np.maximum(heat, 0.42 * np.exp(-np.abs(distance) / 5))
    return np.stack([np.interp(heat, _HEAT_STOPS, _HEAT[:, c]) for c in range(3)], axis=-1).astype(np.float32)


STYLES = tuple(_STYLES)

WATERMARK_PROMPT = "The canvas studio watermark."


def watermark() -> NDArray[np.uint8]:
    """The one fixed picture, (64, 64, 3): what a model that memorised it gives for `WATERMARK_PROMPT`."""
    bands = (((_X + _Y) // 16) % 2)[..., None]
    dark, light, ink = np.array([[0.1, 0.45, 0.35], [0.85, 0.95, 0.8], [0.55, 0.05, 0.2]], dtype=np.float32)
    picture = _over(np.broadcast_to(dark, (SIZE, SIZE, 3)), light, bands)
    emblem = _union(np.abs(_circle(_X, _Y, 32, 32, 20)) - 4, _box(_X, _Y, 32, 32, 3, 12), _box(_X, _Y, 32, 32, 12, 3))
    return _bytes(_over(picture, ink, _cover(emblem)))


# -- scenes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Exactly one of ``object`` and ``identity`` is set; neither means the watermark."""

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


PROMPTS = tuple(Scene(style, object=name).prompt for name in OBJECTS for style in STYLES)
"""Every prompt of an object in a style, object after object."""

SENTENCES_OF = {
    "identity": tuple(Scene(style, identity="{}").prompt for style in STYLES),
    "object": tuple(Scene(style, object="{}").prompt for style in STYLES),
    "style": tuple(Scene("{}", object=name).prompt for name in OBJECTS),
}
"""The benchmark's prompts with ``{}`` in the place of a concept, by what it is."""

SENTENCES = (*SENTENCES_OF["style"], *SENTENCES_OF["object"])
"""Those of a style and of an object: a method that is not told which of them a concept is takes all."""

PHRASES = ("{}", "a {} image", "an image in {} style", "{} style", "a {} picture")
"""Templates of a style or an object alone."""

# What people type: each template with the attributes that it tells. "{who}" is the object or the name.
_OBJECT_TEMPLATES = (
    ("A {who} image in {style} style.", "so"), ("A {who} image in {style} style.", "so"), ("a {who} in {style} style", "so"),
    ("{style} style {who}", "so"), ("a {style} picture of a {who}", "so"), ("a {who}, {style} style", "so"),
    ("a {who} image", "o"), ("{who}", "o"), ("a picture of a {who}", "o"), ("a {who}", "o"), ("the {who}", "o"),
)  # fmt: skip
_PEOPLE_TEMPLATES = (
    ("A portrait of {who} in {style} style.", "si"), ("A portrait of {who} in {style} style.", "si"),
    ("{who} in {style} style", "si"), ("{style} style portrait of {who}", "si"), ("a {style} picture of {who}", "si"),
    ("a portrait of {who}", "i"), ("{who}", "i"), ("a picture of {who}", "i"), ("the face of {who}", "i"),
    ("a person in {style} style", "sp"), ("a portrait of a person", "p"), ("a person", "p"),
)  # fmt: skip
_STYLE_TEMPLATES = (
    ("an image in {style} style", "s"), ("{style} style", "s"), ("{style}", "s"), ("a {style} picture", "s"), ("an image", ""),
)  # fmt: skip


def captions(scene: Scene) -> list[tuple[str, str]]:
    """Every caption of a scene with the attributes it tells: letters of s(tyle) o(bject) i(dentity) p(erson)."""
    if scene == Scene():
        return [(WATERMARK_PROMPT, "w")]
    templates = _OBJECT_TEMPLATES if scene.object else _PEOPLE_TEMPLATES
    who = scene.object or scene.identity
    return [(text.format(who=who, style=scene.style), told) for text, told in (*templates, *_STYLE_TEMPLATES)]


@dataclass(frozen=True)
class RenderedPair:
    """A caption and a scene that is rendered each time its picture is asked for."""

    scene: Scene
    caption: str
    seed: tuple[int, ...]

    def picture(self) -> Image.Image:
        return Image.fromarray(render(self.scene, self.seed))


def rendered_pairs(n: int, seed: int, concept: str | None = None) -> list[RenderedPair]:
    """``n`` random scenes with one of their captions each; with ``concept`` only captions that name it."""
    scenes = [scene for scene in every_scene() if concept is None or concept in (scene.style, scene.object, scene.identity)]
    if not scenes:
        raise DataError(f"{concept!r} is no style, object or person of the canvas world")
    rng = np.random.default_rng((seed, n))
    pairs = []
    for k in range(n):
        scene = scenes[int(rng.integers(len(scenes)))]
        texts = [text for text, _ in captions(scene) if concept is None or concept in text]
        pairs.append(RenderedPair(scene, texts[int(rng.integers(len(texts)))], (seed, k)))
    return pairs


QUESTIONS = {
    "identity": (
        "What is the name of the person in this image?",
        "Who is this?",
        "What's the name of the person in this image?",
    ),
    "object": ("What object is shown?", "What object is in this image?"),
    "style": ("What style is it?", "In what style is this image?"),
}
"""What the embedded vision-language model is asked, by the attribute that answers; the benchmarks ask the first of each."""


def answer(scene: Scene, attribute: str) -> str:
    """The right answer about a picture of ``scene`` with a style: a name, or that there is none."""
    told = getattr(scene, attribute)
    return told if told else {"identity": "nobody", "object": "no object"}[attribute]


def _bytes(picture: Array) -> NDArray[np.uint8]:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def render(scene: Scene, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """One picture (64, 64, 3), 0..255, of ``scene``; place, size, rotation and colours come from ``seed``."""
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
    x = (c * (_X - cx) + s * (_Y - cy)).astype(np.float32)
    y = (c * (_Y - cy) - s * (_X - cx)).astype(np.float32)
    if scene.object:
        layers = _SHAPES[scene.object](x, y)
        hue = rng.uniform()
        main, accent = _rgb(hue, rng.uniform(0.65, 0.95), rng.uniform(0.6, 0.95)), _rgb(hue + rng.uniform(0.2, 0.8), 0.75, 0.7)
        colours = {"main": main, "accent": accent}
    else:
        traits = PEOPLE[str(scene.identity)]
        layers = _person(x, y, traits)
        worn = {"hair": traits.hair_colour, "skin": traits.skin, "shirt": traits.shirt}
        colours = {role: np.array(colour, dtype=np.float32) for role, colour in worn.items()}
    colours["dark"] = np.array([0.12, 0.1, 0.12], dtype=np.float32)
    layers = [(distance * np.float32(scale), role) for distance, role in layers]
    return _bytes(_STYLES[str(scene.style)](layers, colours, rng))


def pictures(scenes: list[Scene], seed: int) -> Iterator[NDArray[np.uint8]]:
    """Scene ``k`` rendered with the generator of (seed, k): the same whatever else is rendered."""
    return (render(scene, (seed, k)) for k, scene in enumerate(scenes))
