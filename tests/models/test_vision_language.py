"""The embedded vision-language model: it answers, on CLIP's own vision tower, and an edit of that CLIP fits it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mu
from mu.core.errors import ModelError
from mu.data import canvas as world
from mu.data.questions import QUESTIONS
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.models import EMBEDDED
from mu.models.vision_language import VisionLanguageModel

SCENES = [scene for scene in world.every_scene() if scene.style][::3]


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    found = mu.load("canvas-vlm", device="cpu")
    assert isinstance(found, VisionLanguageModel)
    return found


def images(seed: int = 99_000) -> torch.Tensor:
    return torch.from_numpy(np.stack(list(world.images(SCENES, seed)))).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("attribute", QUESTIONS)
def test_it_answers_about_images_it_never_saw(attribute: str, vlm: VisionLanguageModel) -> None:
    asked = [QUESTIONS[attribute][0]] * len(SCENES)
    right = [
        answer == world.answer(scene, attribute)
        for answer, scene in zip(vlm.answer(images(), asked), SCENES, strict=True)
    ]
    assert np.mean(right) >= 0.9
    blind = vlm.answer(torch.full_like(images(), 0.5), asked)
    wrong = [answer == world.answer(scene, attribute) for answer, scene in zip(blind, SCENES, strict=True)]
    assert np.mean(wrong) < 0.7, "control: it looks at the picture"


def test_an_answer_does_not_depend_on_its_batch(vlm: VisionLanguageModel) -> None:
    questions = [texts[k % len(texts)] for k, texts in enumerate(list(QUESTIONS.values()) * 2)]  # of different lengths
    few = images()[: len(questions)]
    assert vlm.answer(few, questions) == [vlm.answer(few[k : k + 1], [q])[0] for k, q in enumerate(questions)]


def test_the_vision_tower_is_clips_and_an_edit_of_it_fits(vlm: VisionLanguageModel) -> None:
    clip = mu.load("canvas-clip", device="cpu")
    mine, theirs = (dict(model.components["vision_model"].named_parameters()) for model in (vlm, clip))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    noise = torch.randn(theirs["encoder.layers.1.mlp.fc2.weight"].shape, generator=torch.Generator().manual_seed(0))
    edit = WeightEdit({name: noise}, EditInfo("test", ("all",)))
    asked = [QUESTIONS["object"][0]] * 8
    before = vlm.answer(images()[:8], asked)
    with edit.applied(vlm):
        assert vlm.answer(images()[:8], asked) != before
    assert vlm.answer(images()[:8], asked) == before


@pytest.mark.parametrize("layer", [-1, -2], ids=["embedded", "as LLaVA-1.5"])
def test_it_knows_what_its_answers_depend_on(
    layer: int, vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies behind the layer that it reads has no influence, and says so."""
    monkeypatch.setattr(vlm.model.config, "vision_feature_layer", layer)
    monkeypatch.setattr(vlm.model.config, "vision_feature_select_strategy", "full" if layer == -1 else "default")
    assert vlm.image_tokens == 64 + (layer == -1), "patches, and the class token"
    asked = [QUESTIONS["object"][0]] * 2
    pixels = images()[:2]
    before = vlm.answer(pixels, asked)
    for name, read in {
        "encoder.layers.2.mlp.fc1.weight": True,
        "encoder.layers.3.mlp.fc1.weight": layer == -1,
        "post_layernorm.weight": False,
    }.items():
        assert vlm.reads(f"vision_model.{name}") is read
        shape = vlm.components["vision_model"].get_parameter(name).shape
        noise = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with WeightEdit({f"vision_model.{name}": noise}, EditInfo("test", ("all",))).applied(vlm):
            assert (vlm.answer(pixels, asked) != before) is read
    assert not vlm.reads("visual_projection.weight")
    assert not vlm.reads("vision_model.no.such.weight")


def test_a_damaged_folder_is_one_line(tmp_path) -> None:
    (tmp_path / "config.json").write_text((EMBEDDED["canvas-vlm"] / "config.json").read_text())
    with pytest.raises(ModelError, match="LLaVA"):
        mu.load(tmp_path, device="cpu")
