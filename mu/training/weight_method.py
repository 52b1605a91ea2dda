"""The base of methods that erase concepts by changing weights, of any model: settings and edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mu.core.algorithm import Algorithm, citation
from mu.edits.edit import Edit, EditInfo, base_fingerprint, described
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit


class Erasure(Algorithm):
    """A method whose settings have ``model``, ``concepts`` and usually ``seed``, and whose edit is a `WeightEdit`."""

    config: Any

    def read_edit(self, path: Path) -> Edit:
        return open_edit(path)

    def base_fingerprint(self) -> str:
        return base_fingerprint(self.model) if self.model is not None else ""

    def describe(self) -> dict[str, Any]:
        name = self.config.model if self.model is None else self.model.name
        return {**super().describe(), "model": name, "concepts": self.config.concepts}

    def edit(self, shifts: Mapping[str, Tensor], concepts: Sequence[str] | None = None, **facts: Any) -> WeightEdit:
        """Make the edit of the deltas ``shifts``, with its origin. ``concepts`` defaults to those of the settings."""
        return WeightEdit(shifts, self.info(concepts, **described(self.model, list(shifts)), **facts))

    def info(self, concepts: Sequence[str] | None = None, **facts: Any) -> EditInfo:
        """Describe an edit that erases ``concepts`` (default: all of the settings')."""
        known: dict[str, Any] = {
            "method": self.name,
            "concepts": tuple(concepts or self.config.concepts),
            "config": self.config.model_dump(mode="json"),
            "seed": getattr(self.config, "seed", None),
            "citation": citation(type(self)),
        }
        return EditInfo(**known, **facts)
