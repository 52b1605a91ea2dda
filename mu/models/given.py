"""Wrap models that the user has already loaded: a diffusers pipeline, or a CLIP or LLaVA model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import AutoProcessor, CLIPModel, LlavaForConditionalGeneration

from mu.core import compute
from mu.core.errors import ConfigError, ModelError, titled
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel, face
from mu.models.hub import reason
from mu.models.tokenizers import check_vocabulary
from mu.models.vision_language import VisionLanguageModel

Model = DiffusionModel | ClipModel | VisionLanguageModel


def given(
    source: Any,
    device: Any,
    precision: str | None,
    *,
    clip_skip: int = 1,
    prediction_type: str | None = None,
    processor: Any = None,
) -> Model:
    """Wrap ``source`` in the class for its kind; a model of mu is returned unchanged. See `mu.models.load`."""
    if isinstance(source, Model):
        options = {"device": device, "precision": precision, "prediction_type": prediction_type, "processor": processor}
        for option, value in {**options, "clip_skip": None if clip_skip == 1 else clip_skip}.items():
            if value is not None:
                raise ConfigError(
                    f"{option} has no effect on {titled(source.name)}, which is loaded already: leave it out"
                )
        return source
    where = compute.pick_device(str(device)) if device is not None else None
    if isinstance(source, DiffusionPipeline):
        return _diffusion(source, where, precision, clip_skip, prediction_type)
    for option, value in (("clip_skip", None if clip_skip == 1 else clip_skip), ("prediction_type", prediction_type)):
        if value is not None:
            raise ConfigError(
                f"{option} is for diffusion models, and a {type(source).__name__} is not one: leave it out"
            )
    if isinstance(source, CLIPModel | LlavaForConditionalGeneration):
        dtype = compute.precision(precision) if precision else source.dtype
        return _transformers(source.to(where or source.device, dtype), processor)
    raise ModelError(
        f"a {type(source).__name__} is not a model that mu supports: give a name, a diffusers pipeline, a "
        "CLIPModel or a LLaVA"
    )


def _diffusion(
    pipeline: DiffusionPipeline,
    device: torch.device | None,
    precision: str | None,
    clip_skip: int,
    prediction_type: str | None,
) -> DiffusionModel:
    name = pipeline.config.get("_name_or_path") or type(pipeline).__name__
    own = next((part.dtype for key, part in pipeline.components.items() if key == "unet"), torch.float32)
    dtype = compute.precision(precision) if precision else own
    if device is not None:
        pipeline.to(device)
    model = face(pipeline, str(name), pipeline.device, dtype, clip_skip, placed=precision is not None)
    if prediction_type is not None:
        model.prediction_type = prediction_type
    return model


def _transformers(model: Any, processor: Any) -> ClipModel | VisionLanguageModel:
    name = model.name_or_path or type(model).__name__
    if processor is None:
        try:
            processor = AutoProcessor.from_pretrained(
                model.name_or_path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ConfigError(f"{titled(name)} has no tokenizer ({reason(error)}): pass processor=...") from None
    tokenizer, images = getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)
    if tokenizer is None or images is None:
        raise ConfigError(
            f"processor is a {type(processor).__name__}: pass one that holds a tokenizer and an image_processor"
        )
    check_vocabulary(tokenizer, model.config.text_config.vocab_size, f"the tokenizer of {titled(name)}")
    if isinstance(model, CLIPModel):
        return ClipModel(model, tokenizer, images, name, model.device)
    return VisionLanguageModel(model, tokenizer, images, name, model.device)
