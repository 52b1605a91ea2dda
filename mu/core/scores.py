"""A measured number with its definition and its direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mu.core.errors import quoted

HIGHER, LOWER, TOWARDS, NEITHER = "higher", "lower", "towards", "neither"
BASE, EDITED = "base", "edited"
"""Columns: scores of the base model and of the edited model."""


def target(direction: str) -> float | None:
    """The best value: 0.5 for ``towards 0.5``, None for other directions. Raises `ValueError` for an unknown one."""
    if direction in (HIGHER, LOWER, NEITHER):
        return None
    word, _, number = direction.partition(" ")
    try:
        aim = float(number) if word == TOWARDS else math.nan
    except ValueError:
        aim = math.nan
    if not math.isfinite(aim):
        raise ValueError(
            f"a direction is 'higher', 'lower', 'neither' or 'towards X' with a number X, not {quoted(direction)}"
        )
    return aim


def loss(direction: str, value: float) -> float:
    """A loss, smaller is better: |value - X| for ``towards X``, -value for ``higher``, value for ``lower``, 0 for
    ``neither``."""
    aim = target(direction)
    if aim is not None:
        return abs(value - aim)
    if direction == NEITHER:
        return 0.0
    return value if direction == LOWER else -value


def best(direction: str, values: Iterable[float]) -> float | None:
    """The best of ``values``; None if they do not differ or no direction is better."""
    distinct = sorted(set(values))
    return (
        min(distinct, key=lambda value: loss(direction, value)) if len(distinct) > 1 and direction != NEITHER else None
    )


@dataclass(frozen=True)
class Score:
    """``value`` is the mean over ``n`` images (or pairs); ``per_item`` holds the value of each concept.

    ``interval`` is its 95 % interval, None if none was computed. ``change`` is the 95 % interval of the difference from
    the base on the same prompts and seeds. ``doubt`` says why the value shows nothing, if it does not: readers see it
    in place of the number. ``direction`` is the better one: ``higher``, ``lower``, ``towards X`` with a number X, or
    ``neither``. ``protocol`` names the definition and its version, so that numbers of different protocols never share a
    column.
    """

    name: str
    value: float
    n: int
    direction: str
    protocol: str
    per_item: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    change: tuple[float, float] | None = None
    doubt: str = ""

    def __post_init__(self) -> None:
        target(self.direction)
        if self.n < 0:
            raise ValueError(f"a score of {self.n} images cannot be")
        for ends in (self.interval, self.change):
            if ends is not None and not ends[0] <= ends[1]:
                raise ValueError(f"an interval goes from its lower to its upper end, not from {ends[0]} to {ends[1]}")

    def to_json(self) -> dict[str, Any]:
        """All fields but those that say nothing, so that files and digests of older scores stay as they are."""
        known = asdict(self)
        return {name: value for name, value in known.items() if name not in ("interval", "change", "doubt") or value}

    def told(self) -> dict[str, Any]:
        """The fields as a reader may see them: null for every number that its ``doubt`` withholds."""
        hidden = dict.fromkeys(("value", "per_item", "interval", "change")) if self.doubt else {}
        return self.to_json() | hidden


Table = dict[str, list[Score]]
"""The result of a suite: the scores of each column, ``base`` and ``edited``."""
