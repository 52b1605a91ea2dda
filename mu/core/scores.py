"""A measured number that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

BASE, EDITED = "base", "edited"
"""Columns: the untouched model's scores, and those with the edit."""


@dataclass(frozen=True)
class Score:
    """``value`` is the mean over ``n`` pictures (or pairs); ``per_item`` gives it for each concept.

    ``direction`` says which way is better; ``protocol`` names the definition and its version, so that two numbers
    with different protocols are never put in one column.
    """

    name: str
    value: float
    n: int
    direction: Literal["higher", "lower"]
    protocol: str
    per_item: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Score:
        return cls(**content)


Table = dict[str, list[Score]]
"""What a suite measured: the scores of each column, ``base`` and ``edited``."""
