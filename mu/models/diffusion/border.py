"""Check a pipeline once, when it is loaded, and refuse what mu cannot run."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from mu.core.errors import ModelError, quoted, titled
from mu.models.diffusion.noise import PREDICTIONS
from mu.models.places import PIPELINE
from mu.models.tokenizers import check_length, check_vocabulary

if TYPE_CHECKING:
    from mu.models.diffusion.base import DiffusionModel

FAMILIES = {
    "StableDiffusionPipeline": "mu.models.diffusion.stable_diffusion:StableDiffusion",
    "StableDiffusionImg2ImgPipeline": "mu.models.diffusion.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "mu.models.diffusion.stable_diffusion:StableDiffusionXL",
    "StableDiffusionXLImg2ImgPipeline": "mu.models.diffusion.stable_diffusion:StableDiffusionXL",
}
"""The `DiffusionModel` for each pipeline class of diffusers. A new family adds its file and its entries here."""

SCHEDULERS = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
"""Schedulers of diffusers that share the noise levels of training, and draw all random numbers from the seed."""

OTHER_LEVELS = {"use_flow_sigmas": True, "timestep_type": "continuous"}
"""Settings of a scheduler that belong to models with other noise levels: flow matching, and EDM (CosXL)."""

LARGEST_SAMPLE = 1024
"""Largest ``sample_size`` of a UNet that is taken for one: 8192 pixels."""

UNUSUAL_INPUTS = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "a projection of its own for prompt embeddings",
    "time_cond_proj_dim": "an embedding of the guidance scale (LCM)",
}
"""Settings of a UNet that require an input which a prompt does not give."""


def check_family(kind: Any, name: str) -> None:
    """Raise `ModelError` for a pipeline class outside `FAMILIES`. ``kind``: ``_class_name`` in model_index.json."""
    if isinstance(kind, list | tuple):
        raise ModelError(
            f"{titled(name)} runs code of its own ({' '.join(map(str, kind))}): mu does not run it; name a "
            "stock pipeline"
        )
    if kind is None:
        raise ModelError(
            f"{titled(name)} does not say what pipeline it is: {PIPELINE} names no _class_name, copy it again"
        )
    if kind not in FAMILIES:
        raise ModelError(f"{titled(name)} is a {kind}: mu supports Stable Diffusion 1.x, 2.x and XL; name one of those")


def face(
    pipeline: Any,
    name: str,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    clip_skip: int = 1,
    *,
    placed: bool = True,
) -> DiffusionModel:
    """Wrap ``pipeline`` in its family's `DiffusionModel`. Raises `ModelError` if mu cannot run it correctly."""
    kind = type(pipeline).__name__
    check_family(kind, name)
    module, _, attribute = FAMILIES[kind].partition(":")
    family: type[DiffusionModel] = getattr(import_module(module), attribute)
    _check(pipeline, family.backbone_name, name)
    return family(pipeline, name, device, precision, clip_skip, placed=placed)


def _check(pipeline: Any, backbone_name: str, name: str) -> None:
    encoders = [part for part in pipeline.config if part.startswith("text_encoder")]
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in encoders]
    for part in (backbone_name, "vae", "scheduler", *encoders, *tokenizers):
        if getattr(pipeline, part, None) is None:
            raise ModelError(f"{titled(name)} has no {part}: name a complete model, not a refiner or a part")
    config, vae = getattr(pipeline, backbone_name).config, pipeline.vae.config
    for setting, need in UNUSUAL_INPUTS.items():
        if config.get(setting) is not None:
            raise ModelError(
                f"the {backbone_name} of {titled(name)} needs {need} ({setting}), which mu lacks: name another model"
            )
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise ModelError(
            f"the {backbone_name} of {titled(name)} needs {config.addition_embed_type} (addition_embed_type): "
            "name another model"
        )
    if config.in_channels != vae.latent_channels:
        raise ModelError(
            f"the {backbone_name} of {titled(name)} takes {config.in_channels} channels, and latents have "
            f"{vae.latent_channels}: "
            "it needs an image or a mask in addition to the prompt (inpainting, InstructPix2Pix, upscaling); "
            "name a text-to-image model"
        )
    if config.out_channels != config.in_channels:
        raise ModelError(
            f"the {backbone_name} of {titled(name)} has {config.out_channels} channels of output for "
            f"{config.in_channels} "
            "of input (a learned variance, for example): name another model"
        )
    size = config.sample_size
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= LARGEST_SAMPLE:
        raise ModelError(
            f"the {backbone_name} of {titled(name)} has sample_size {str(size)[:40]}: set it to the height of "
            "its latents "
            f"(64 for images of 512 pixels) in {backbone_name}/config.json"
        )
    _check_statistics(vae, name)
    _check_scheduler(pipeline.scheduler, name)
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        text, what = getattr(pipeline, encoder).config, f"the {tokenizer} of {titled(name)}"
        check_vocabulary(getattr(pipeline, tokenizer), text.vocab_size, what)
        check_length(getattr(pipeline, tokenizer), text.max_position_embeddings, what)
        if getattr(text, "use_attention_mask", False):
            raise ModelError(
                f"the {encoder} of {titled(name)} needs an attention mask, which mu does not give: name another"
            )
    width = sum(int(getattr(pipeline, encoder).config.hidden_size) for encoder in encoders)
    read = config.cross_attention_dim
    if {width} != ({read} if isinstance(read, int) else set(read)):
        raise ModelError(
            f"the {backbone_name} of {titled(name)} reads prompt embeddings of width {read}, "
            f"and its text encoders give {width}"
        )


def _check_statistics(vae: Any, name: str) -> None:
    """Raise `ModelError` if what the autoencoder's config says of its latents is not a number for each channel."""
    channels, what = vae.latent_channels, f"the vae of {titled(name)} has"
    factor = vae.get("scaling_factor")
    if not _is_finite(factor) or factor <= 0:
        raise ModelError(f"{what} scaling_factor {quoted(factor)}: set it to the number of its own config.json")
    if not _is_finite(vae.get("shift_factor") or 0):
        raise ModelError(f"{what} shift_factor {quoted(vae.shift_factor)}: set it to a number, or to null")
    for setting in ("latents_mean", "latents_std"):
        each = vae.get(setting)
        whole = isinstance(each, list | tuple) and len(each) == channels and all(map(_is_finite, each))
        if each is not None and not (whole and (setting == "latents_mean" or min(each) > 0)):
            raise ModelError(
                f"{what} {setting} {quoted(each)}: set it to {channels} numbers, one for each channel of its latents"
                f"{', above 0' if setting == 'latents_std' else ''}, or to null"
            )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_scheduler(scheduler: Any, name: str) -> None:
    kind, config = type(scheduler).__name__, scheduler.config
    if kind not in SCHEDULERS:
        raise ModelError(
            f"{titled(name)} has the scheduler {kind}, which mu does not run: name another, for example "
            "DDIMScheduler, in "
            "its scheduler/scheduler_config.json and model_index.json"
        )
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS:
        raise ModelError(
            f"{titled(name)} predicts {predicts} (prediction_type of its scheduler): mu knows {', '.join(PREDICTIONS)}"
        )
    for setting, value in OTHER_LEVELS.items():
        if config.get(setting) == value:
            raise ModelError(
                f"the scheduler of {titled(name)} has {setting} = {value}, for a model with other noise levels: name a "
                "model that was trained with those of Stable Diffusion"
            )
