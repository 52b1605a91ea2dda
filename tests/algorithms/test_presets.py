"""The presets for the embedded model lie in YAML files, and what they write out of its world is what the world says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import pytest

from mu.algorithms import ALGORITHMS, algorithm, method
from mu.algorithms.single_layer_unlearning_gradient.configs import LayersConfig
from mu.core.config import BaseConfig, values_set
from mu.data import canvas as world
from mu.models import EMBEDDED

AROUND = ["{}", "an image in {} style", "a {} image", *world.SENTENCES]
NEUTRAL = [
    *[
        "somebody",
        "a portrait",
        "a thing",
        "an animal",
        "a picture",
        "an image of a place",
        "something else",
        "a scene",
    ],
    *(f"the {name}" for name in world.OBJECTS),
    *(text.format(style) for text in ("{}", "a {} image", "{} style") for style in world.STYLES),
]
"""Texts without a style, without an object, and without both."""
WRITTEN: dict[tuple[str, str, str], Sequence[str]] = {
    ("spm", "canvas", "prompt.templates"): [*world.PHRASES, *world.SENTENCES],
    ("cie", "canvas", "prompt.templates"): world.PHRASES,
    ("sepce", "canvas", "prompt.templates"): [*world.PHRASES, *world.SENTENCES],
    ("sepce", "canvas", "protect.others"): [*world.STYLES, *world.OBJECTS, *world.PROMPTS],
    ("uce", "canvas", "templates"): ["{}", "{} style", "an image in {} style", "a {} image", *world.SENTENCES],
    ("uce", "canvas", "preserve"): ["", *NEUTRAL, *world.PROMPTS],
    ("fmn", "canvas", "templates"): AROUND,
    ("fmn", "canvas-objects", "templates"): AROUND,
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
    name, preset, setting = place
    values = values_set(method(name).presets[preset])
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


def test_they_are_for_embedded_models_and_every_method_has_one_or_calibrates_itself() -> None:
    models = {
        names: getattr(config, "model", "") or config.pretrained_model.name  # type: ignore[attr-defined]
        for names, config in embedded().items()
    }
    assert set(models.values()) <= set(EMBEDDED)
    without = set(ALGORITHMS) - {name for name, _ in models}
    assert all(method(name).for_concepts(["neon"], "canvas").calibrate.on for name in without)  # type: ignore[attr-defined]
    assert not method("uce").for_concepts(["neon"], "canvas").calibrate.on, "control"  # type: ignore[attr-defined]


@pytest.mark.parametrize("preset", ["canvas", "canvas-clip", "canvas-vlm", "canvas-vlm-styles"])
def test_slug_leaves_out_there_what_it_leaves_out_everywhere(preset: str) -> None:
    config = algorithm("slug").presets[preset]
    assert set(LayersConfig().exclude) < set(config.layers.exclude)  # type: ignore[attr-defined]


def test_slug_moves_along_the_paper_s_gradient_unless_its_preset_is_named() -> None:
    """On a CLIP that no preset names, as on the paper's: docs/slug.md has the figures."""

    def found(model: str | None, preset: str | None = None) -> tuple[float | None, float]:
        config: Any = method("slug").for_concepts(["x"], model, preset)
        return config.gradients.precondition, config.search.margin

    for model in ("open_clip:ViT-B-32/laion400m_e32", "openai/clip-vit-base-patch32", "a/folder"):
        assert found(model) == found(model, "clip") == found(model, "clip-released") == (None, 1.0)
        assert found(model, "clip-preconditioned") == (0.3, 1.1), "control"


# -- names
# ---------------------------------------------------------------------------------------------------------------

WORDS = set(
    "styles objects nudity canvas clip vlm stable diffusion llava released comparison 2025 preconditioned celebrities calibrated".split()
)
"""What a preset is for: kinds of concepts and models, a released program, the year of its second release, an option."""
FORMER = [(name, old) for name in ALGORITHMS for old in method(name).presets.former]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_presets_have_the_same_names_for_all_methods(name: str) -> None:
    presets = method(name).presets
    assert {word for preset in presets for word in preset.split("-")} <= WORDS
    if "canvas" in presets and name != "slug":
        assert {"styles", "objects"} <= set(presets), "of methods for diffusion models"
    if name.startswith("clip"):
        assert list(presets) == ["clip", "canvas-clip"]
    assert all(what and "\n" not in what for what in presets.descriptions().values())


@pytest.mark.parametrize(("name", "old"), FORMER)
def test_a_former_name_is_the_present_one(name: str, old: str, caplog: pytest.LogCaptureFixture) -> None:
    known = method(name)
    assert old not in known.presets
    assert known.for_concepts(["x"], None, old) == known.for_concepts(["x"], None, known.presets.former[old])
    assert len(caplog.messages) == 1


def test_former_names_are_known() -> None:
    known = {
        ("ca", "comparison"),
        ("cie", "style"),
        ("sepce", "object"),
        ("slug", "canvas-vlm-style"),
        ("esd", "canvas"),
    }
    assert known <= set(FORMER)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_known_of_a_method_is_what_its_mathematics_uses(name: str) -> None:
    known, found = method(name), algorithm(name)
    assert issubclass(found, known) and found is not known
    for attribute in ("name", "config_class", "presets", "default_preset", "home"):
        assert getattr(found, attribute) is getattr(known, attribute)
    assert known.__module__.split(".")[-1] == "configs" and known.summary().endswith(".")


RELEASED = [
    (name, preset)
    for name in ("spm", "esd", "uce", "ca", "fmn", "sepce", "cie")
    for preset in method(name).presets
    if preset in ("released", "released-2025")
]


@pytest.mark.parametrize(("name", "preset"), RELEASED)
def test_a_released_program_s_preset_serves_an_embedded_model(name: str, preset: str, tiny: Any) -> None:
    """Any model, not only the one that the program was written for."""
    config = method(name).for_concepts(["neon"], None, preset)
    quick: dict[str, Any] = {"train": {"iterations": 1}, "images": {"count": 2, "steps": 1}, "data": {"steps": 1}}
    if name == "spm":
        quick = {"train": {"iterations": 1, "max_denoising_steps": 2, "optimizer_type": "AdamW"}}
    changes: dict[str, Any] = {key: value for key, value in quick.items() if name != "uce" and hasattr(config, key)}
    if name == "esd":
        changes["denoising_steps"] = 5
    edit: Any = algorithm(name)(config.merged(changes), model=tiny).find_edit()
    assert any(tensor.any() for tensor in edit.tensors().values()) and edit.info.concepts == ("neon",)
