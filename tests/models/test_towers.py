"""Towers in stages: every shortcut gives what the plain forward gives."""

from __future__ import annotations

import warnings

import pytest
import torch

import mu
from mu.core.errors import EditError
from mu.data.canvas import rendered_pairs
from mu.models.clip import ClipModel
from mu.models.parameters import find_parameter, select
from mu.models.towers import Hidden, Tower, causal_mask, tower_of

TEXTS = ["a star image", "neon", "a portrait of Ada Stone in pop art style", ""]


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    found = mu.load("canvas-clip", device="cpu")
    assert isinstance(found, ClipModel)
    return found


def images() -> list:
    return [pair.image() for pair in rendered_pairs(4, 5)]


def test_all_stages_together_are_the_models_own_features(clip: ClipModel) -> None:
    vision, language = Tower(clip, "vision"), Tower(clip, "language")
    with torch.no_grad():
        assert torch.allclose(vision.features(vision.images(images())), clip.encode_images(images()), atol=1e-5)
        assert torch.allclose(language.features(language.texts(TEXTS)), clip.encode_text(TEXTS), atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_text_blocks_see_no_later_token(attention: str, clip: ClipModel) -> None:
    """As the library's own text encoder does, with each implementation of attention and without a warning."""
    text, before = clip.components["text_encoder"], clip.model.config._attn_implementation
    try:
        clip.model.set_attn_implementation(attention)
        tower, tokens = Tower(clip, "language"), clip.tokens(TEXTS)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = tower.run(tower.texts(TEXTS), 0, tower.stages - 1).x
            other = tower.run(Hidden(tokens.roll(1, dims=1), tokens[:, 0]), 0, tower.stages - 1).x
        with torch.no_grad():
            stock = text(input_ids=tokens).last_hidden_state
        assert torch.equal(text.final_layer_norm(found), stock)
        assert not torch.equal(other, found), "control"
        x = tower.run(tower.texts(TEXTS), 0, 1).x
        assert (causal_mask(x, attention) is None) == (attention == "sdpa")
    finally:
        clip.model.set_attn_implementation(before)


def test_images_are_preprocessed_a_few_at_a_time(clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are made: with each part as many have been made as it holds."""
    made, seen = [], []
    preprocess = clip.preprocess

    def noted(part):
        seen.append((len(part), len(made)))
        return preprocess(part)

    whole = Tower(clip, "vision").images(images())
    monkeypatch.setattr(clip, "preprocess", noted)
    monkeypatch.setattr("mu.models.towers.PREPROCESSED_AT_ONCE", 3)
    parts = Tower(clip, "vision").images(made.append(k) or image for k, image in enumerate(images()))
    assert seen == [(3, 3), (1, 4)]
    assert torch.equal(parts.x, whole.x) and torch.equal(parts.ends, whole.ends)


@pytest.mark.parametrize(
    "name",
    [
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.encoder.layers.0.self_attn.v_proj.weight",
        "vision_model.encoder.layers.3.mlp.fc2.weight",
        "vision_model.post_layernorm.weight",
        "visual_projection.weight",
        "text_encoder.encoder.layers.0.mlp.fc1.weight",
        "text_encoder.encoder.layers.2.self_attn.q_proj.weight",
        "text_encoder.final_layer_norm.weight",
        "text_projection.weight",
    ],
)
def test_steps_along_a_tensor_equal_the_changed_models_features(name: str, clip: ClipModel) -> None:
    which = tower_of(name)
    assert which
    tower, parameter = Tower(clip, which), find_parameter(clip, name)
    hidden = tower.images(images()) if which == "vision" else tower.texts(TEXTS)
    stage, steps = tower.stage_of(name), [0.0, 0.3, -2.0]
    shift = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * parameter.abs().mean()
    kept = parameter.detach().clone()
    with torch.no_grad():
        found = tower.along(tower.run(hidden, 0, stage), stage, [(parameter, shift)], steps)
        assert torch.equal(parameter, kept)
        for features, step in zip(found, steps, strict=True):
            parameter.copy_(kept + step * shift)
            plain = clip.encode_images(images()) if which == "vision" else clip.encode_text(TEXTS)
            parameter.copy_(kept)
            assert torch.allclose(features, plain, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-3), "control: the steps matter"


def test_the_weight_is_put_back_also_when_a_stage_fails(clip: ClipModel) -> None:
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tower, parameter = Tower(clip, "vision"), find_parameter(clip, name)
    kept = parameter.detach().clone()
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        tower.along(
            tower.images(images()), 2, [(parameter, torch.ones_like(parameter))], [1.0]
        )  # raw pixels are no states
    assert torch.equal(parameter, kept)


def test_every_tensor_of_a_tower_has_its_stage(clip: ClipModel) -> None:
    for name in select(clip, "*"):
        which = tower_of(name)
        assert which in ("vision", "language")
        tower = Tower(clip, which)
        assert 0 <= tower.stage_of(name) < tower.stages
    with pytest.raises(EditError, match=r"visual_projection\.weight.*language"):
        Tower(clip, "language").stage_of("visual_projection.weight")
