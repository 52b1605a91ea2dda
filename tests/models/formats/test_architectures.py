"""The published architectures: their sizes and layers, and models built of configs, with weights and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from mu.core.errors import ModelError
from mu.models.formats import architectures

PUBLISHED = {
    "sd1": architectures.stable_diffusion_1(),
    "sd2": architectures.stable_diffusion_2(),
    "sdxl": architectures.stable_diffusion_xl(),
}
SMALL_TEXT = {
    "architectures": ["CLIPTextModel"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 6, "bos_token_id": 18, "eos_token_id": 19,
}  # fmt: skip


def adapted(config: dict[str, Any]) -> tuple[int, int]:
    """Linear and convolutional layers inside transformers, and the numbers in rank-1 factors of them."""
    transformers = [m for m in architectures.blueprint(config).modules() if type(m).__name__ == "Transformer2DModel"]
    layers = [m for t in transformers for m in t.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    return len(layers), sum(sum(layer.weight.shape[:2]) for layer in layers)


@pytest.mark.parametrize(
    ("family", "layers", "numbers"), [("sd1", 192, 423_936), ("sd2", 192, 432_128), ("sdxl", 722, 2_659_840)]
)
def test_published_unets_have_the_layers_that_papers_count(family: str, layers: int, numbers: int):
    assert adapted(PUBLISHED[family]["unet"]) == (layers, numbers)


def test_the_count_sees_another_width():
    assert adapted({**PUBLISHED["sd1"]["unet"], "cross_attention_dim": 1024}) != (192, 423_936)


SIZES = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_models_have_the_published_sizes(family: str):
    blueprints = {
        part: architectures.blueprint(config) for part, config in PUBLISHED[family].items() if part != "scheduler"
    }
    assert {part: sum(p.numel() for p in model.parameters()) for part, model in blueprints.items()} == SIZES[family]


def test_the_schedulers_of_a_family_share_the_schedule_and_differ_in_the_target():
    base, large = (architectures.stable_diffusion_2(kind)["scheduler"] for kind in ("epsilon", "v_prediction"))
    base, large = architectures.new_component(base), architectures.new_component(large)
    assert torch.equal(base.alphas_cumprod, large.alphas_cumprod)
    assert (base.config.prediction_type, large.config.prediction_type) == ("epsilon", "v_prediction")


@pytest.mark.parametrize(
    "config", [{}, {"_class_name": "NoSuchModel"}, {"_class_name": "UNet2DConditionModel", "layers_per_block": "x"}]
)
def test_a_config_of_nothing_is_refused(config: dict[str, Any]):
    with pytest.raises(ModelError, match="no model can be built"):
        architectures.new_component(config)


def test_a_blueprint_has_no_weights_and_counts_the_positions_of_the_text():
    blueprint = architectures.blueprint(SMALL_TEXT)
    assert all(parameter.is_meta for parameter in blueprint.parameters())
    assert {name: buffer.tolist() for name, buffer in blueprint.named_buffers()} == {
        "embeddings.position_ids": [[*range(6)]]
    }
    with torch.device("meta"):
        assert all(buffer.is_meta for buffer in architectures.new_component(SMALL_TEXT).buffers()), "control"


def test_old_text_encoder_folders_still_load(tmp_path: Path):
    """Folders of transformers 4 have the level ``text_model`` in their names, the module tree of 5 has not."""
    text = architectures.new_component(SMALL_TEXT)
    text.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    again = CLIPTextModel.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in text.state_dict().items())
    assert not torch.equal(
        architectures.new_component(SMALL_TEXT).state_dict()[name := next(iter(text.state_dict()))],
        text.state_dict()[name],
    )
