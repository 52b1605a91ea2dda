"""Models that the user already has: used themselves, not copied."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import CLIPModel, LlavaForConditionalGeneration

import mu
from mu.core.errors import ConfigError, DataError, ModelError
from mu.diffusion.sampling import generate
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.places import EMBEDDED
from mu.models.vision_language import VisionLanguageModel


def test_a_pipeline_is_the_model_that_its_folder_gives(tiny_folder: Path, tiny: DiffusionModel) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder)
    model = mu.load(pipeline)
    assert isinstance(model, DiffusionModel)
    assert model.pipeline is pipeline and model.unet is pipeline.unet
    assert torch.equal(generate(model, ["a star"], [1], steps=2), generate(tiny, ["a star"], [1], steps=2))
    assert mu.load(model) is model
    edit = mu.erase(pipeline, "neon", method="uce", preset="styles")
    assert edit.info.fingerprint == mu.erase(tiny, "neon", method="uce", preset="styles").info.fingerprint
    assert mu.load(pipeline, prediction_type="v_prediction").loading == {
        "clip_skip": 1,
        "prediction_type": "v_prediction",
    }


def test_a_pipeline_stays_in_its_precision_where_none_is_given(tiny_folder: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder, torch_dtype=torch.bfloat16)
    own = mu.load(pipeline)
    assert isinstance(own, DiffusionModel)
    assert own.precision == pipeline.unet.dtype == pipeline.vae.dtype == torch.bfloat16
    assert generate(own, ["a star"], [1], steps=1).isfinite().all()
    mu.load(pipeline, precision="float32")
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32


def test_an_autoencoder_in_float16_runs_in_float32_where_its_config_says_so(tiny_folder: Path) -> None:
    """As the stock pipeline of SDXL does. Without that, an image that overflows is an error and not a black one."""
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.vae.half()
    model = mu.load(pipeline)
    assert isinstance(model, DiffusionModel)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline.vae.decoder.conv_out.weight.data.fill_(60_000)
    pipeline.vae.register_to_config(force_upcast=True)
    assert model.decode(latents).isfinite().all() and model.encode_images(model.decode(latents)).isfinite().all()
    assert pipeline.vae.dtype == torch.float16
    pipeline.vae.register_to_config(force_upcast=False)
    with pytest.raises(DataError, match="float16"):
        model.decode(latents)


def processor_of(model: ClipModel | VisionLanguageModel) -> Any:
    return SimpleNamespace(tokenizer=model.tokenizer, image_processor=model.processor)


def test_a_clip_and_a_llava_of_transformers(tmp_path: Path) -> None:
    known = mu.load("canvas-clip", device="cpu")
    assert isinstance(known, ClipModel)
    clip = CLIPModel.from_pretrained(EMBEDDED["canvas-clip"])
    model = mu.load(clip, processor=processor_of(known))
    assert isinstance(model, ClipModel) and model.model is clip
    assert torch.allclose(
        model.encode_text(["a star"]), known.encode_text(["a star"]), atol=1e-3
    )  # the file is float16
    llava = LlavaForConditionalGeneration.from_pretrained(EMBEDDED["canvas-vlm"])
    vlm = mu.load("canvas-vlm", device="cpu")
    assert isinstance(vlm, VisionLanguageModel)
    assert isinstance(mu.load(llava, processor=processor_of(vlm)), VisionLanguageModel)
    nameless = copy.copy(clip)
    nameless.name_or_path = ""
    for options, named in (
        ({}, "processor"),
        ({"processor": known.tokenizer}, "image_processor"),
        ({"clip_skip": 2}, "clip_skip"),
    ):
        with pytest.raises(ConfigError, match=named):
            mu.load(nameless, **options)


def test_other_objects_are_refused_by_name(tiny: DiffusionModel) -> None:
    with pytest.raises(ModelError, match="Linear"):
        mu.load(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="compat_gelu"):
        mu.load(tiny.pipeline, compat_gelu="gelu")
