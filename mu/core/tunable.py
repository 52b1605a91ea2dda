"""Which settings of a method are worth a search, and where: plain data beside its presets; see `mu tune`."""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``."""

    low: float
    high: float


class LogRange(NamedTuple):
    """Numbers from ``low`` to ``high`` by their logarithm: for learning rates and weights."""

    low: float
    high: float


class WholeLogRange(NamedTuple):
    """Whole numbers from ``low`` to ``high`` by their logarithm: for steps."""

    low: int
    high: int


class Choice(NamedTuple):
    """One of a few values."""

    values: tuple[bool | int | float | str | None, ...]


Tunable = Range | LogRange | WholeLogRange | Choice
