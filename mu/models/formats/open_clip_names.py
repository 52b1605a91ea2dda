"""Convert names of CLIP parameters between open_clip, transformers and edits. No config is needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mu.core.errors import ModelError, quoted, titled
from mu.models.formats.packing import parts_of

_QKV = ("q_proj", "k_proj", "v_proj")
_LAYER = {
    **{f"self_attn.{part}.{kind}": f"attn.in_proj_{kind}" for kind in ("weight", "bias") for part in _QKV},
    **{
        f"{own}.{kind}": f"{other}.{kind}"
        for own, other in {
            "self_attn.out_proj": "attn.out_proj",
            "layer_norm1": "ln_1",
            "layer_norm2": "ln_2",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
        }.items()
        for kind in ("weight", "bias")
    },
}
_LAYERS = {
    "text_encoder.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
}
_REST = {
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
_TIMM = {
    "visual.trunk.": "vision_model.trunk.",
    "visual.head.proj.": "visual_projection.",
    "visual.head.mlp.": "visual_projection.",
}
"""Beginnings of open_clip's names in an image tower of timm, and those of edits."""


def open_clip_map(parameters: Iterable[str]) -> dict[str, str]:
    """Map each parameter of a CLIP model to its name in open_clip; q, k and v come in this order.

    ``text_encoder.encoder.layers.3.mlp.fc1.weight`` -> ``transformer.resblocks.3.mlp.c_fc.weight``; `CLIPModel` has
    ``text_model.``, not ``text_encoder.``. Raises `ModelError` for a parameter that open_clip's CLIP does not have.
    """
    return {name: _open_clip_name(_edits_name(name)) for name in sorted(parameters, key=_which_of_qkv)}


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights or deltas, all or some, from open_clip's names to the names of edits and transformers' layout.

    The prefix ``module.`` from training on several devices is removed, and ``text.`` of a text tower of its own. Raises
    `ModelError` for a tensor that neither a CLIP with a ViT nor one with an image tower of timm has.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = name.removeprefix("module.").removeprefix("text.")
        together = _of_open_clip(key)
        weights |= zip(together, parts_of(tensor, len(together), key), strict=True)
    return weights


def from_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights or deltas, all or some, to the names of edits, from those of `CLIPModel`, open_clip or edits.

    Raises `ModelError` as `from_open_clip` does.
    """
    own = {_edits_name(name): tensor for name, tensor in tensors.items()}
    known = any(name.startswith(("text_encoder", "vision_model")) or name.endswith("projection.weight") for name in own)
    return own if known else from_open_clip(tensors)


def _edits_name(name: str) -> str:
    """The name in edits: the text tower is ``text_encoder``, in a `CLIPModel` ``text_model``."""
    return re.sub(r"^(text_encoder\.)?text_model\.", "text_encoder.", name)


def _which_of_qkv(name: str) -> int:
    return next((k for k, part in enumerate(_QKV) if f".{part}." in name), 0)


def _open_clip_name(name: str) -> str:
    if name in _REST:
        return _REST[name]
    for own, other in _LAYERS.items():
        number, layer = _in_layer(name, own)
        if layer in _LAYER:
            return f"{other}{number}.{_LAYER[layer]}"
    raise ModelError(f"open_clip's CLIP has no parameter for {titled(name)}")


def _of_open_clip(key: str) -> list[str]:
    """The inverse of `_open_clip_name`: one name, or those of q, k and v."""
    names = [own for own, other in _REST.items() if other == key]
    names += [own + key.removeprefix(other) for other, own in _TIMM.items() if key.startswith(other)]
    for own, other in _LAYERS.items():
        number, layer = _in_layer(key, other)
        names += [f"{own}{number}.{inside}" for inside, outside in _LAYER.items() if outside == layer]
    if not names:
        raise ModelError(f"{quoted(key)} is not a parameter of open_clip's CLIP with a ViT or timm's image tower")
    return names


def _in_layer(name: str, layers: str) -> tuple[str, str]:
    """The number and the rest of ``name``; both are empty if it does not begin with ``layers`` and a number."""
    number, _, rest = name.removeprefix(layers).partition(".")
    return (number, rest) if name.startswith(layers) and number.isdecimal() else ("", "")
