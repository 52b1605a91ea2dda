"""Names of a CLIP's parameters: each has one in open_clip and one in edits, whoever wrote the file."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor

from mu.core.errors import ModelError
from mu.models.formats.architectures import new_component
from mu.models.formats.open_clip_names import from_clip, from_open_clip, open_clip_map
from mu.models.formats.packing import pack

TEXT = {
    "architectures": ["CLIPTextModelWithProjection"],
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
    "projection_dim": 5,
    "vocab_size": 20,
    "max_position_embeddings": 6,
}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_text_tower_goes_to_open_clip_and_back_and_diffusers_agrees() -> None:
    torch.manual_seed(0)
    model = new_component(TEXT)
    weights = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    packed = pack(weights, open_clip_map(weights))
    edits = {name.replace("text_model.", "text_encoder."): tensor for name, tensor in weights.items()}
    assert same(convert_open_clip_checkpoint(model, packed, prefix=""), weights)
    assert all(same(from_clip(tensors), edits) for tensors in (packed, weights, edits))
    packed["transformer.resblocks.1.attn.in_proj_bias"] = packed["transformer.resblocks.1.attn.in_proj_bias"].roll(8)
    assert not same(convert_open_clip_checkpoint(model, packed, prefix=""), weights) and not same(
        from_clip(packed), edits
    )


@pytest.mark.parametrize(
    "name",
    [
        "unet.conv_in.weight",
        "text_encoder.encoder.layers.0.mlp.fc3.weight",
        "text_encoder.encoder.layers.x.mlp.fc1.weight",
        "vision_model.final_layer_norm.weight",
        "q_proj.weight",
    ],
)
def test_names_without_a_place_are_one_line(name: str) -> None:
    with pytest.raises(ModelError, match="open_clip's CLIP has no"):
        open_clip_map([name])


@pytest.mark.parametrize(
    "name",
    [
        "transformer.resblocks.0.mlp.fc1.weight",
        "visual.transformer.resblocks.0.attn.out_proj_weight",
        "transformer.resblocks.0.attn.in_proj.weight",
        "visual.layer1.0.conv1.weight",
        "text_projection.weight",
    ],
)
def test_tensors_that_clip_does_not_have_are_one_line(name: str) -> None:
    with pytest.raises(ModelError, match="parameter of open_clip's CLIP"):
        from_open_clip({name: torch.ones(3, 3)})
