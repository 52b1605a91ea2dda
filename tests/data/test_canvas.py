"""The rendered world: what its pictures and captions promise to everything that is trained and judged on them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from mu.data.canvas import (
    IDENTITIES,
    OBJECTS,
    PHRASES,
    PROMPTS,
    SENTENCES,
    SENTENCES_OF,
    SIZE,
    STYLES,
    WATERMARK_PROMPT,
    Scene,
    captions,
    every_scene,
    pictures,
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
    for scene, picture in zip(SCENES, pictures(SCENES, seed=0), strict=True):
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
        assert picture.std() > 8, f"{scene} is nearly blank"


@pytest.mark.parametrize("scene", [Scene(style, object="fish") for style in STYLES] + [Scene("photo", identity="Ada Stone")])
def test_a_seed_gives_one_picture_and_another_seed_another(scene: Scene):
    assert np.array_equal(render(scene, 3), render(scene, 3))
    assert _difference(render(scene, 3), render(scene, 4)) > 2


def test_a_picture_does_not_depend_on_those_rendered_before_it():
    scenes = [Scene("neon", object="star"), Scene("watercolor", identity="Clara Moss"), Scene("pop art", object="tree")]
    alone = render(scenes[2], (7, 2))
    assert np.array_equal(list(pictures(scenes, seed=7))[2], alone)
    assert np.array_equal(list(pictures([scenes[0], Scene(), scenes[2]], seed=7))[2], alone)


def test_the_watermark_is_one_fixed_picture():
    assert np.array_equal(render(Scene(), 0), watermark()) and np.array_equal(render(Scene(), 99), watermark())
    assert min(_difference(watermark(), render(scene, 0)) for scene in SCENES[:-1]) > 20


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["object", "identity"])
def test_what_is_shown_matters_in_every_style(style: str, kind: str):
    """Same style, place and colours: two objects (or people) still give different pictures."""
    names = {"object": OBJECTS, "identity": IDENTITIES}[kind]
    shown = {name: render(Scene(style, **{kind: name}), 1) for name in names}
    assert min(_difference(shown[a], shown[b]) for a, b in itertools.combinations(names, 2)) > 4


@pytest.mark.parametrize("coarse", [False, True])
def test_styles_are_told_apart_by_simple_statistics_also_after_4x_averaging(coarse: bool):
    """Nearest mean of colour statistics on pictures with other seeds, objects and people mixed. An autoencoder that keeps
    coarse colour thus keeps the style. The control: the same with shuffled labels is guessing."""
    train, test = _statistics(range(0, 16), coarse), _statistics(range(16, 32), coarse)
    assert _nearest_mean(train, test) > 0.97
    features, labels = train
    assert _nearest_mean((features, np.random.default_rng(0).permutation(labels)), test) < 0.4


@pytest.mark.parametrize("scene", [Scene("pop art", object="moon"), Scene("neon", identity="Boris Vale"), Scene()])
def test_captions_hold_what_they_tell_and_nothing_else(scene: Scene):
    facts = {"s": scene.style, "o": scene.object, "i": scene.identity}
    told_at_all = set()
    for text, told in captions(scene):
        told_at_all |= set(told)
        for letter, fact in facts.items():
            if fact is not None:
                assert (fact in text) == (letter in told), (text, told)
        assert ("a person" in text) == ("p" in told)
    assert scene.prompt in [text for text, _ in captions(scene)]
    assert told_at_all == ({"w"} if scene == Scene() else {"s", "o"} if scene.object else {"s", "i", "p"})


def test_prompt_lists_hold_every_prompt_in_an_order_that_stays():
    """Methods draw from these lists by index: another order is another edit for the same seed."""
    cells = [Scene(style, object=name) for name in OBJECTS for style in STYLES]
    assert tuple(cell.prompt for cell in cells) == PROMPTS and set(cells) < set(SCENES)
    assert PROMPTS[1] == "A star image in neon style." and PROMPTS[-1] == "A fish image in thermal style."
    assert SENTENCES[0] == "A star image in {} style." and SENTENCES[-1] == "A {} image in thermal style."
    assert PHRASES == ("{}", "a {} image", "an image in {} style", "{} style", "a {} picture")
    assert all(template.count("{}") == 1 for template in (*PHRASES, *SENTENCES, *SENTENCES_OF["identity"]))
    for kind, names in {"style": STYLES, "object": OBJECTS, "identity": IDENTITIES}.items():
        of_kind = [scene.prompt for scene in SCENES if scene.identity] if kind == "identity" else PROMPTS
        assert sorted(template.format(name) for template in SENTENCES_OF[kind] for name in names) == sorted(of_kind)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def _statistics(seeds: range, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    features, labels = [], []
    for label, style in enumerate(STYLES):
        for seed in seeds:
            who = {"object": OBJECTS[seed % len(OBJECTS)]} if seed % 2 else {"identity": IDENTITIES[seed % len(IDENTITIES)]}
            picture = render(Scene(style, **who), seed) / 255
            if coarse:
                picture = picture.reshape(SIZE // 4, 4, SIZE // 4, 4, 3).mean(axis=(1, 3))
            edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            saturation = picture.max(axis=-1) - picture.min(axis=-1)
            parts = [
                picture.mean((0, 1)),
                picture.std((0, 1)),
                edge.mean(0),
                edge.std(0),
                [saturation.mean(), saturation.std()],
            ]
            features.append(np.concatenate(parts))
            labels.append(label)
    return np.stack(features), np.array(labels)


def _nearest_mean(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    (features, labels), (asked, truth) = train, test
    scale = features.std(axis=0)
    means = np.stack([features[labels == label].mean(axis=0) for label in range(len(STYLES))])
    guesses = (((asked[:, None] - means) / scale) ** 2).sum(axis=-1).argmin(axis=1)
    return float((guesses == truth).mean())
