"""A measured number that says what it is, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HIGHER, LOWER, TOWARDS = "higher", "lower", "towards"
BASE, EDITED = "base", "edited"
"""Columns: the untouched model's scores, and those with the edit."""


def target(direction: str) -> float | None:
    """The best value: 0.5 of ``towards 0.5``, None of ``higher`` and ``lower``. `ValueError` for anything else."""
    if direction in (HIGHER, LOWER):
        return None
    word, _, number = direction.partition(" ")
    try:
        aim = float(number) if word == TOWARDS else math.nan
    except ValueError:
        aim = math.nan
    if not math.isfinite(aim):
        raise ValueError(f"a direction is 'higher', 'lower' or 'towards X', a number, not {direction!r}")
    return aim


def loss(direction: str, value: float) -> float:
    """How far ``value`` is from what is best, smaller is better: |value - X| of ``towards X``, -value of ``higher``."""
    aim = target(direction)
    if aim is not None:
        return abs(value - aim)
    return value if direction == LOWER else -value


@dataclass(frozen=True)
class Score:
    """``value`` is the mean over ``n`` images (or pairs); ``per_item`` gives it for each concept.

    ``direction`` says which way is better: ``higher``, ``lower``, or ``towards X``, a number. ``protocol`` names the
    definition and its version, so that two numbers with different protocols are never put in one column.
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

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Score:
        return cls(**content)


Table = dict[str, list[Score]]
"""What a suite measured: the scores of each column, ``base`` and ``edited``."""
