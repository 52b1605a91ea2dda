"""A measured number with its definition and its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HIGHER, LOWER, TOWARDS = "higher", "lower", "towards"
BASE, EDITED = "base", "edited"
"""Columns: scores of the base model and of the edited model."""


def target(direction: str) -> float | None:
    """The best value: 0.5 for ``towards 0.5``, None for ``higher`` and ``lower``. Raises `ValueError` otherwise."""
    if direction in (HIGHER, LOWER):
        return None
    word, _, number = direction.partition(" ")
    try:
        aim = float(number) if word == TOWARDS else math.nan
    except ValueError:
        aim = math.nan
    if not math.isfinite(aim):
        raise ValueError(f"a direction is 'higher', 'lower' or 'towards X' with a number X, not {direction!r}")
    return aim


def loss(direction: str, value: float) -> float:
    """A loss, smaller is better: |value - X| for ``towards X``, -value for ``higher``, value for ``lower``."""
    aim = target(direction)
    if aim is not None:
        return abs(value - aim)
    return value if direction == LOWER else -value


@dataclass(frozen=True)
class Score:
    """``value`` is the mean over ``n`` images (or pairs); ``per_item`` holds the value of each concept.

    ``direction`` is the better one: ``higher``, ``lower``, or ``towards X`` with a number X. ``protocol`` names the
    definition and its version, so that numbers of different protocols never share a column.
    """

    name: str
    value: float
    n: int
    direction: str
    protocol: str
    per_item: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target(self.direction)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Table = dict[str, list[Score]]
"""The result of a suite: the scores of each column, ``base`` and ``edited``."""
