"""Names of layers in LoRA files, and the parameters that they refer to.

A name has a prefix (the component) and a path. Paths are looked up in tables of the published models' module names. The
tables treat dots and underscores alike and leave numbers open, so one table serves all spellings and sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

# Wrapper prefixes: before the component, or between the component and the layer.
_WRAPPERS = ("base_model.model.", "module.", "model.")
COMPONENTS = {
    "unet.": "unet", "diffusion_model.": "unet", "lora_unet_": "unet", "lycoris_": "unet",
    "text_encoder.": "text_encoder", "te.": "text_encoder", "te1.": "text_encoder", "clip_l.": "text_encoder",
    "text_encoders.clip_l.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    "text_encoder_2.": "text_encoder_2", "te2.": "text_encoder_2", "clip_g.": "text_encoder_2",
    "text_encoders.clip_g.": "text_encoder_2", "lora_te2_": "text_encoder_2",
    "vision_model.": "vision_model", "vision_tower.": "vision_model", "language_model.": "language_model",
    "multi_modal_projector.": "projector", "projector.": "projector",
}  # fmt: skip
# Levels that some versions of a library have, or that SD-WebUI adds.
_LEVELS = {
    "text_encoder": r"(?:0_)?(?:transformer_)?(?:text_model_)?",
    "text_encoder_2": r"(?:transformer_)?(?:text_model_)?",
    "vision_model": r"(?:vision_model_)?",
    "language_model": r"(?:model_)?",
}
_WITHOUT_PREFIX = ("unet", "text_encoder", "projections")


def parameter_of(layer: str) -> str:
    """The parameter that a layer's name in a file refers to, empty if no known model has it.

    ``lora_unet_mid_block_attentions_0_proj_in``, ``base_model.model.mid_block.attentions.0.proj_in`` and
    ``lora_unet_middle_block_1_proj_in`` (as SGM names it) are all ``unet.mid_block.attentions.0.proj_in.weight``.
    """
    return place_of(layer)[2]


def place_of(layer: str) -> tuple[str, str, str]:
    """Component, layer name without it as the file spells it, and parameter (empty if unknown)."""
    rest = _unwrapped(layer)
    prefix = next((prefix for prefix in COMPONENTS if rest.startswith(prefix)), "")
    rest = _unwrapped(rest.removeprefix(prefix))
    for component in (COMPONENTS[prefix],) if prefix else _WITHOUT_PREFIX:
        if module := _module(component, rest):
            path = module if component == "projections" else f"{component}.{module}"
            return component, rest, f"{path}.weight"
    return "", rest, ""


def _unwrapped(name: str) -> str:
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), ""):
        name = name.removeprefix(wrapper)
    return name


def _module(component: str, spelled: str) -> str:
    """The module path of a layer in its component, empty if the component has no such layer."""
    name = spelled.replace(".", "_").replace("_processor_", "_")  # diffusers' attention processors
    if component == "unet" and name in _sgm_modules():
        return _sgm_modules()[name]
    name = re.sub("^" + _LEVELS.get(component, ""), "", name)
    module = _modules(component).get(_open(name), "")
    numbers = iter(re.findall(r"\d+", name))
    return re.sub("#", lambda _: next(numbers), module)


def _open(name: str) -> str:
    """``down_blocks.1.attentions.0`` -> ``down_blocks.#.attentions.#``."""
    return re.sub(r"\d+", "#", name)


@cache
def _modules(component: str) -> dict[str, str]:
    """Map underscore names to module paths of the layers that can have factors. Numbers are left open in both."""
    known = {}
    for module in map(_open, _module_names(component)):
        name = re.sub("^" + _LEVELS.get(component, ""), "", module.replace(".", "_"))
        known[name] = module
        for ending, old in (("_to_out_#", "_to_out"), *_OLD_TEXT.items()):
            if name.endswith(ending):
                known[name.removesuffix(ending) + old] = re.sub(r"to_out\.#$", "to_out.0", module)
    return known


# The first LoRA trainers of diffusers gave text encoder layers the names of UNet layers.
_OLD_TEXT = {f"attn_{layer}_proj": f"attn_to_{layer}" for layer in ("q", "k", "v", "out")}


def _module_names(component: str) -> Iterator[str]:
    """Names of the published models' linear and convolutional layers in the installed libraries."""
    from mu.models.formats.architectures import stable_diffusion_1, stable_diffusion_xl

    if component == "unet":
        for config in (stable_diffusion_1()["unet"], {**stable_diffusion_xl()["unet"], "time_cond_proj_dim": 1}):
            yield from _layer_names(config)
    elif component in ("text_encoder", "text_encoder_2"):
        yield from _layer_names(stable_diffusion_xl()[component])
    elif component == "projections":
        yield from ("text_projection", "visual_projection")
    elif component == "projector":
        yield from ("linear_1", "linear_2")
    else:
        kind = {"vision_model": "CLIPVisionModel", "language_model": "LlamaModel"}[component]
        yield from _layer_names({"architectures": [kind], "num_hidden_layers": 1})


def _layer_names(config: Mapping[str, Any]) -> Iterator[str]:
    from mu.models.formats.compvis import blueprint

    for name, module in blueprint(config).named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            yield name


@cache
def _sgm_modules() -> dict[str, str]:
    """Map the names in Stability's code: ``input_blocks_4_1_proj_in`` -> ``down_blocks.1.attentions.0.proj_in``.

    SD 1.x, SD 2.x and SDXL number their blocks alike. So one table holds all, and each name means one layer.
    """
    from mu.models.formats.architectures import stable_diffusion_1
    from mu.models.formats.compvis import kohya_module_names, sdxl_module_names

    tables = (kohya_module_names(stable_diffusion_1()["unet"]), sdxl_module_names())
    return {place.replace(".", "_"): module for table in tables for module, place in table.items()}
