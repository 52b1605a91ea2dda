"""The two published classifiers of UnlearnCanvas: ViT-L/16 of timm, with 51 styles or 20 objects.

The file holds timm's names under ``model_state_dict``. The same network is built from transformers' classes: one
matrix of queries, keys and values becomes three, and every other tensor has one new name. Images are resized to
224 x 224 and normalised with mean and standard deviation 0.5, as in the authors' script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, ViTConfig, ViTForImageClassification

from mu.core.errors import ModelError
from mu.evaluation.judges.classifier import ClassifierJudge
from mu.models.formats.checkpoint import read_state_dict
from mu.models.judge import Judge as Classifier

STYLES = tuple(
    """
    Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon
    Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield
    Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel
    Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring
    Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter
    """.split()
)
"""The 51 styles in the order of the classifier's outputs."""
OBJECTS = tuple(
    """
    Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches
    Sea Statues Towers Trees Waterfalls
    """.split()
)
"""The 20 objects in the order of the classifier's outputs."""
HEADS = {len(STYLES): ("style", STYLES), len(OBJECTS): ("object", OBJECTS)}

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


def open_unlearncanvas(place: str, device: torch.device | str) -> ClassifierJudge:
    """The classifier in the file ``place``: ``style50.pth`` or ``style50_cls.pth``, or one of the same layout.

    Raises `ModelError` for a file of another layout, and names the first tensor that is unknown or missing.
    """
    tensors = read_state_dict(Path(place))
    try:
        head, classes = HEADS[len(tensors["head.weight"])]
        config = _config(tensors, {k: f"{head}/{name}" for k, name in enumerate(classes)})
    except (KeyError, IndexError):
        heads = " or ".join(str(number) for number in HEADS)
        raise ModelError(
            f"{place} is no classifier of UnlearnCanvas: a ViT of timm with {heads} classes is needed, with head.weight"
        ) from None
    model, told = ViTForImageClassification.from_pretrained(
        None, config=config, state_dict=_translated(tensors, place), output_loading_info=True, dtype=torch.float32
    )
    if wrong := [*sorted(told["missing_keys"]), *sorted(told["mismatched_keys"])]:
        raise ModelError(f"{place} does not fit a ViT of width {config.hidden_size}: {wrong[0]} is missing or differs")
    processor = CLIPImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size},
        crop_size=config.image_size, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return ClassifierJudge(Classifier(model, processor, device), f"unlearncanvas:{place}")


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
            raise ModelError(f"{place} holds {name}, which the classifiers of UnlearnCanvas do not have")
        found[told] = tensor
    return found
