"""Sibling worlds: as seeded, as complete and as distinct as canvas, and other than it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mu.core.errors import DataError
from mu.data.canvas import CANVAS, Scene, rendered_pairs
from mu.data.canvas.grammar import sibling
from mu.models.canvas.architecture import Sizes, new_tokenizer

SEEDS = (1, 2, 3, 77)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_draws_one_world(seed: int):
    one, again, other = sibling(seed), sibling(seed), sibling(seed + 1000)
    assert (one.styles, one.objects, one.identities) == (again.styles, again.objects, again.identities)
    scene = one.every_scene()[0]
    assert np.array_equal(one.render(scene, 5), again.render(scene, 5))
    assert (one.styles, one.objects) != (other.styles, other.objects)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sibling_has_no_word_of_canvas(seed: int):
    world = sibling(seed)
    assert not {*world.styles, *world.objects, *world.identities} & {
        *CANVAS.styles, *CANVAS.objects, *CANVAS.identities,
    }  # fmt: skip
    assert len(set(world.styles)) == len(set(world.objects)) == 8
    assert len(set(world.identities)) == 6


@pytest.mark.parametrize("seed", SEEDS)
def test_every_style_and_every_object_looks_other_than_the_rest(seed: int):
    world = sibling(seed)

    def apart(scenes: list[Scene]) -> float:
        shown = [world.render(scene, 3).astype(float) for scene in scenes]
        return min(float(np.abs(a - b).mean()) for a, b in combinations(shown, 2))

    assert apart([Scene(style, object=world.objects[0]) for style in world.styles]) > 8
    assert apart([Scene(world.styles[0], object=name) for name in world.objects]) > 1
    same = [Scene(world.styles[0], object=world.objects[0])] * 2
    assert apart(same) == 0, "control: equal scenes are not apart"


@pytest.mark.parametrize("seed", SEEDS)
def test_its_words_are_tokens_and_its_captions_fit(seed: int):
    world, sizes = sibling(seed), Sizes.drawn(seed)
    tokenizer = new_tokenizer(world, sizes)
    for word in (*world.styles, *world.objects):
        assert len(tokenizer.tokenize(word)) == 1, word
    texts = [text for scene in world.every_scene() for text, _ in world.captions(scene)]
    assert max(len(tokenizer(text).input_ids) for text in texts) <= sizes.tokens
    assert all(world.prompt(scene) in dict(world.captions(scene)) for scene in world.every_scene() if scene.object)


def test_pairs_and_templates_of_a_world_are_its_own():
    """Canvas's templates as its CLIP is asked; a sibling's in its own words, with one place for the concept."""
    assert [*map(CANVAS.template, CANVAS.classes())] == ["an image in {} style", "a {} image", "a portrait of {}"]
    world = sibling(5)
    for kind, names in world.classes().items():
        (pair,) = rendered_pairs(1, 3, names[0], world)
        assert names[0] in pair.caption and getattr(pair.scene, kind) == names[0]
        asked = world.template(kind)
        assert asked.count("{}") == 1
        assert (asked.format(names[0]), kind[0]) in world.captions(pair.scene)
        assert np.array_equal(np.asarray(pair.image()), world.render(pair.scene, pair.seed))
    with pytest.raises(DataError, match="sibling-5"):
        rendered_pairs(1, 3, "star", world)
    assert rendered_pairs(1, 3, "star") and hash(rendered_pairs(1, 3)[0]) == hash(rendered_pairs(1, 3)[0]), "control"


def test_both_predictions_occur():
    assert {Sizes.drawn(seed).prediction for seed in range(4)} == {"epsilon", "v_prediction"}
    assert Sizes() == Sizes(text_width=192, tokens=16), "canvas's own sizes"
