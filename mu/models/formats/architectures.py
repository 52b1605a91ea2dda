"""The published Stable Diffusion architectures as data, so that building one needs no download.

A pipeline is described by the configs in its diffusers folder, one mapping for each component: ``unet``, ``vae``,
``text_encoder`` (and ``text_encoder_2``), ``scheduler``. `new_component` builds the stock model of a config with random
weights, `blueprint` without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import transformers
from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from mu.core.errors import ModelError

Config = dict[str, Any]


def stable_diffusion_1() -> dict[str, Config]:
    """Stable Diffusion 1.1 to 1.5: 512 x 512, CLIP ViT-L/14, predicts eps."""
    return {
        "unet": _unet(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": _vae(sample_size=512),
        "text_encoder": _VIT_L | {"architectures": ["CLIPTextModel"]},
        "scheduler": _schedule("PNDMScheduler", skip_prk_steps=True),
    }


def stable_diffusion_2(prediction_type: str = "v_prediction") -> dict[str, Config]:
    """Stable Diffusion 2.0 and 2.1, OpenCLIP ViT-H/14 without its last layer.

    ``v_prediction`` is the 768 x 768 model, ``epsilon`` the 512 x 512 "base" model. Both have the same tensors.
    """
    large = prediction_type == "v_prediction"
    unet = _unet(
        sample_size=96 if large else 64,
        cross_attention_dim=1024,
        attention_head_dim=[5, 10, 20, 20],
        use_linear_projection=True,
    )
    text = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
    }
    scheduler = _schedule("DDIMScheduler") if large else _schedule("PNDMScheduler", skip_prk_steps=True)
    return {
        "unet": unet | {"upcast_attention": large},
        "vae": _vae(sample_size=768 if large else 512),
        "text_encoder": _text(**text, hidden_act="gelu") | {"architectures": ["CLIPTextModel"]},
        "scheduler": scheduler | {"prediction_type": prediction_type},
    }


def stable_diffusion_xl() -> dict[str, Config]:
    """Stable Diffusion XL base 1.0: 1024 x 1024, CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, predicts eps."""
    unet = _unet(
        sample_size=128,
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        use_linear_projection=True,
        block_out_channels=[320, 640, 1280],
        transformer_layers_per_block=[1, 2, 10],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,  # pooled prompt embedding of width 1280, and six sizes of 256
    )
    big = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    }
    return {
        "unet": unet,
        "vae": _vae(sample_size=1024) | {"scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": _VIT_L | {"architectures": ["CLIPTextModel"]},
        "text_encoder_2": _text(**big, hidden_act="gelu") | {"architectures": ["CLIPTextModelWithProjection"]},
        "scheduler": _schedule("EulerDiscreteScheduler", timestep_spacing="leading"),
    }


def new_component(config: Mapping[str, Any]) -> Any:
    """Build the model or scheduler of ``config``, as in a diffusers folder, by ``_class_name`` or ``architectures``.

    Raises `ModelError` if nothing can be built from the config.
    """
    settings = {
        key: value for key, value in config.items() if key != "_use_default_values"
    }  # diffusers drops the settings in this list
    try:
        if "_class_name" in settings:
            return getattr(diffusers, settings["_class_name"]).from_config(settings)
        kind = getattr(transformers, settings["architectures"][0])
        return kind(kind.config_class.from_dict(settings))
    except Exception as error:
        raise ModelError(f"no model can be built from this config ({type(error).__name__}: {error})") from None


def blueprint(config: Mapping[str, Any]) -> Any:
    """Build the model of ``config`` with parameters on the meta device. Its few buffers, which no file holds, are real.

    ``torch.device("meta")`` would leave the buffers (CLIP's position ids) without values. Drawing random numbers that
    nobody sees would take most of the time.
    """
    with init_empty_weights(include_buffers=False), no_init_weights():
        return new_component(config)


def _unet(**settings: Any) -> Config:
    common = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    return common | settings


def _vae(sample_size: int) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": sample_size,
        "latent_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": 0.18215,
    }


def _text(**settings: Any) -> Config:
    common = {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }
    return common | settings


def _schedule(kind: str, **settings: Any) -> Config:
    common = {
        "_class_name": kind,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return common | settings


_VIT_L = _text(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
    hidden_act="quick_gelu",
)
