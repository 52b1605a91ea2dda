"""What mu cannot run rightly is refused when it is loaded: one line that names the model and what is the matter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mu
from mu.cli import app
from mu.core.errors import ModelError
from mu.models.diffusion import DiffusionModel, face
from mu.models.diffusion.border import UNUSUAL_INPUTS
from mu.models.places import EMBEDDED


def edited(folder: Path, file: str, **changes: Any) -> None:
    """``changes`` in the JSON ``file`` of ``folder``; None takes a key out."""
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def index(kind: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder, "model_index.json", _class_name=kind)


def tokenizer(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder, "tokenizer/tokenizer_config.json", **changes)


def scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder, "scheduler/scheduler_config.json", **changes)


def without_vocabulary(folder: Path) -> None:
    """As ``--include '*.safetensors' '*config.json'`` downloads it: transformers makes a tokenizer of two tokens."""
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


def one_token_more(folder: Path) -> None:
    """An added token whose embedding was never made."""
    tokens = StableDiffusionPipeline.from_pretrained(folder).tokenizer
    tokens.add_tokens(["<my-cat>"])
    tokens.save_pretrained(folder / "tokenizer")


def network(part: str, **changes: Any) -> Callable[[Path], None]:
    """``changes`` in the config of a part; None is null there."""

    def change(folder: Path) -> None:
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


unet, vae = partial(network, "unet"), partial(network, "vae")


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def tensors(part: str, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    """``change`` is asked for each tensor of a part; None takes it out."""

    def rewrite(folder: Path) -> None:
        file = folder / part / WEIGHTS[part]
        found = {name: change(name, tensor) for name, tensor in load_file(file).items()}
        save_file({name: tensor for name, tensor in found.items() if tensor is not None}, file, {"format": "pt"})

    return rewrite


def without(part: str, ending: str) -> Callable[[Path], None]:
    return tensors(part, lambda name, tensor: None if name.endswith(ending) else tensor)


def holding(part: str, ending: str, value: float) -> Callable[[Path], None]:
    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith(ending):
            tensor.view(-1)[-1] = value
        return tensor

    return tensors(part, change)


def in_8_bits(part: str, ending: str) -> Callable[[Path], None]:
    return tensors(part, lambda name, tensor: tensor.to(torch.uint8) if name.endswith(ending) else tensor)


def listing(part: str) -> Callable[[Path], None]:
    return lambda folder: edited(folder, "model_index.json", **{part: ["diffusers", "X"]})


def shards(place: str) -> Callable[[Path], None]:
    """The weights of the UNet lie at ``place``, and an index beside its config says so."""

    def move(folder: Path) -> None:
        file = folder / "unet" / WEIGHTS["unet"]
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(file), place)}
        (folder / "unet" / f"{file.name}.index.json").write_text(json.dumps(index))
        if not place.startswith("/"):
            file.rename(folder / "unet" / place)

    return move


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FLUX": (index("FluxPipeline"), "FluxPipeline"),
    "PixArt": (index("PixArtAlphaPipeline"), "PixArtAlphaPipeline"),
    "ControlNet": (index("StableDiffusionControlNetPipeline"), "StableDiffusionControlNetPipeline"),
    "code of its own": (index(["pipeline", "MyPipeline"]), "MyPipeline"),
    "no class": (index(None), "_class_name"),
    "stub of a tokenizer": (without_vocabulary, "tokenizer"),
    "tokenizer without a length": (tokenizer(model_max_length=None), "model_max_length"),
    "token without embedding": (one_token_more, "tokenizer"),
    "tokenizer with no room": (tokenizer(model_max_length=2), "model_max_length"),
    "tokenizer with a length below zero": (tokenizer(model_max_length=-77), "model_max_length"),
    "tokenizer with an absurd length": (tokenizer(model_max_length=10**40), "model_max_length"),
    "no size": (unet(sample_size=None), "sample_size"),
    "absurd size": (unet(sample_size=10**9), "sample_size"),
    "size in words": (unet(sample_size="large"), "sample_size"),
    "two sizes": (unet(sample_size=[8, 8]), "sample_size"),
    "UNet without a tensor": (without("unet", "conv_out.weight"), "conv_out.weight"),
    "autoencoder without a tensor": (without("vae", "decoder.conv_in.bias"), "decoder.conv_in.bias"),
    "text encoder without a tensor": (without("text_encoder", "layers.0.mlp.fc1.weight"), "layers.0.mlp.fc1.weight"),
    "NaN in the UNet": (holding("unet", "conv_out.weight", float("nan")), "unet.conv_out.weight"),
    "infinity in the autoencoder": (holding("vae", "decoder.conv_in.bias", float("-inf")), "vae.decoder.conv_in.bias"),
    "NaN in the text encoder": (holding("text_encoder", "final_layer_norm.bias", float("nan")), "final_layer_norm"),
    "whole numbers in the UNet": (in_8_bits("unet", "conv_in.weight"), "conv_in.weight in 8-bit whole numbers"),
    "whole numbers in the text encoder": (in_8_bits("text_encoder", "final_layer_norm.bias"), "8-bit whole numbers"),
    "part outside the folder": (listing("../victim"), "'../victim'"),
    "part anywhere": (listing("/anywhere"), "'/anywhere'"),
    "part in a folder of a part": (listing("unet/inner"), "'unet/inner'"),
    "weights outside the folder": (shards("../stolen.safetensors"), "'../stolen.safetensors'"),
    "weights anywhere": (shards("/anywhere/stolen.safetensors"), "'/anywhere/stolen.safetensors'"),
    "latents without a scale": (vae(scaling_factor=None), "scaling_factor"),
    "latents of scale zero": (vae(scaling_factor=0.0), "scaling_factor"),
    "latents with a shift in words": (vae(shift_factor="none"), "shift_factor"),
    "means of too few channels": (vae(latents_mean=[0.1] * 3, latents_std=[1.0] * 4), "latents_mean"),
    "a deviation of zero": (vae(latents_mean=[0.1] * 4, latents_std=[0.0] * 4), "latents_std"),
    "more timesteps than memory": (scheduler(num_train_timesteps=10**9), "num_train_timesteps"),
    "unknown prediction": (scheduler(prediction_type="flow_prediction"), "flow_prediction"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_refused_by_name(case: str, tiny_folder: Path, tmp_path: Path) -> None:
    change, named = FOLDERS[case]
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    assert isinstance(mu.load(folder, device="cpu"), DiffusionModel), "control: the folder opens"
    change(folder)
    asked = ["generate", "--prompt", "a star", "--model", str(folder), "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, asked, prog_name="mu")
    assert told.exit_code == 2
    assert told.stdout == "" and len(told.stderr.strip().splitlines()) == 1
    assert named in told.stderr
    assert not (tmp_path / "out").exists()


def small_unet(**changes: Any) -> UNet2DConditionModel:
    sizes = {
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    return UNet2DConditionModel(**{"cross_attention_dim": 192, **sizes, **blocks, **changes})


UNETS: dict[str, tuple[dict[str, Any], str]] = {
    "inpainting": ({"in_channels": 9}, "9 channels"),
    "InstructPix2Pix": ({"in_channels": 8}, "8 channels"),
    "upscaler": ({"num_class_embeds": 10}, "num_class_embeds"),
    "unCLIP": ({"class_embed_type": "timestep"}, "class_embed_type"),
    "LCM": ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
    "Kandinsky": ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 16}, "encoder_hid_dim_type"),
    "image variations": ({"addition_embed_type": "text"}, "addition_embed_type"),
    "another text encoder": ({"cross_attention_dim": 16}, "16"),
}


@pytest.mark.parametrize("case", UNETS)
def test_networks_that_need_more_than_a_prompt_are_refused(case: str, tiny: DiffusionModel) -> None:
    changes, named = UNETS[case]

    def pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
        parts = {**tiny.pipeline.components, "unet": unet}
        return StableDiffusionPipeline(**parts, requires_safety_checker=False)

    assert face(pipeline(small_unet()), "usual").text_width == 192, "control"
    with pytest.raises(ModelError, match=named) as caught:
        face(pipeline(small_unet(**changes)), "unusual")
    assert "'unusual'" in str(caught.value) and "\n" not in str(caught.value)


def test_every_unusual_input_is_tried() -> None:
    tried = {name for changes, _ in UNETS.values() for name in changes}
    assert set(UNUSUAL_INPUTS) <= tried


def test_a_model_without_its_first_text_encoder_is_refused(tiny_xl: DiffusionModel) -> None:
    """As SDXL's refiner is."""
    pipeline = type(tiny_xl.pipeline)(**{**tiny_xl.pipeline.components, "text_encoder": None, "tokenizer": None})
    with pytest.raises(ModelError, match="text_encoder"):
        face(pipeline, "refiner")


def test_a_part_of_a_pipeline_says_what_it_is(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="UNet2DConditionModel"):
        mu.load(tiny_folder / "unet")
    with pytest.raises(ModelError, match="clip_text_model"):
        mu.load(tiny_folder / "text_encoder")


@pytest.mark.parametrize("name", ["canvas-clip", "canvas-vlm"])
def test_the_tokenizers_of_other_models_are_looked_at_too(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED[name], tmp_path / "model"))
    mu.load(folder, device="cpu")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        mu.load(folder, device="cpu")


def test_statistics_of_the_autoencoder_are_used(tiny: DiffusionModel) -> None:
    """As the pipeline of SDXL does: latents are normalised by channel where the autoencoder says how."""
    vae = AutoencoderKL.from_config(
        {**tiny.vae.config, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 2.0, 1.0, 0.7]}
    )
    vae.load_state_dict(tiny.vae.state_dict())
    model = face(
        StableDiffusionPipeline(**{**tiny.pipeline.components, "vae": vae}, requires_safety_checker=False), "normalised"
    )
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(vae.config[part]).reshape(1, 4, 1, 1) for part in ("latents_mean", "latents_std"))
    wanted = vae.decode(latents * std / vae.config.scaling_factor + mean).sample / 2 + 0.5
    assert torch.allclose(model.decode(latents), wanted.clamp(0, 1), atol=1e-5)
    assert not torch.allclose(tiny.decode(latents), wanted.clamp(0, 1), atol=1e-2), (
        "control: without them it is another image"
    )
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    own = vae.encode(images * 2 - 1).latent_dist.mean
    assert torch.allclose(model.encode_images(images), (own - mean) * vae.config.scaling_factor / std, atol=1e-5)


def text_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder, "text_encoder/config.json", **changes)


@pytest.mark.parametrize(
    "change",
    [
        text_config(max_position_embeddings=10**12),
        text_config(num_hidden_layers=10**7),
        unet(transformer_layers_per_block=[10**6, 1]),
        unet(block_out_channels=[10**30, 64]),
    ],
)
def test_a_config_beyond_any_machine_is_refused_at_once(
    change: Callable[[Path], None], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    change(folder)
    with pytest.raises(ModelError, match=r"config\.json has \w+ = 10+, which no machine holds"):
        mu.load(folder, device="cpu")


@pytest.mark.parametrize(
    "index",
    [[1, 2], {"_class_name": "StableDiffusionPipeline"}, {"unet": None}, {"vae": "x"}, {"scheduler": [None, None]}],
)
def test_an_index_that_does_not_say_what_the_parts_are_is_one_line(
    index: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    whole = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    changed = {**whole, **index} if isinstance(index, dict) and "_class_name" not in index else index
    (folder / "model_index.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model_index\.json (does not say what its \w+ is|names no _class_name)"):
        mu.load(folder, device="cpu")


def test_tensors_that_the_model_does_not_have_are_told(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mu.load(tiny_folder, device="cpu")
    assert "not in the model" not in caplog.text, "control"
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    file = folder / "unet" / WEIGHTS["unet"]
    save_file(load_file(file) | {"control.weight": torch.zeros(1)}, file, {"format": "pt"})
    mu.load(folder, device="cpu")
    assert "1 tensors" in caplog.text and "control.weight" in caplog.text and "unet" in caplog.text


@pytest.mark.parametrize("name", ["canvas-clip", "canvas-vlm"])
def test_clip_and_llava_without_a_tensor_or_with_nan_are_refused_and_a_variant_opens(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EMBEDDED[name], tmp_path / "model"))
    file = folder / "model.safetensors"
    whole = load_file(file)
    key = next(name for name in whole if name.endswith("layers.0.mlp.fc1.weight") and "vision" in name)
    save_file({name: tensor for name, tensor in whole.items() if name != key}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the tensor \S*layers\.0\.mlp\.fc1\.weight"):
        mu.load(folder, device="cpu")
    save_file(whole | {key: torch.full_like(whole[key], float("nan"))}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="not finite in vision_model"):
        mu.load(folder, device="cpu")
    save_file(whole, file, {"format": "pt"})
    file.rename(folder / "model.fp16.safetensors")
    assert mu.load(folder, device="cpu").name == str(folder)


def test_an_autoencoder_with_the_names_of_before_2023_opens(
    tiny_v: DiffusionModel, tmp_path: Path, snapshot: Callable[[Any], str]
) -> None:
    tiny_v.pipeline.save_pretrained(tmp_path)
    file, renamed = tmp_path / "vae" / WEIGHTS["vae"], {}
    for name, tensor in load_file(file).items():
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert any(".query." in name for name in renamed), "control"
    save_file(renamed, file, {"format": "pt"})
    assert snapshot(mu.load(tmp_path, device="cpu")) == snapshot(tiny_v)


def test_numbers_too_large_for_a_precision_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    holding("unet", "conv_out.weight", 1e6)(folder)
    mu.load(folder, device="cpu")
    with pytest.raises(ModelError, match=r"unet\.conv_out\.weight.*float16"):
        mu.load(folder, device="cpu", precision="float16")


@pytest.mark.parametrize("variants", [("fp16",), ("fp16", "ema")])
def test_a_folder_with_one_variant_opens_and_one_with_two_is_refused(
    variants: tuple[str, ...], tiny_folder: Path, tiny: DiffusionModel, tmp_path: Path, snapshot: Callable[[Any], str]
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    for part, name in WEIGHTS.items():
        stem, _, end = name.rpartition(".")
        for variant in variants:
            shutil.copy(folder / part / name, folder / part / f"{stem}.{variant}.{end}")
        (folder / part / name).unlink()
    if len(variants) == 1:
        assert snapshot(mu.load(folder, device="cpu")) == snapshot(tiny)
    else:
        with pytest.raises(ModelError, match="ema, fp16"):
            mu.load(folder, device="cpu")
