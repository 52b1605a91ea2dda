"""Map parameter names between diffusers and the single-file layout of CompVis (Stability's SGM for SDXL).

The maps follow from a config: the model is built without weights, and its blocks get the numbers of CompVis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from mu.core.errors import ModelError, titled
from mu.models.formats.architectures import blueprint, stable_diffusion_xl
from mu.models.formats.open_clip_names import open_clip_map

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."

_KINDS: dict[str, dict[str, Any]] = {
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
    "text_encoder": {"architectures": ["CLIPTextModel"]},
    "text_encoder_2": {"architectures": ["CLIPTextModelWithProjection"]},
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_FOUND: dict[tuple[str, str, str], dict[str, str]] = {}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def part_of(name: str) -> str:
    """The component that a tensor of a single file belongs to, by its name."""
    places = {UNET: "unet", VAE: "vae", OPEN_CLIP_XL: "text_encoder_2"}
    return next((part for place, part in places.items() if name.startswith(place)), "text_encoder")


# -- maps --------------------------------------------------------------------------------------------------------------


def component_names(family: str, component: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Name in diffusers or transformers -> name in the file, for a ``component`` of ``sd1``, ``sd2`` or ``sdxl``.

    Components are ``unet``, ``vae``, ``text_encoder`` and ``text_encoder_2``. The map is one to one, except that q, k
    and v of an open_clip layer, in this order, have one name. SD 2.x files also hold a last layer of the text encoder.
    It is never evaluated, diffusers leaves it out, and no parameter is mapped to it. Raises `ModelError` for a part
    that has no name in CompVis. What was found once in this process is kept: a model is built for each answer.
    """
    asked = (family, component, repr(sorted(config.items())))
    if asked not in _FOUND:
        _FOUND[asked] = _component_names(family, component, config)
    return dict(_FOUND[asked])


def _component_names(family: str, component: str, config: Mapping[str, Any]) -> dict[str, str]:
    model = blueprint({**config, **_KINDS[component]})
    own = list(model.state_dict())
    if component == "unet":
        return {name: UNET + place for name, place in _renamed(own, dict(_unet_places(model)))}
    if component == "vae":
        return {name: VAE + place for name, place in _renamed(own, dict(_vae_places(model)))}
    if component == "text_encoder" and family != "sd2":
        return {name: (CLIP_XL if family == "sdxl" else CLIP) + name.removeprefix("text_model.") for name in own}
    full = {name if name.startswith("text_") else f"text_encoder.{name}": name for name in own}
    return {
        full[name]: (OPEN_CLIP_XL if family == "sdxl" else OPEN_CLIP) + key for name, key in open_clip_map(full).items()
    }


def kohya_module_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers module path -> SGM module path of each linear and convolutional layer of the UNet.

    ``down_blocks.1.attentions.0.proj_in`` -> ``input_blocks.4.1.proj_in``: the names in kohya's LoRA files for SDXL.
    """
    unet = blueprint({**config, **_KINDS["unet"]})
    layers = [name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return dict(_renamed(layers, dict(_unet_places(unet))))


def sdxl_module_names() -> dict[str, str]:
    """`kohya_module_names` of the published SDXL: one name for each of its 794 layers."""
    return kohya_module_names(stable_diffusion_xl()["unet"])


# -- places ------------------------------------------------------------------------------------------------------------


def _renamed(names: Iterable[str], places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Replace the longest beginning of each name that is in ``places`` by its place."""
    for name in names:
        head = name
        while head and head not in places:
            head = head.rpartition(".")[0]
        if not head:
            raise ModelError(f"the CompVis layout has no name for {titled(name)}")
        yield name, places[head] + name[len(head) :]


def _unet_places(unet: Any) -> Iterator[tuple[str, str]]:
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "add_embedding.linear_1", "label_emb.0.0"
    yield "add_embedding.linear_2", "label_emb.0.2"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"

    number = 1
    for i, block in enumerate(unet.down_blocks):
        inner = [f"input_blocks.{number + j}" for j in range(len(block.resnets))]
        yield from _unet_block(f"down_blocks.{i}", inner)
        number += len(inner)
        if block.downsamplers is not None:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1

    if unet.mid_block is not None:
        for j in range(len(unet.mid_block.resnets)):
            yield from _inside(f"mid_block.resnets.{j}", f"middle_block.{2 * j}", _UNET_RESNET)
            yield f"mid_block.attentions.{j}", f"middle_block.{2 * j + 1}"

    number = 0
    for i, block in enumerate(unet.up_blocks):
        inner = [f"output_blocks.{number + j}" for j in range(len(block.resnets))]
        yield from _unet_block(f"up_blocks.{i}", inner)
        number += len(inner)
        after = 2 if hasattr(block, "attentions") else 1
        yield f"up_blocks.{i}.upsamplers.0.conv", f"{inner[-1]}.{after}.conv"


def _unet_block(block: str, places: Iterable[str]) -> Iterator[tuple[str, str]]:
    """In CompVis each resnet, with the attention that may follow it, is a block of its own; ``places`` names them."""
    for j, place in enumerate(places):
        yield from _inside(f"{block}.resnets.{j}", f"{place}.0", _UNET_RESNET)
        yield f"{block}.attentions.{j}", f"{place}.1"


def _vae_places(vae: Any) -> Iterator[tuple[str, str]]:
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    for side, half, way in (("encoder", vae.encoder, "down"), ("decoder", vae.decoder, "up")):
        yield f"{side}.conv_in", f"{side}.conv_in"
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield f"{side}.conv_out", f"{side}.conv_out"
        for j in range(len(half.mid_block.resnets)):
            yield from _vae_resnet(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}")
            yield from _inside(f"{side}.mid_block.attentions.{j}", f"{side}.mid.attn_{j + 1}", _VAE_ATTENTION)
        blocks = getattr(half, f"{way}_blocks")
        for i, block in enumerate(blocks):
            place = f"{side}.{way}.{i if way == 'down' else len(blocks) - 1 - i}"  # counted from the image's end
            for j in range(len(block.resnets)):
                yield from _vae_resnet(f"{side}.{way}_blocks.{i}.resnets.{j}", f"{place}.block.{j}")
            yield f"{side}.{way}_blocks.{i}.{way}samplers.0.conv", f"{place}.{way}sample.conv"


def _vae_resnet(block: str, place: str) -> Iterator[tuple[str, str]]:
    yield block, place
    yield f"{block}.conv_shortcut", f"{place}.nin_shortcut"


def _inside(block: str, place: str, layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{block}.{layer}", f"{place}.{other}") for layer, other in layers.items())
