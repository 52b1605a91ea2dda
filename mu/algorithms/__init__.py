"""The methods. `ALGORITHMS` is the only list: a new method needs its folder and one entry here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from mu.core.errors import ConfigError, nearest, titled

if TYPE_CHECKING:
    from mu.core.algorithm import Algorithm, Method
    from mu.edits.edit import Edit

ALGORITHMS = {
    "spm": "mu.algorithms.semipermeable_membrane.configs:SemipermeableMembraneMethod",
    "slug": "mu.algorithms.single_layer_unlearning_gradient.configs:SlugMethod",
    "cie": "mu.algorithms.separable_concept_erasure.configs:ConceptIrrelevantErasureMethod",
    "sepce": "mu.algorithms.separable_concept_erasure.configs:SeparableConceptErasureMethod",
    "esd": "mu.algorithms.esd.configs:ESDMethod",
    "uce": "mu.algorithms.uce.configs:UCEMethod",
    "speed": "mu.algorithms.speed.configs:SpeedMethod",
    "ca": "mu.algorithms.concept_ablation.configs:ConceptAblationMethod",
    "fmn": "mu.algorithms.forget_me_not.configs:ForgetMeNotMethod",
    "clip-ft": "mu.algorithms.clip_ft.configs:ClipFineTuningMethod",
    "clip-ga": "mu.algorithms.clip_ga.configs:ClipGradientAscentMethod",
    "clip-gaft": "mu.algorithms.clip_gaft.configs:ClipGAFTMethod",
    "clip-salun": "mu.algorithms.clip_salun.configs:ClipSalUnMethod",
    "clip-ssd": "mu.algorithms.clip_ssd.configs:ClipSSDMethod",
}


def method(name: str) -> type[Method]:
    """What is known of the method ``name``: paper, settings, presets. Imports no torch.

    Raises `ConfigError` with the nearest known name.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown method {titled(name)}.{nearest(name, ALGORITHMS)}")
    return _named(ALGORITHMS[name])


def algorithm(name: str) -> type[Algorithm]:
    """The mathematics of the method ``name``, which imports torch. Raises `ConfigError` as `method` does."""
    return _named(method(name).home)


def _named(place: str) -> Any:
    """The class at ``place``, ``module:Class``."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def erase(
    model: Any, concept: str | Sequence[str], method: str = "spm", *, preset: str | None = None, **overrides: Any
) -> Edit:
    """Find the edit that erases ``concept`` (one or several) from ``model`` (loaded, or a name for `mu.load`).

    ``preset`` names published settings of the method. Without it the preset for this model is used, if one exists.
    ``overrides`` are settings, nested as mappings: ``train={"iterations": 500}``. The model itself is not changed.
    """
    chosen = algorithm(method)
    from mu.models import load

    model = load(model)
    concepts = [concept] if isinstance(concept, str) else list(concept)
    settings = chosen.for_concepts(concepts, model.name, preset, overrides)
    return cast("Edit", chosen(settings, model=model).find_edit())
