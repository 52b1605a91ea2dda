"""The maps to CompVis names: one to one, as the published files have them, and as diffusers itself converts."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils

from mu.core.errors import ModelError
from mu.models.canvas.architecture import new_autoencoder, new_unet
from mu.models.formats import architectures, compvis

PUBLISHED = {
    "sd1": architectures.stable_diffusion_1(),
    "sd2": architectures.stable_diffusion_2(),
    "sdxl": architectures.stable_diffusion_xl(),
}
UNETS = {family: configs["unet"] for family, configs in PUBLISHED.items()} | {"canvas": dict(new_unet().config)}


# -- UNet
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "count"), [("sd1", 686), ("sd2", 686), ("sdxl", 1680), ("canvas", 286)])
def test_unet_map_is_one_to_one(family: str, count: int):
    found = compvis.component_names(family, "unet", UNETS[family])
    assert len(found) == len(set(found.values())) == count
    assert list(found) == list(
        architectures.blueprint(UNETS[family] | {"_class_name": "UNet2DConditionModel"}).state_dict()
    )
    assert next(iter(found.values())) == "model.diffusion_model.input_blocks.0.0.weight"
    assert list(found.values())[-1] == "model.diffusion_model.out.2.bias"
    assert not [key for key in found.values() if re.search("resnets|attentions|samplers|conv_|blocks_", key)]


PAIRS = {
    "sd1": {
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
        "down_blocks.3.resnets.1.time_emb_proj.bias": "input_blocks.11.0.emb_layers.1.bias",
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "mid_block.resnets.1.norm2.weight": "middle_block.2.out_layers.0.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight": "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        "up_blocks.3.resnets.2.conv2.weight": "output_blocks.11.0.out_layers.3.weight",
        "conv_norm_out.weight": "out.0.weight",
    },
    "sdxl": {
        "add_embedding.linear_1.weight": "label_emb.0.0.weight",
        "add_embedding.linear_2.weight": "label_emb.0.2.weight",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight": "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v.weight": "input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight",
        "mid_block.attentions.0.transformer_blocks.9.norm3.weight": "middle_block.1.transformer_blocks.9.norm3.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
        "up_blocks.1.attentions.2.proj_out.weight": "output_blocks.5.1.proj_out.weight",
        "up_blocks.2.resnets.2.conv1.weight": "output_blocks.8.0.in_layers.2.weight",
    },
}


@pytest.mark.parametrize("family", PAIRS)
def test_unet_names_that_are_known(family: str):
    found = compvis.component_names(family, "unet", UNETS[family])
    assert {name: found[name].removeprefix(compvis.UNET) for name in PAIRS[family]} == PAIRS[family]


@pytest.mark.parametrize("family", UNETS)
def test_unet_map_agrees_with_the_conversion_in_diffusers(family: str):
    """Each tensor holds its own number; their converter brings each where our map says it comes from."""
    found = compvis.component_names(family, "unet", UNETS[family])
    marks = {key: torch.tensor(k) for k, key in enumerate(found.values())}
    settings = {"class_embed_type": None, "addition_embed_type": None, "layers_per_block": 2} | UNETS[family]
    theirs = single_file_utils.convert_ldm_unet_checkpoint(dict(marks), settings)
    assert {name: int(mark) for name, mark in theirs.items()} == {name: int(marks[key]) for name, key in found.items()}


def test_a_unet_that_compvis_has_no_place_for_is_refused():
    with pytest.raises(ModelError, match=r"CompVis.*'class_embedding"):
        compvis.component_names("sd1", "unet", {**new_unet().config, "num_class_embeds": 7})


# -- kohya
# ----------------------------------------------------------------------------------------------------------------


def test_kohya_module_names_are_the_sgm_paths():
    found = compvis.kohya_module_names(UNETS["sdxl"])
    layer = "transformer_blocks.0.attn1.to_q"
    assert found[f"down_blocks.1.attentions.0.{layer}"] == f"input_blocks.4.1.{layer}"
    assert found["down_blocks.1.resnets.0.conv1"] == "input_blocks.4.0.in_layers.2"
    assert len(found) == len(set(found.values())) == 794
    parameters = compvis.component_names("sdxl", "unet", UNETS["sdxl"])
    assert all(parameters[f"{module}.weight"] == f"{compvis.UNET}{place}.weight" for module, place in found.items())
    assert not [module for module in found if re.search(r"norm\d*$", module)]


def loaded_by_diffusers(places: list[str]) -> dict[str, float]:
    """Module -> mark, of a kohya file in which the module at ``places[k]`` has factors filled with k."""
    file: dict[str, torch.Tensor] = {}
    for k, place in enumerate(places):
        layer = f"lora_unet_{place.replace('.', '_')}"
        file |= {f"{layer}.lora_{side}.weight": torch.full((1, 1), float(k)) for side in ("down", "up")}
        file[f"{layer}.alpha"] = torch.tensor(1.0)
    unet = architectures.blueprint(UNETS["sdxl"])
    found, _ = StableDiffusionXLPipeline.lora_state_dict(file, unet_config=unet.config)
    modules = {
        re.sub(r"[._]lora\.down\.weight$", "", name): float(mark)
        for name, mark in found.items()
        if "down.weight" in name
    }
    return {
        re.sub(r"to_out$", "to_out.0", m.removeprefix("unet.").replace(".processor", "")): mark
        for m, mark in modules.items()
    }


def test_kohya_module_names_agree_with_the_lora_loader_of_diffusers():
    found = compvis.kohya_module_names(UNETS["sdxl"])
    assert loaded_by_diffusers(list(found.values())) == {module: float(k) for k, module in enumerate(found)}
    places = [place for place in found.values() if place.startswith("output_blocks.0.1.")]
    shifted = [place.replace("output_blocks.0.", "output_blocks.1.") for place in places]
    assert loaded_by_diffusers(shifted).keys() != {module for module, place in found.items() if place in places}


# -- autoencoder
# ----------------------------------------------------------------------------------------------------------

VAE_PAIRS = {
    "encoder.conv_norm_out.weight": "encoder.norm_out.weight",
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
    "encoder.down_blocks.0.downsamplers.0.conv.bias": "encoder.down.0.downsample.conv.bias",
    "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
    "decoder.mid_block.attentions.0.group_norm.weight": "decoder.mid.attn_1.norm.weight",
    "decoder.mid_block.resnets.1.conv2.weight": "decoder.mid.block_2.conv2.weight",
    "decoder.up_blocks.0.resnets.2.norm1.weight": "decoder.up.3.block.2.norm1.weight",
    "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.3.upsample.conv.weight",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


def test_vae_map_is_one_to_one_with_known_names():
    found = compvis.component_names("sd1", "vae", PUBLISHED["sd1"]["vae"])
    assert len(found) == len(set(found.values())) == 248
    assert {name: found[name] for name in VAE_PAIRS} == {name: compvis.VAE + place for name, place in VAE_PAIRS.items()}
    assert len(compvis.component_names("sd1", "vae", new_autoencoder().config)) == 164


def test_vae_map_agrees_with_the_conversion_in_diffusers():
    config = PUBLISHED["sd1"]["vae"]
    found = compvis.component_names("sd1", "vae", config)
    marks = {key: torch.full((1,), k) for k, key in enumerate(found.values())}
    for key in marks:
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key):
            marks[key] = marks[key].reshape(1, 1, 1, 1)
    theirs = single_file_utils.convert_ldm_vae_checkpoint(dict(marks), config)
    assert {name: int(mark) for name, mark in theirs.items()} == {name: int(marks[key]) for name, key in found.items()}


# -- text encoders
# --------------------------------------------------------------------------------------------------------


def test_clip_names_are_those_of_every_published_file():
    found = compvis.component_names("sd1", "text_encoder", PUBLISHED["sd1"]["text_encoder"])
    assert len(found) == len(set(found.values())) == 196
    inner = {name.removeprefix("text_model."): key for name, key in found.items()}
    assert inner["final_layer_norm.bias"] == "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    key = "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc2.weight"
    assert key in compvis.component_names("sdxl", "text_encoder", PUBLISHED["sdxl"]["text_encoder"]).values()


def test_open_clip_names_are_those_of_every_published_file():
    two = compvis.component_names("sd2", "text_encoder", PUBLISHED["sd2"]["text_encoder"])
    xl = compvis.component_names("sdxl", "text_encoder_2", PUBLISHED["sdxl"]["text_encoder_2"])
    layer = 8 + 2 + 2  # weights and biases of four layers and two norms, and the two fused tensors
    assert len(set(two.values())) == 23 * layer + 4
    assert len(set(xl.values())) == 32 * layer + 5
    for key in [
        "positional_embedding",
        "token_embedding.weight",
        "ln_final.weight",
        "transformer.resblocks.22.attn.in_proj_weight",
        "transformer.resblocks.0.attn.in_proj_bias",
        "transformer.resblocks.5.attn.out_proj.weight",
        "transformer.resblocks.5.ln_2.bias",
        "transformer.resblocks.5.mlp.c_fc.weight",
        "transformer.resblocks.5.mlp.c_proj.bias",
    ]:
        assert f"cond_stage_model.model.{key}" in two.values()
        assert f"conditioner.embedders.1.model.{key}" in xl.values()
    assert xl["text_projection.weight"] == "conditioner.embedders.1.model.text_projection"


def test_an_answer_is_the_caller_s_own_and_of_its_own_config():
    """What was found once is kept, by family, component and config."""
    config = PUBLISHED["sd1"]["vae"]
    first = compvis.component_names("sd1", "vae", config)
    whole = dict(first)
    first.clear()
    assert compvis.component_names("sd1", "vae", config) == whole
    deeper = compvis.component_names("sd1", "vae", {**config, "layers_per_block": config["layers_per_block"] + 1})
    assert deeper.keys() > whole.keys()
    text = PUBLISHED["sd1"]["text_encoder"]
    assert compvis.component_names("sd1", "text_encoder", text) != compvis.component_names("sdxl", "text_encoder", text)
