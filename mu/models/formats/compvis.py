"""Parameter names between diffusers and the single-file layout of CompVis (Stability's SGM for SDXL), transformers and open_clip.

The maps are derived from a config: the model is built without weights and its blocks are numbered as CompVis numbers them.
CLIP's names say all themselves: `to_open_clip` and `from_open_clip` need no config and take any part of a model.
Where the layouts differ in more than the name, `pack` and `unpack` convert the tensors:

- open_clip towers keep q, k and v in one tensor: three parameters then have the same name in the map, in this order;
- open_clip's ``text_projection`` and ``visual.proj`` are the transpose of the weight of a linear layer;
- the attention of the autoencoder is a 1x1 convolution in CompVis and a linear layer in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from mu.core.errors import ModelError
from mu.models.formats.architectures import new_component, stable_diffusion_xl

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_TOWER = {"text_encoder": "", "vision_model": "visual."}
_OPEN_CLIP_REST = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "text_encoder.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_encoder.embeddings.position_embedding.weight": "positional_embedding",
    "text_encoder.final_layer_norm.weight": "ln_final.weight",
    "text_encoder.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # transformers' own spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = ("text_projection", "visual.proj")
_QKV = ("q_proj", "k_proj", "v_proj")


# -- maps ---------------------------------------------------------------------------------------------------------------


def unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers parameter name -> CompVis name for the ``UNet2DConditionModel`` of ``config``, one to one.

    Raises `ModelError` for a UNet with a part that CompVis has no place for.
    """
    unet = blueprint({**config, "_class_name": "UNet2DConditionModel"})
    return {name: UNET + place for name, place in _renamed(unet.state_dict(), dict(_unet_places(unet)))}


def kohya_module_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers module path -> SGM module path of each linear and convolutional layer of the UNet.

    ``down_blocks.1.attentions.0.proj_in`` -> ``input_blocks.4.1.proj_in``: the names in kohya's LoRA files for SDXL.
    """
    unet = blueprint({**config, "_class_name": "UNet2DConditionModel"})
    layers = [name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return dict(_renamed(layers, dict(_unet_places(unet))))


def sdxl_module_names() -> dict[str, str]:
    """`kohya_module_names` of the published SDXL, whose 794 layers they name one to one."""
    return kohya_module_names(stable_diffusion_xl()["unet"])


def vae_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers parameter name -> CompVis name for the ``AutoencoderKL`` of ``config``, one to one.

    Raises `ModelError` for an autoencoder with a part that CompVis has no place for.
    """
    vae = blueprint({**config, "_class_name": "AutoencoderKL"})
    return {name: VAE + place for name, place in _renamed(vae.state_dict(), dict(_vae_places(vae)))}


def clip_names(config: Mapping[str, Any], prefix: str = CLIP) -> dict[str, str]:
    """Parameter name of a ``CLIPTextModel`` -> its name in SD 1.x, and in SDXL with ``CLIP_XL``, one to one."""
    text = blueprint({**config, "architectures": ["CLIPTextModel"]})
    return {name: prefix + name.removeprefix("text_model.") for name in text.state_dict()}


def open_clip_names(config: Mapping[str, Any], prefix: str = OPEN_CLIP, *, projection: bool = False) -> dict[str, str]:
    """Parameter name of a CLIP text tower -> its name in SD 2.x, and in SDXL with ``OPEN_CLIP_XL`` and ``projection``.

    q, k and v of a layer, in this order, have one name. SD 2.x files also hold a last layer that is never evaluated and
    that diffusers leaves out, hence no parameter is mapped to it.
    """
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    text = blueprint({**config, "architectures": [kind]})
    full = {name: name if name.startswith("text_") else f"text_encoder.{name}" for name in text.state_dict()}
    keys = open_clip_map(full.values())
    return {name: prefix + keys[full[name]] for name in sorted(full, key=_which_of_qkv)}


def open_clip_map(parameters: Iterable[str]) -> dict[str, str]:
    """Each of a CLIP's parameters -> its name in open_clip, those with q, k or v in their name in this order.

    ``text_encoder.encoder.layers.3.mlp.fc1.weight`` -> ``transformer.resblocks.3.mlp.c_fc.weight``; `CLIPModel` has
    ``text_model.`` for ``text_encoder.``. Raises `ModelError` for a parameter that open_clip's CLIP does not have.
    """
    return {name: _open_clip_name(_component_name(name)) for name in sorted(parameters, key=_which_of_qkv)}


def component_names(family: str, component: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The map for one ``component`` (``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``) of ``sd1``, ``sd2`` or ``sdxl``."""
    if component in ("unet", "vae"):
        return unet_names(config) if component == "unet" else vae_names(config)
    if component == "text_encoder_2":
        return open_clip_names(config, OPEN_CLIP_XL, projection=True)
    if family == "sd2":
        return open_clip_names(config)
    return clip_names(config, CLIP_XL if family == "sdxl" else CLIP)


def blueprint(config: Mapping[str, Any]) -> nn.Module:
    """The model of ``config`` with parameters on the meta device; its few buffers are real."""
    with init_empty_weights(include_buffers=False):
        return new_component(config)


# -- tensors ------------------------------------------------------------------------------------------------------------


def pack(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a diffusers model, renamed and laid out as CompVis has them; bit for bit the same numbers.

    Raises `ModelError` where ``weights`` are not those that ``names`` was made for, as with LoRA layers put in.
    """
    if strange := names.keys() ^ weights.keys():
        raise ModelError(
            f"the model's parameters are not those of its config ({_some(strange)}): merge or remove adapters first"
        )
    parts: dict[str, list[Tensor]] = {}
    for name, key in names.items():
        parts.setdefault(key, []).append(_as_compvis(weights[name].detach(), key))
    return {key: torch.cat(found) if len(found) > 1 else found[0].contiguous() for key, found in parts.items()}


def unpack(checkpoint: Mapping[str, Tensor], names: Mapping[str, str], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The inverse of `pack`: of a ``checkpoint`` that may hold more, the tensors that ``names`` lists, in ``shapes``.

    Raises `ModelError` for missing tensors and for other shapes.
    """
    if missing := [key for key in dict.fromkeys(names.values()) if key not in checkpoint]:
        raise ModelError(f"{len(missing)} tensors of the model are missing ({_some(missing)})")
    sharing: dict[str, list[str]] = {}
    for name, key in names.items():
        sharing.setdefault(key, []).append(name)
    weights = {}
    for key, together in sharing.items():
        for name, part in zip(together, _parts(checkpoint[key], len(together), key), strict=True):
            weights[name] = _as_diffusers(part, key, shapes[name])
    return weights


def to_open_clip(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights or shifts of a CLIP, or of a part of it, as open_clip names and lays them out; bit for bit the same numbers.

    ``tensors`` have the names of an edit's parameters (``text_encoder.``, ``vision_model.``, ``text_projection.``,
    ``visual_projection.``) or of a `CLIPModel`. open_clip keeps q, k and v in one tensor: what is not given of it is taken
    from ``base``, in open_clip's names. Raises `ModelError` where ``base`` lacks it, and for a name without a place.
    """
    given = {_component_name(name): tensor for name, tensor in tensors.items()}
    for key in dict.fromkeys(open_clip_map(given).values()):
        together = _of_open_clip(key)
        absent = [name for name in together if name not in given]
        if absent and (base is None or key not in base):
            what = ", ".join(name.split(".")[-2] for name in absent)
            raise ModelError(f"{key} holds q, k and v in one tensor: give {what} of this layer too, or the base's {key}")
        if absent:
            whole = dict(zip(together, _parts(base[key], len(together), key), strict=True))  # type: ignore[index]
            given |= {name: whole[name] for name in absent}
        if len(shapes := {given[name].shape for name in together}) > 1:
            raise ModelError(f"the parts of {key} have different shapes ({', '.join(sorted(map(_shape, shapes)))})")
    return pack(given, open_clip_map(given))


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_open_clip`: weights or shifts in open_clip's names, or a part of them, in the names of edits.

    ``module.``, which training on several devices puts before each name, is taken off. Raises `ModelError` for a tensor
    that a CLIP with a ViT does not have.
    """
    weights = {}
    for name, tensor in tensors.items():
        key = name.removeprefix("module.")
        together = _of_open_clip(key)
        for own, part in zip(together, _parts(tensor, len(together), key), strict=True):
            weights[own] = part.transpose(0, -1).contiguous() if key.endswith(_TRANSPOSED) else part
    return weights


def from_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights or shifts in the names of a `CLIPModel`, of open_clip or of edits, or a part of them, in the names of edits.

    Raises as `from_open_clip` does.
    """
    own = {_component_name(name): tensor for name, tensor in tensors.items()}
    known = any(name.startswith(tuple(_OPEN_CLIP_TOWER)) or name.endswith("projection.weight") for name in own)
    return own if known else from_open_clip(tensors)


def _parts(tensor: Tensor, count: int, key: str) -> list[Tensor]:
    if count == 1:
        return [tensor]
    if tensor.dim() == 0 or len(tensor) % count:
        raise ModelError(f"{key} has the shape {_shape(tensor.shape)}, of which {count} equal parts cannot be made")
    return [part.clone() for part in tensor.chunk(count)]


def _as_compvis(tensor: Tensor, key: str) -> Tensor:
    if key.endswith(_TRANSPOSED):
        return tensor.transpose(0, -1)
    return tensor[:, :, None, None] if ".mid.attn_1." in key and tensor.dim() == 2 else tensor


def _as_diffusers(tensor: Tensor, key: str, shape: torch.Size) -> Tensor:
    if key.endswith(_TRANSPOSED):
        tensor = tensor.transpose(0, -1)
    if shape not in (tensor.shape, (*tensor.shape, 1, 1)) and (*shape, 1, 1) != tensor.shape:
        raise ModelError(f"{key} has the shape {_shape(tensor.shape)} where the model needs {_shape(shape)}")
    return tensor.reshape(shape).contiguous()


# -- places -------------------------------------------------------------------------------------------------------------


def _renamed(names: Iterable[str], places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each name with the longest part at its head that has a place replaced by that place."""
    for name in names:
        head = name
        while head and head not in places:
            head = head.rpartition(".")[0]
        if not head:
            raise ModelError(f"the CompVis layout has no place for {name!r}")
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
    """CompVis counts each resnet, with the attention that may follow it, as a block of its own: ``places``."""
    for j, place in enumerate(places):
        yield from _inside(f"{block}.resnets.{j}", f"{place}.0", _UNET_RESNET)
        yield f"{block}.attentions.{j}", f"{place}.1"


def _vae_places(vae: Any) -> Iterator[tuple[str, str]]:
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    for side, half in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        yield f"{side}.conv_in", f"{side}.conv_in"
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield f"{side}.conv_out", f"{side}.conv_out"
        for j in range(len(half.mid_block.resnets)):
            yield from _vae_resnet(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}")
            yield from _inside(f"{side}.mid_block.attentions.{j}", f"{side}.mid.attn_{j + 1}", _VAE_ATTENTION)
    for i, block in enumerate(vae.encoder.down_blocks):
        for j in range(len(block.resnets)):
            yield from _vae_resnet(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}")
        yield f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv"
    for i, block in enumerate(vae.decoder.up_blocks):
        up = len(vae.decoder.up_blocks) - 1 - i  # CompVis counts the decoder's blocks from the picture's end
        for j in range(len(block.resnets)):
            yield from _vae_resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{up}.block.{j}")
        yield f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{up}.upsample.conv"


def _vae_resnet(block: str, place: str) -> Iterator[tuple[str, str]]:
    yield block, place
    yield f"{block}.conv_shortcut", f"{place}.nin_shortcut"


def _inside(block: str, place: str, layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{block}.{layer}", f"{place}.{other}") for layer, other in layers.items())


def _component_name(name: str) -> str:
    """As edits name the parameters of the text tower; in a `CLIPModel` it is ``text_model``."""
    return re.sub(r"^(text_encoder\.)?text_model\.", "text_encoder.", name)


def _which_of_qkv(name: str) -> int:
    return next((k for k, qkv in enumerate(_QKV) if f".{qkv}." in name), 0)


def _open_clip_name(name: str) -> str:
    if name in _OPEN_CLIP_REST:
        return _OPEN_CLIP_REST[name]
    if found := re.fullmatch(r"(text_encoder|vision_model)\.encoder\.layers\.(\d+)\.(\S+)\.(weight|bias)", name):
        tower, number, module, kind = found.groups()
        block = f"{_OPEN_CLIP_TOWER[tower]}transformer.resblocks.{number}."
        if module.removeprefix("self_attn.") in _QKV:
            return f"{block}attn.in_proj_{kind}"
        if module in _OPEN_CLIP_LAYER:
            return f"{block}{_OPEN_CLIP_LAYER[module]}.{kind}"
    raise ModelError(f"open_clip's CLIP has no place for {name!r}")


def _of_open_clip(key: str) -> list[str]:
    """The inverse of `_open_clip_name`: one name, or those of q, k and v."""
    rest = {other: name for name, other in _OPEN_CLIP_REST.items()}
    if key in rest:
        return [rest[key]]
    if found := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(\S+)[._](weight|bias)", key):
        tower, number, module, kind = found.groups()
        layer = f"{'vision_model' if tower else 'text_encoder'}.encoder.layers.{number}."
        if module == "attn.in_proj":
            names = [f"{layer}self_attn.{part}.{kind}" for part in _QKV]
        else:
            names = [f"{layer}{own}.{kind}" for own, other in _OPEN_CLIP_LAYER.items() if other == module]
        if names and _open_clip_name(names[0]) == key:
            return names
    raise ModelError(f"{key!r} is no parameter of open_clip's CLIP with a ViT")


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "()"
