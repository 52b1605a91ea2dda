"""The presets for the embedded model lie in YAML files, and what they write out of its world is what the world says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import pytest

from mu.algorithms import ALGORITHMS, algorithm
from mu.algorithms.single_layer_unlearning_gradient.configs import LayersConfig
from mu.core.config import BaseConfig, values_set
from mu.data import canvas as world
from mu.models import EMBEDDED

AROUND = ["{}", "an image in {} style", "a {} image", *world.SENTENCES]
WRITTEN: dict[tuple[str, str, str], Sequence[str]] = {
    ("spm", "canvas", "prompt.templates"): [*world.PHRASES, *world.SENTENCES],
    ("cie", "canvas", "prompt.templates"): world.PHRASES,
    ("sepce", "canvas", "prompt.templates"): [*world.PHRASES, *world.SENTENCES],
    ("sepce", "canvas", "protect.others"): [*world.STYLES, *world.OBJECTS, *world.PROMPTS],
    ("esd", "canvas", "templates"): world.PHRASES,
    ("uce", "canvas", "templates"): ["{}", "{} style", "an image in {} style", "a {} image", *world.SENTENCES],
    ("uce", "canvas", "preserve"): ["", *world.PROMPTS],
    ("ca", "canvas", "templates"): AROUND,
    ("ca", "canvas-object", "templates"): AROUND,
    ("fmn", "canvas", "templates"): AROUND,
    ("fmn", "canvas-object", "templates"): AROUND,
    **{("slug", "canvas", f"search.images.templates.{kind}"): texts for kind, texts in world.SENTENCES_OF.items()},
}
"""By method, preset and setting."""


def embedded() -> dict[tuple[str, str], BaseConfig]:
    """The presets for embedded models, by method and name."""
    return {
        (name, preset): config
        for name in ALGORITHMS
        for preset, config in algorithm(name).presets.items()
        if "canvas" in preset
    }


def lists(values: Any, place: str = "") -> Iterator[tuple[str, list]]:
    """Every list that was set, with the dotted name of its setting."""
    if isinstance(values, dict):
        for key, below in values.items():
            yield from lists(below, f"{place}.{key}".removeprefix("."))
    elif isinstance(values, list | tuple):
        yield place, list(values)


def tells_of_the_world(texts: Sequence[object]) -> bool:
    """Whether a list names most styles or most objects."""
    told = " ".join(map(str, texts))
    return any(2 * sum(name in told for name in names) > len(names) for names in (world.STYLES, world.OBJECTS))


@pytest.mark.parametrize("place", WRITTEN, ids="-".join)
def test_what_is_written_out_is_what_the_world_says(place: tuple[str, str, str]) -> None:
    method, preset, setting = place
    values = values_set(algorithm(method).presets[preset])
    assert reduce(lambda found, key: found[key], setting.split("."), values) == list(WRITTEN[place])


def test_no_list_of_the_world_goes_unchecked() -> None:
    found = {
        (*names, setting)
        for names, config in embedded().items()
        for setting, texts in lists(values_set(config))
        if tells_of_the_world(texts)
    }
    assert found == {place for place, texts in WRITTEN.items() if tells_of_the_world(texts)}
    assert len(found) >= 9, "control"
    assert tells_of_the_world([f"a {name}" for name in world.OBJECTS[1:]]) and not tells_of_the_world(world.PHRASES), (
        "control"
    )


def test_they_are_for_embedded_models_and_every_such_method_has_one() -> None:
    models = {
        names: getattr(config, "model", "") or config.pretrained_model.name  # type: ignore[attr-defined]
        for names, config in embedded().items()
    }
    assert set(models.values()) <= set(EMBEDDED)
    assert {method for method, _ in models} == set(ALGORITHMS)


@pytest.mark.parametrize("preset", ["canvas", "canvas-clip", "canvas-vlm", "canvas-vlm-style"])
def test_slug_leaves_out_there_what_it_leaves_out_everywhere(preset: str) -> None:
    config = algorithm("slug").presets[preset]
    assert set(LayersConfig().exclude) < set(config.layers.exclude)  # type: ignore[attr-defined]
