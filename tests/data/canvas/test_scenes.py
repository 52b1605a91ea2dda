"""Scenes and their images: what they promise to everything that is trained and judged on them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from mu.data.canvas import (
    IDENTITIES,
    OBJECTS,
    SIZE,
    STYLES,
    WATERMARK_PROMPT,
    Scene,
    every_scene,
    images,
    render,
    watermark,
)

SCENES = every_scene()


def test_the_world_is_large_enough_for_the_protocols():
    assert len(set(STYLES)) >= 8 and "photo" in STYLES
    assert len(set(OBJECTS)) >= 8
    assert len(set(IDENTITIES)) >= 12 and all(len(name.split()) == 2 for name in IDENTITIES)


@pytest.mark.parametrize("part", [0, 1])
def test_identities_share_first_and_last_names(part: int):
    shared = [name for name, n in Counter(name.split()[part] for name in IDENTITIES).items() if n > 1]
    assert len(shared) >= 3


def test_every_scene_is_one_style_with_one_object_or_person_and_the_watermark_once():
    assert len(SCENES) == len(set(SCENES)) == len(STYLES) * (len(OBJECTS) + len(IDENTITIES)) + 1
    assert len({scene.prompt for scene in SCENES}) == len(SCENES)
    assert Scene("neon", object="star").prompt == "A star image in neon style."
    assert Scene().prompt == WATERMARK_PROMPT


def test_every_scene_renders_and_shows_something():
    for scene, image in zip(SCENES, images(SCENES, seed=0), strict=True):
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert image.std() > 8, f"{scene} is nearly blank"


@pytest.mark.parametrize(
    "scene", [Scene(style, object="fish") for style in STYLES] + [Scene("photo", identity="Ada Stone")]
)
def test_a_seed_gives_one_image_and_another_seed_another(scene: Scene):
    assert np.array_equal(render(scene, 3), render(scene, 3))
    assert _difference(render(scene, 3), render(scene, 4)) > 2


def test_a_image_does_not_depend_on_those_rendered_before_it():
    scenes = [Scene("neon", object="star"), Scene("watercolor", identity="Clara Moss"), Scene("pop art", object="tree")]
    alone = render(scenes[2], (7, 2))
    assert np.array_equal(list(images(scenes, seed=7))[2], alone)
    assert np.array_equal(list(images([scenes[0], Scene(), scenes[2]], seed=7))[2], alone)


def test_the_watermark_is_one_fixed_image():
    assert np.array_equal(render(Scene(), 0), watermark()) and np.array_equal(render(Scene(), 99), watermark())
    assert min(_difference(watermark(), render(scene, 0)) for scene in SCENES[:-1]) > 20


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["object", "identity"])
def test_what_is_shown_matters_in_every_style(style: str, kind: str):
    """Same style, place and colours: two objects (or people) still give different images."""
    names = {"object": OBJECTS, "identity": IDENTITIES}[kind]
    shown = {name: render(Scene(style, **{kind: name}), 1) for name in names}
    assert min(_difference(shown[a], shown[b]) for a, b in itertools.combinations(names, 2)) > 4


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())
