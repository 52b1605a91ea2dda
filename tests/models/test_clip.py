"""CLIP's face: images and texts in, unit vectors out, and parts that share their edits with other models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import mu
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.models.clip import ClipModel
from mu.models.parameters import find_parameter

TEXTS = ["a star image in neon style.", "Ada Stone", "a " * 40]


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    model = mu.load("canvas-clip", device="cpu")
    assert isinstance(model, ClipModel)
    return model


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:2], TEXTS[1:2]])
def test_texts_trimmed_at_the_last_end_are_those_of_the_whole_context(clip: ClipModel, texts: list[str]) -> None:
    tokens = clip.tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    seen: list[int] = []
    with clip.model.text_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    ):
        found = clip.encode_text(texts)
    whole = clip.model.text_projection(clip.model.text_model(input_ids=tokens).pooler_output)
    assert seen == [16 if texts is TEXTS else int((tokens == clip.tokenizer.eos_token_id).int().argmax(1).max()) + 1]
    assert torch.allclose(found, F.normalize(whole, dim=-1), atol=1e-5)
    assert torch.allclose(found.norm(dim=-1), torch.ones(len(texts)))
    cut = F.normalize(clip.model.text_projection(clip.model.text_model(input_ids=tokens[:, :3]).pooler_output), dim=-1)
    assert not torch.allclose(found, cut, atol=1e-2), "control: what stands before the end matters"


def test_pil_images_are_resized_cut_and_normalised(clip: ClipModel) -> None:
    found = clip.preprocess([image(100, 80), image(70, 128, seed=1)])
    for pixels, seen, to, box in (
        (found[0], image(100, 80), (80, 64), (8, 0, 72, 64)),
        (found[1], image(70, 128, seed=1), (64, 117), (0, 26, 64, 90)),
    ):
        wanted = np.asarray(seen.resize(to, Image.Resampling.BICUBIC).crop(box), dtype=np.float32) / 255
        assert torch.allclose(pixels, torch.from_numpy((wanted - 0.5) / 0.5).permute(2, 0, 1), atol=1e-6)
    grey, alpha = image(64, 64).convert("L"), image(64, 64).convert("RGBA")
    assert clip.preprocess([grey, alpha]).shape == (2, 3, 64, 64)


def test_images_come_as_tensors_as_pil_or_prepared(clip: ClipModel) -> None:
    drawn = [image(64, 64, seed=k) for k in range(2)]
    tensor = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in drawn])
    found = clip.encode_images(tensor)
    assert found.shape == (2, 128)
    assert torch.allclose(found.norm(dim=-1), torch.ones(2))
    assert torch.allclose(clip.encode_images(drawn), found, atol=1e-5)
    assert torch.equal(clip.encode_pixels(clip.preprocess(drawn)), clip.encode_images(drawn))
    logits = clip.logit_scale * found @ clip.encode_text(TEXTS).T
    assert torch.allclose(clip.zero_shot(tensor, TEXTS), logits, atol=1e-4)
    assert clip.logit_scale.item() == pytest.approx(float(np.exp(clip.model.logit_scale.item())))


def test_an_edit_of_clips_text_tower_is_one_of_the_pipeline(clip: ClipModel, tmp_path: Path) -> None:
    names = [f"text_encoder.encoder.layers.{k}" for k in (1, 2)]
    names = [f"{names[0]}.mlp.fc1.weight", f"{names[1]}.self_attn.q_proj.weight", "text_encoder.final_layer_norm.bias"]
    torch.manual_seed(0)
    shifts = {name: torch.randn_like(find_parameter(clip, name)) for name in names}
    WeightEdit(shifts, EditInfo(method="test", concepts=("x",))).save(tmp_path / "edit.safetensors")
    edit, pipeline = mu.open_edit(tmp_path / "edit.safetensors"), mu.load("canvas", device="cpu")
    before = {name: find_parameter(pipeline, name).clone() for name in names}
    with edit.applied(clip), edit.applied(pipeline):
        mine, theirs = clip.components["text_encoder"].state_dict(), pipeline.components["text_encoder"].state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert not any(torch.equal(find_parameter(pipeline, name), before[name]) for name in names), "control: it is on"
    assert all(torch.equal(find_parameter(pipeline, name), before[name]) for name in names)
