"""What methods have in common that erase concepts by shifting weights, whatever the model: how they are asked, and what they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mu.core.algorithm import Algorithm, citation
from mu.core.concept import distinct
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, nearest
from mu.edits.edit import EditInfo, described
from mu.edits.weights import WeightEdit


class Erasure(Algorithm):
    """A method whose settings have ``model``, ``concepts`` and (of most) ``seed``, and whose edit is a `WeightEdit`."""

    config: Any
    default_preset: ClassVar[str | None] = None
    """For a model that no preset names; None: the settings' defaults."""

    @classmethod
    def for_concepts(
        cls, concepts: Sequence[str], model: str | None = None, preset: str | BaseConfig | None = None
    ) -> BaseConfig:
        """``preset`` (settings, their name, or none: those for ``model``, or `default_preset`) with ``concepts`` put in."""
        if isinstance(preset, str) and preset not in cls.presets:
            raise ConfigError(f"unknown preset {preset!r}.{nearest(preset, cls.presets)}")
        usual = cls.presets[cls.default_preset] if cls.default_preset else cls.config_class()
        fitting = next((p for p in cls.presets.values() if getattr(p, "model", None) == model), usual)
        base = cls.presets[preset] if isinstance(preset, str) else preset or fitting
        return base.merged({"concepts": distinct(concepts)}, {"model": model} if model else {})

    def describe(self) -> dict[str, Any]:
        name = self.config.model if self.model is None else self.model.name
        return {**super().describe(), "model": name, "concepts": self.config.concepts}

    def edit(self, shifts: Mapping[str, Tensor], concepts: Sequence[str] | None = None, **facts: Any) -> WeightEdit:
        """``shifts`` with where they come from. ``concepts``: where they are not all of the settings'."""
        return WeightEdit(shifts, self.info(concepts, **described(self.model, list(shifts)), **facts))

    def info(self, concepts: Sequence[str] | None = None, **facts: Any) -> EditInfo:
        """Of an edit that removes ``concepts`` (default: all of the settings')."""
        known: dict[str, Any] = {
            "method": self.name, "concepts": tuple(concepts or self.config.concepts), "config": self.config.model_dump(mode="json"),
            "seed": getattr(self.config, "seed", None), "citation": citation(type(self)),
        }  # fmt: skip
        return EditInfo(**known, **facts)
