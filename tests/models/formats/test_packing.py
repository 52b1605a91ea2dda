"""Tensors in the layouts of CompVis and open_clip: fused, transposed and shaped as these have them, and back."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPAttention

from mu.core.errors import ModelError
from mu.models.formats import architectures, compvis
from mu.models.formats.packing import pack, unpack


def test_vae_attention_is_a_convolution_in_compvis():
    name, key = "decoder.mid_block.attentions.0.to_q.weight", compvis.VAE + "decoder.mid.attn_1.q.weight"
    assert compvis.component_names("sd1", "vae", architectures.stable_diffusion_1()["vae"])[name] == key
    weight = torch.randn(6, 6)
    packed = pack({name: weight}, {name: key})
    assert packed[key].shape == (6, 6, 1, 1)
    for form in (packed, {key: weight}):
        assert torch.equal(unpack(form, {name: key}, {name: weight.shape})[name], weight)


def test_fused_attention_computes_what_the_separate_layers_do():
    """open_clip evaluates the fused tensors by torch's own MultiheadAttention."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=20,
        max_position_embeddings=6,
        bos_token_id=18,
        eos_token_id=19,
        projection_dim=8,
        hidden_act="gelu",
    )
    text = CLIPTextModel(config).eval()
    packed = pack(text.state_dict(), compvis.component_names("sd2", "text_encoder", config.to_dict()))
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    layer = f"{compvis.OPEN_CLIP}transformer.resblocks.0.attn."
    theirs.load_state_dict({key.removeprefix(layer): tensor for key, tensor in packed.items() if key.startswith(layer)})
    ours = next(module for module in text.modules() if isinstance(module, CLIPAttention))
    states = torch.randn(2, 6, 8)
    expected = ours(states)[0]
    assert torch.allclose(theirs(states, states, states)[0], expected, atol=1e-6)
    theirs.in_proj_weight.data = theirs.in_proj_weight.roll(8, 0)  # v, q, k
    assert not torch.allclose(theirs(states, states, states)[0], expected, atol=1e-6)


def test_text_projection_is_transposed_also_where_it_is_square():
    name, key = "text_projection.weight", compvis.OPEN_CLIP_XL + "text_projection"
    weight = torch.randn(5, 5)
    packed = pack({name: weight}, {name: key})
    assert torch.equal(packed[key], weight.T) and not torch.equal(packed[key], weight)
    assert torch.equal(unpack(packed, {name: key}, {name: weight.shape})[name], weight)


def test_missing_misshapen_and_foreign_tensors_are_refused():
    known, shapes = {"a.weight": "x", "b.weight": "y"}, {"a.weight": torch.Size([2, 3]), "b.weight": torch.Size([2])}
    good = {"x": torch.ones(2, 3), "y": torch.ones(2), "z": torch.ones(1)}
    assert unpack(good, known, shapes).keys() == known.keys()
    with pytest.raises(ModelError, match=r"1 tensors of the model are missing \(y\)"):
        unpack({"x": good["x"]}, known, shapes)
    with pytest.raises(ModelError, match=r"x has the shape 3x2.*needs 2x3"):
        unpack(good | {"x": torch.ones(3, 2)}, known, shapes)
    fused = {"q": "x", "k": "x", "v": "x"}
    with pytest.raises(ModelError, match="3 equal parts"):
        unpack(good, fused, dict.fromkeys(fused, torch.Size([1, 3])))
    with pytest.raises(ModelError, match=r"not those of its config \(a.lora_A, a.weight\)"):
        pack({"a.lora_A": torch.ones(1), "b.weight": torch.ones(1)}, known)
