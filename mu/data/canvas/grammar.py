"""Sibling worlds of canvas, drawn from grammars by a seed: other words, looks, shapes, people and captions.

A method that is tuned on one world is measured on another. `sibling` takes grounds, figures and shapes without
replacement, so that the styles of a world differ in their ground and its objects in their silhouette.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from mu.data.canvas.fields import SIZE, Array, Layers, X, Y, box, circle, ellipse, polygon, union
from mu.data.canvas.objects import Shape
from mu.data.canvas.people import Traits
from mu.data.canvas.styles import Colours, Painter, coverage, luminance, over, rgb, smooth_noise
from mu.data.canvas.world import Wording, World

COUNT = 8
"""Styles and objects of a sibling."""
PEOPLE_COUNT = 6

STYLE_WORDS = """
velvet copper mosaic marble crayon pixel gothic origami amber frosted stained glass ivory chrome woodcut pastel comic
graffiti satin linen arctic lava denim paper bronze candy rustic royal misty tropical lunar coral charcoal enamel
""".split()
FIRST_NAMES = "Hugo Irene Jasper Kira Leon Mabel Nils Olga Pavel Rosa Silas Tilda Ulric Vera Wanda Yara".split()
LAST_NAMES = "Archer Bishop Cole Dahl Egan Finch Gray Holt Irving Jonas Kemp Lund".split()


def sibling(seed: int) -> World:
    """The sibling world of ``seed``: equal seeds give equal worlds."""
    rng = np.random.default_rng((seed, 20_161))
    return World(
        name=f"sibling-{seed}",
        painters=_painters(rng),
        shapes=_shapes(rng),
        people=_people(rng),
        wording=_wording(rng),
    )


Draw = np.random.Generator
Ground = Callable[[Draw, Array, Array], Array]
"""Paints (64, 64, 3) from a generator and two colours."""


def _plain(rng: Draw, one: Array, two: Array) -> Array:
    return np.broadcast_to(one * rng.uniform(0.9, 1.05), (SIZE, SIZE, 3)).astype(np.float32)


def _mixed(one: Array, two: Array, share: Array) -> Array:
    return one + (two - one) * share[..., None]


def _fade(rng: Draw, one: Array, two: Array) -> Array:
    return _mixed(one, two, Y / SIZE)


def _spot(rng: Draw, one: Array, two: Array) -> Array:
    far = np.hypot(X - 32 - rng.uniform(-6, 6), Y - 32 - rng.uniform(-6, 6)) / 42
    return _mixed(one, two, np.clip(far, 0, 1))


def _bands(rng: Draw, one: Array, two: Array) -> Array:
    return _mixed(one, two, ((Y + rng.uniform(0, 16)) // 8 % 2).astype(np.float32))


def _posts(rng: Draw, one: Array, two: Array) -> Array:
    return _mixed(one, two, ((X + rng.uniform(0, 20)) // 10 % 2).astype(np.float32))


def _slant(rng: Draw, one: Array, two: Array) -> Array:
    return _mixed(one, two, (X + Y + rng.uniform(0, 24) > SIZE + 12).astype(np.float32))


def _tiles(rng: Draw, one: Array, two: Array) -> Array:
    return _mixed(one, two, ((X // 16 + Y // 16) % 2).astype(np.float32))


def _dots(rng: Draw, one: Array, two: Array) -> Array:
    return over(_plain(rng, one, two), two, coverage(np.hypot((X % 16) - 8, (Y % 16) - 8) - 4, 2))


def _clouds(rng: Draw, one: Array, two: Array) -> Array:
    return _mixed(one, two, 0.5 + 0.5 * smooth_noise(rng, 4))


def _frame(rng: Draw, one: Array, two: Array) -> Array:
    return over(_plain(rng, one, two), two, coverage(-box(X, Y, 32, 32, 25, 25), 2))


GROUNDS: Sequence[Ground] = (_plain, _fade, _spot, _bands, _posts, _slant, _tiles, _dots, _clouds, _frame)


def _painters(rng: Draw) -> dict[str, Painter]:
    """One painter by word: its own ground and hue, and a drawn way to fill and to outline figures."""
    words, grounds = rng.permutation(STYLE_WORDS)[:COUNT], rng.permutation(len(GROUNDS))[:COUNT]
    hues = (rng.uniform() + rng.permutation(COUNT) / COUNT) % 1
    fills, edges = _spread(rng, len(FILLS)), _spread(rng, len(EDGES))
    found: dict[str, Painter] = {}
    for k, word in enumerate(words):
        dark = bool(rng.integers(2))
        one = rgb(hues[k], rng.uniform(0.3, 0.8), rng.uniform(0.12, 0.35) if dark else rng.uniform(0.8, 1.0))
        two = rgb(hues[k] + rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.7), rng.uniform(0.3, 0.95))
        found[str(word)] = partial(
            _paint, ground=GROUNDS[int(grounds[k])], one=one, two=two, fill=FILLS[fills[k]], edge=EDGES[edges[k]],
            hue=float(hues[k]), dark=dark,
        )  # fmt: skip
    return found


def _spread(rng: Draw, kinds: int) -> list[int]:
    """``COUNT`` numbers below ``kinds``, each about equally often."""
    return [int(k) for k in rng.permutation(np.arange(COUNT) % kinds)]


def _own(colour: Array, hue: float, dark: bool) -> Array:
    return colour


def _toned(colour: Array, hue: float, dark: bool) -> Array:
    return rgb(hue + 0.45, 0.75, 0.35 + 0.6 * luminance(colour))


def _grey(colour: Array, hue: float, dark: bool) -> Array:
    return np.full(3, 0.25 + 0.7 * luminance(colour), dtype=np.float32)


def _contrast(colour: Array, hue: float, dark: bool) -> Array:
    return np.full(3, 0.95 if dark else 0.08, dtype=np.float32) * (0.7 + 0.3 * luminance(colour))


def _pale(colour: Array, hue: float, dark: bool) -> Array:
    return 0.55 + 0.45 * colour


FILLS = (_own, _toned, _grey, _contrast, _pale)
EDGES = ("none", "dark", "light", "glow", "soft")


def _paint(
    layers: Layers, colours: Colours, rng: Draw, *, ground: Ground, one: Array, two: Array,
    fill: Callable[[Array, float, bool], Array], edge: str, hue: float, dark: bool,
) -> Array:  # fmt: skip
    image = ground(rng, one, two)
    for distance, role in layers:
        colour = fill(colours[role], hue, dark)
        if edge == "glow":
            image = image + rgb(hue + 0.5, 0.6, 1) * 0.7 * np.exp(-np.abs(distance) / 3)[..., None]
        image = over(image, colour, coverage(distance, 5 if edge == "soft" else 1))
        if edge in ("dark", "light"):
            line = np.clip(1.7 - np.abs(distance), 0, 1)[..., None]
            image = over(image, np.float32(0.06 if edge == "dark" else 0.97), line)
    return image


def _regular(x: Array, y: Array, n: int, r: float = 20, turn: float = 0) -> Array:
    angle = turn + 2 * np.pi * np.arange(n) / n
    return polygon(x, y, list(zip(r * np.sin(angle), -r * np.cos(angle), strict=True)))


def _arrow(x: Array, y: Array) -> Layers:
    return [(union(box(x, y, -5, 0, 14, 5), polygon(x, y, [(4, -15), (21, 0), (4, 15)])), "main")]


def _bolt(x: Array, y: Array) -> Layers:
    points = [(4, -21), (-13, 4), (-2, 4), (-6, 21), (13, -5), (2, -5)]
    return [(polygon(x, y, [(float(a), float(b)) for a, b in points]), "main")]


def _drop(x: Array, y: Array) -> Layers:
    return [(union(circle(x, y, 0, 6, 13), polygon(x, y, [(-11, 0), (0, -21), (11, 0)])), "main")]


def _gear(x: Array, y: Array) -> Layers:
    teeth = [circle(x, y, 15 * np.cos(a), 15 * np.sin(a), 5) for a in np.arange(8) * np.pi / 4]
    return [(union(circle(x, y, 0, 0, 14), *teeth), "main"), (circle(x, y, 0, 0, 6), "dark")]


def _flower(x: Array, y: Array) -> Layers:
    petals = [circle(x, y, 11 * np.cos(a), 11 * np.sin(a), 8.5) for a in np.arange(5) * 2 * np.pi / 5]
    return [(union(*petals), "main"), (circle(x, y, 0, 0, 6.5), "accent")]


def _hourglass(x: Array, y: Array) -> Layers:
    upper, lower = [(-15, -20), (15, -20), (0, 3)], [(-15, 20), (15, 20), (0, -3)]
    return [(union(polygon(x, y, upper), polygon(x, y, lower)), "main")]


def _bottle(x: Array, y: Array) -> Layers:
    return [(union(box(x, y, 0, 7, 10, 13), box(x, y, 0, -12, 4, 9)), "main"), (box(x, y, 0, 8, 10, 4), "accent")]


def _mushroom(x: Array, y: Array) -> Layers:
    cap = np.maximum(ellipse(x, y, 0, -1, 20, 18), y - 1)
    return [(box(x, y, 0, 10, 6, 10), "accent"), (cap, "main")]


def _boat(x: Array, y: Array) -> Layers:
    hull = polygon(x, y, [(-21, 6), (21, 6), (12, 18), (-12, 18)])
    return [(hull, "accent"), (polygon(x, y, [(-2, 3), (-2, -21), (17, 3)]), "main")]


def _key(x: Array, y: Array) -> Layers:
    teeth = union(box(x, y, 17, 5, 2.5, 5), box(x, y, 10, 4, 2, 4))
    return [(union(np.abs(circle(x, y, -11, 0, 7)) - 3.2, box(x, y, 8, 0, 13, 2.8), teeth), "main")]


def _cup(x: Array, y: Array) -> Layers:
    handle = np.abs(circle(x, y, 13, 0, 7)) - 2.5
    return [(union(polygon(x, y, [(-15, -15), (13, -15), (9, 16), (-11, 16)]), handle), "main")]


def _ladder(x: Array, y: Array) -> Layers:
    rungs = [box(x, y, 0, at, 11, 2.4) for at in (-13, 0, 13)]
    return [(union(box(x, y, -11, 0, 2.8, 20), box(x, y, 11, 0, 2.8, 20), *rungs), "main")]


def _diamond(x: Array, y: Array) -> Layers:
    return [(polygon(x, y, [(-20, -6), (-10, -17), (10, -17), (20, -6), (0, 20)]), "main")]


def _tower(x: Array, y: Array) -> Layers:
    return [(union(box(x, y, 0, 4, 9, 17), *(box(x, y, at, -16, 3, 4) for at in (-11, 0, 11))), "main")]


def _pyramid(x: Array, y: Array) -> Layers:
    return [(polygon(x, y, [(-21, 16), (0, -19), (21, 16)]), "main")]


def _brick(x: Array, y: Array) -> Layers:
    return [(box(x, y, 0, 0, 20, 10), "main")]


FORMS: Mapping[tuple[str, ...], Shape] = {
    ("arrow", "dart"): _arrow,
    ("bolt", "lightning"): _bolt,
    ("drop", "tear"): _drop,
    ("gear", "wheel"): _gear,
    ("flower", "daisy"): _flower,
    ("hourglass", "bowtie"): _hourglass,
    ("bottle", "vase"): _bottle,
    ("mushroom", "umbrella"): _mushroom,
    ("boat", "ship"): _boat,
    ("key", "wrench"): _key,
    ("cup", "mug"): _cup,
    ("ladder", "fence"): _ladder,
    ("diamond", "gem"): _diamond,
    ("tower", "castle"): _tower,
    ("pyramid", "tent"): _pyramid,
    ("brick", "sofa"): _brick,
}
"""Shapes, and the words that may name them."""


def _shapes(rng: Draw) -> dict[str, Shape]:
    names = list(FORMS)
    drawn = [names[int(k)] for k in rng.permutation(len(names))[:COUNT]]
    return {str(rng.choice(words)): FORMS[words] for words in drawn}


def _people(rng: Draw) -> dict[str, Traits]:
    kinds = "long bob bun pigtails afro mohawk hood top_hat wide_hat crown spikes bald".split()
    hair = rng.permutation(kinds)[:PEOPLE_COUNT]
    first = rng.permutation(FIRST_NAMES)[: PEOPLE_COUNT // 2 + 1]
    last = rng.permutation(LAST_NAMES)[: PEOPLE_COUNT // 2 + 1]
    found = {}
    for k in range(PEOPLE_COUNT):
        colours = rng.uniform(0.1, 0.9, (2, 3))
        skin = float(rng.uniform(0.45, 1.0))
        found[f"{first[k // 2]} {last[(k + 1) // 2]}"] = Traits(
            str(hair[k]), _triple(colours[0]), (0.95 * skin, 0.78 * skin, 0.65 * skin), _triple(colours[1]),
            face=str(rng.choice(["oval", "square"])), beard=bool(rng.uniform() < 0.3),
            glasses=bool(rng.uniform() < 0.3),
        )  # fmt: skip
    return found


def _triple(colour: Array) -> tuple[float, float, float]:
    return (float(colour[0]), float(colour[1]), float(colour[2]))


# A tongue is a way to speak of scenes: the word for a style, and how it joins the thing that it paints.
_TONGUES = (
    ("{who} in the {style} look", "{style} look"),
    ("{style} {who}", "{style} art"),
    ("{who} drawn the {style} way", "the {style} way"),
    ("{who}, {style}", "in {style}"),
    ("{style} style {who}", "{style} style"),
    ("{who} in {style} style", "a {style} thing"),
    ("{who} made of {style}", "made of {style}"),
    ("{who} with a {style} finish", "a {style} finish"),
)


def _wording(rng: Draw) -> Wording:
    spoken = [_TONGUES[int(k)] for k in rng.permutation(len(_TONGUES))[:4]]
    joined, alone = [joined for joined, _ in spoken], [(text, "s") for _, text in spoken]
    objects = [(text, "so") for each in joined for text in (each, f"a {each}")]
    asked = f"a {joined[0]}"
    return Wording(
        objects=((asked, "so"), *objects, ("{who}", "o"), ("a {who}", "o"), ("a drawing of a {who}", "o")),
        people=(*((text, "si") for text in joined), ("{who}", "i"), ("a drawing of {who}", "i"), ("a person", "p")),
        styles=(*alone, ("{style}", "s"), ("something {style}", "s"), ("a drawing", "")),
        asked=asked,
    )
