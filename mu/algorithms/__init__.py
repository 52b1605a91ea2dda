"""The methods. `ALGORITHMS` is the only list: a new method needs its folder (or file) and one entry here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from mu.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from mu.core.algorithm import Algorithm
    from mu.edits.edit import Edit

ALGORITHMS = {
    "spm": "mu.algorithms.semipermeable_membrane.algorithm:SemipermeableMembraneAlgorithm",
    "slug": "mu.algorithms.single_layer_unlearning_gradient.algorithm:SingleLayerUnlearningGradientAlgorithm",
    "cie": "mu.algorithms.separable_concept_erasure.algorithm:ConceptIrrelevantErasureAlgorithm",
    "sepce": "mu.algorithms.separable_concept_erasure.algorithm:SeparableConceptErasureAlgorithm",
    "esd": "mu.algorithms.esd:ESD",
    "uce": "mu.algorithms.uce:UCE",
    "ca": "mu.algorithms.concept_ablation:ConceptAblation",
    "fmn": "mu.algorithms.forget_me_not:ForgetMeNot",
    "clip-ft": "mu.algorithms.clip_ft:ClipFineTuning",
    "clip-ga": "mu.algorithms.clip_ga:ClipGradientAscent",
    "clip-gaft": "mu.algorithms.clip_gaft:ClipGAFT",
    "clip-salun": "mu.algorithms.clip_salun:ClipSalUn",
    "clip-ssd": "mu.algorithms.clip_ssd:ClipSSD",
}


def algorithm(name: str) -> type[Algorithm]:
    """The class of the method ``name``. Raises `ConfigError` with the nearest known name."""
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown method {name!r}.{nearest(name, ALGORITHMS)}")
    module, _, attribute = ALGORITHMS[name].partition(":")
    return getattr(import_module(module), attribute)


def erase(
    model: Any, concept: str | Sequence[str], method: str = "spm", *, preset: str | None = None, **overrides: Any
) -> Edit:
    """Find the edit that erases ``concept`` (one or several) from ``model`` (loaded, or a name for `mu.load`).

    ``preset`` names published settings of the method. Without it the preset for this model is used, if one exists.
    ``overrides`` are settings, nested as mappings: ``train={"iterations": 500}``. The model itself is not changed.
    """
    from mu.models import load

    model = load(model)
    concepts = [concept] if isinstance(concept, str) else list(concept)
    chosen = algorithm(method)
    settings = chosen.for_concepts(concepts, model.name, preset, overrides)
    return cast("Edit", chosen(settings, model=model).find_edit())
