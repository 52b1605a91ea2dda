"""Vision transformers of timm, as classes of transformers.

One matrix of queries, keys and values becomes three, and every other tensor has one new name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, ViTConfig, ViTForImageClassification

from mu.core.errors import ModelError

_LAYER = r"blocks\.(\d+)\."
_THEIRS = r"vit.encoder.layer.\1."
_NAMES = (
    (r"cls_token", "vit.embeddings.cls_token"),
    (r"pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(\w+)", r"vit.layernorm.\1"),
    (r"head\.(\w+)", r"classifier.\1"),
    (_LAYER + r"norm1\.(\w+)", _THEIRS + r"layernorm_before.\2"),
    (_LAYER + r"norm2\.(\w+)", _THEIRS + r"layernorm_after.\2"),
    (_LAYER + r"attn\.proj\.(\w+)", _THEIRS + r"attention.output.dense.\2"),
    (_LAYER + r"mlp\.fc1\.(\w+)", _THEIRS + r"intermediate.dense.\2"),
    (_LAYER + r"mlp\.fc2\.(\w+)", _THEIRS + r"output.dense.\2"),
)
"""timm's names, and those of published transformers checkpoints, which every version of transformers reads."""


def vit(tensors: Mapping[str, Tensor], labels: Sequence[str], place: str) -> tuple[Any, Any]:
    """The classifier with these ``tensors`` under timm's names, and its image processor; ``place`` names the file.

    The processor resizes to the network's own size and normalises to -1..1. Raises `ModelError`, which names the first
    tensor that is unknown, missing or of another shape.
    """
    try:
        config = _config(tensors, dict(enumerate(labels)))
    except (KeyError, IndexError) as missing:
        raise ModelError(f"{place} holds no vision transformer of timm: it has no {missing.args[0]}") from None
    model, told = ViTForImageClassification.from_pretrained(
        None, config=config, state_dict=_translated(tensors, place), output_loading_info=True, dtype=torch.float32
    )
    if wrong := [*sorted(told["missing_keys"]), *sorted(told["mismatched_keys"])]:
        raise ModelError(f"{place} does not fit a ViT of width {config.hidden_size}: {wrong[0]} is missing or differs")
    processor = CLIPImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size},
        crop_size=config.image_size, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return model, processor


def _config(tensors: Mapping[str, Tensor], labels: Mapping[int, str]) -> ViTConfig:
    """The network's sizes as its tensors tell them; heads of 64, and timm's epsilon."""
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        num_attention_heads=max(1, width // 64),
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=patch,
        image_size=patch * side,
        layer_norm_eps=1e-6,
        id2label=dict(labels),
        label2id={label: k for k, label in labels.items()},
    )


def _translated(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if fused := re.fullmatch(_LAYER + r"attn\.qkv\.(\w+)", name):
            for part, each in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"vit.encoder.layer.{fused[1]}.attention.attention.{part}.{fused[2]}"] = each
            continue
        told = next((re.sub(old, new, name) for old, new in _NAMES if re.fullmatch(old, name)), None)
        if told is None:
            raise ModelError(f"{place} holds {name}, which a vision transformer of timm does not have")
        found[told] = tensor
    return found
