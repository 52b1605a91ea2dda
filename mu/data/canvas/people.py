"""The people: fixed traits by name, several sharing a first or a last name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mu.data.canvas.fields import Array, Layers, box, circle, ellipse, polygon, union


@dataclass(frozen=True)
class Traits:
    """Traits of one person. Outlines (hair, hat, beard) suffice to identify people, as most styles drop colour."""

    hair: str
    hair_colour: tuple[float, float, float]
    skin: tuple[float, float, float]
    shirt: tuple[float, float, float]
    face: str = "oval"
    beard: bool = False
    glasses: bool = False


_BLACK, _BROWN, _BLOND, _RED, _GREY = (
    (0.1, 0.08, 0.1),
    (0.4, 0.22, 0.1),
    (0.93, 0.78, 0.35),
    (0.8, 0.3, 0.1),
    (0.65,) * 3,
)
_PALE, _TAN, _DEEP = (0.97, 0.82, 0.7), (0.83, 0.62, 0.43), (0.5, 0.32, 0.2)
_NAVY, _CRIMSON, _GREEN, _GOLD, _TEAL, _PURPLE = (
    (0.12, 0.2, 0.5),
    (0.75, 0.1, 0.2),
    (0.15, 0.5, 0.2),
    (0.9, 0.65, 0.1),
    (0.1, 0.55, 0.6),
    (0.5, 0.2, 0.6),
)

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
    cap = np.maximum(ellipse(x, y, 0, -2, w + 1.5, 14), y + 5)
    match kind:
        case "long":
            return [union(ellipse(x, y, 0, -2, w + 5, 15), box(x, y, 0, 10, w + 4.5, 13))], [cap]
        case "bob":
            return [union(ellipse(x, y, 0, -2, w + 6, 15), box(x, y, 0, 3, w + 6, 6))], [np.maximum(cap, y + 4)]
        case "bun":
            return [circle(x, y, 0, -19, 6.5)], [cap]
        case "pigtails":
            return [union(ellipse(x, y, -w - 7, 2, 5.5, 10), ellipse(x, y, w + 7, 2, 5.5, 10))], [cap]
        case "afro":
            return [circle(x, y, 0, -6, 20)], []
        case "mohawk":
            return [box(x, y, 0, -15, 3.2, 9)], []
        case "hood":
            return [union(ellipse(x, y, 0, 0, w + 7, 19), polygon(x, y, [(-9, -15), (0, -27), (9, -15)]))], []
        case "top_hat":
            return [], [union(box(x, y, 0, -18, 9, 8), box(x, y, 0, -9, 16, 2))]
        case "wide_hat":
            return [], [union(ellipse(x, y, 0, -8, 24, 4), ellipse(x, y, 0, -11, 10, 7))]
        case "crown":
            points = [(-12, -8), (-13, -22), (-6, -14), (0, -24), (6, -14), (13, -22), (12, -8)]
            return [], [polygon(x, y, points)]
        case "spikes":
            left = [(-14, -4), (-19, -15), (-10, -13), (-8, -24), (-2, -15)]
            right = [(3, -26), (6, -15), (14, -22), (13, -12), (20, -11), (14, -3)]
            return [polygon(x, y, left + right)], []
    return [], []


def person(x: Array, y: Array, traits: Traits) -> Layers:
    """The layers of a person at pixels x and y (64, 64), with the origin at the centre of the face."""
    w = 11.0 if traits.face == "square" else 10.0
    face = box(x, y, 0, 0, w - 3, 10) - 3 if traits.face == "square" else ellipse(x, y, 0, 0, w, 13)
    behind, front = _hair(x, y, traits.hair, w)
    layers: Layers = [(hair, "hair") for hair in behind]
    layers += [(box(x, y, 0, 30, 17, 10) - 5, "shirt"), (face, "skin")]
    if traits.beard:
        layers.append((np.maximum(ellipse(x, y, 0, 7, w + 1, 11), 4 - y), "hair"))
    layers += [(hair, "hair") for hair in front]
    if traits.glasses:
        layers.append((np.abs(union(circle(x, y, -5, -1, 3.6), circle(x, y, 5, -1, 3.6))) - 0.7, "dark"))
    else:
        layers.append((union(circle(x, y, -4.3, -1, 1.6), circle(x, y, 4.3, -1, 1.6)), "dark"))
    layers.append((box(x, y, 0, 7, 3.2, 0.8), "dark"))
    return layers
