"""The features of any CLIP that loads are the model's own, in both towers and in every shortcut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

import mu
from mu.core.errors import ModelError
from mu.data.canvas import rendered_pairs
from mu.models.canvas import architecture
from mu.models.clip import ClipModel
from mu.models.formats.open_clip_names import open_clip_map
from mu.models.formats.packing import pack
from mu.models.quiet import quiet_libraries
from mu.models.towers import Tower

ADDED = "<my-cat>"
TEXTS = ["a star image", f"a {ADDED} image in neon style", f"{ADDED}", "a portrait of Ada Stone in pop art style"]


def new_clip(added: bool, **text: Any) -> tuple[CLIPModel, Any]:
    """A small CLIP with random weights and its tokenizer, which may know a token of textual inversion."""
    tokenizer = architecture.new_tokenizer()
    if added:
        tokenizer.add_tokens([ADDED])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = architecture.new_clip(tokenizer)
    model.config.text_config.update(text)
    return CLIPModel(model.config).eval(), tokenizer


def saved(folder: Path, model: CLIPModel, tokenizer: Any) -> Path:
    with quiet_libraries():
        for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=64)):
            part.save_pretrained(folder)
    return folder


def legacy(folder: Path) -> Path:
    return saved(folder, *new_clip(True, eos_token_id=2))


def legacy_without_added_tokens(folder: Path) -> Path:
    return saved(folder, *new_clip(False, eos_token_id=2))


def legacy_with_a_padding_token_of_its_own(folder: Path) -> Path:
    model, tokenizer = new_clip(True, eos_token_id=2)
    tokenizer.pad_token = ADDED
    return saved(folder, model, tokenizer)


def stated(folder: Path) -> Path:
    return saved(folder, *new_clip(True))


def open_clip(folder: Path) -> Path:
    model, tokenizer = new_clip(True)
    tokenizer.save_pretrained(folder)
    torch.save(pack(model.state_dict(), open_clip_map(model.state_dict())), folder / "epoch_1.pt")
    return folder / "epoch_1.pt"


def openai(folder: Path) -> Path:
    model, tokenizer = new_clip(False)
    state = pack(model.state_dict(), open_clip_map(model.state_dict()))
    numbers = {"input_resolution": 64, "context_length": architecture.Sizes().tokens, "vocab_size": len(tokenizer)}
    tokenizer.save_pretrained(folder)
    torch.save(state | {name: torch.tensor(number) for name, number in numbers.items()}, folder / "ViT-B-32.pt")
    return folder / "ViT-B-32.pt"


def canvas(_: Path) -> str:
    return "canvas-clip"


def own(features: Any) -> Tensor:
    """What the library returned, a tensor or an output that holds one: unit vectors."""
    return F.normalize(features if isinstance(features, Tensor) else features.pooler_output, dim=-1)


LARGEST, END = "largest", "end"


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (legacy, LARGEST),
        (legacy_without_added_tokens, LARGEST),
        (legacy_with_a_padding_token_of_its_own, LARGEST),
        (stated, END),
        (open_clip, LARGEST),
        (openai, END),
        (canvas, END),
    ],
)
def test_features_are_the_models_own(kind: Callable[[Path], Any], rule: str, tmp_path: Path) -> None:
    clip = mu.load(kind(tmp_path), device="cpu")
    assert isinstance(clip, ClipModel)
    images = [pair.image() for pair in rendered_pairs(2, 5)]
    options = {"padding": "max_length", "max_length": architecture.Sizes().tokens, "return_tensors": "pt"}
    tokens, pixels = clip.tokenizer(TEXTS, **options).input_ids, clip.preprocess(images)
    language, vision = Tower(clip, "language"), Tower(clip, "vision")
    with torch.no_grad():
        wanted = own(clip.model.get_text_features(input_ids=tokens))
        for found in (clip.encode_text(TEXTS), language.features(language.texts(TEXTS))):
            assert torch.allclose(found, wanted, atol=1e-5)
        alone = torch.cat([clip.encode_text([text]) for text in TEXTS])
        assert torch.allclose(alone, wanted, atol=1e-5), "whatever else is in the batch"
        shown = own(clip.model.get_image_features(pixel_values=pixels))
        for found in (clip.encode_images(images), vision.features(vision.images(images))):
            assert torch.allclose(found, shown, atol=1e-5)

        places = {LARGEST: tokens.argmax(1), END: (tokens == clip.tokenizer.eos_token_id).int().argmax(1)}
        states = clip.model.text_model(input_ids=tokens).last_hidden_state
        read = {name: own(clip.model.text_projection(states[range(len(TEXTS)), at])) for name, at in places.items()}
        assert torch.allclose(read[rule], wanted, atol=1e-5)
        (other,) = {LARGEST, END} - {rule}
        if not torch.equal(places[LARGEST], places[END]):
            assert (read[other] * wanted).sum(1).min() < 0.99, "control: the other rule gives other features"
    assert (ADDED in clip.tokenizer.get_vocab()) == (not torch.equal(places[LARGEST], places[END])), "control"


def test_a_folder_without_a_preprocessor_is_prepared_by_its_vision_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = saved(tmp_path / "whole", *new_clip(False))
    bare = saved(tmp_path / "bare", *new_clip(False))
    (bare / "preprocessor_config.json").unlink()
    image = Image.new("RGB", (90, 70), (255, 0, 0))
    image.paste((0, 90, 250), (30, 20, 60, 90))
    found: dict[Path, Tensor] = {}
    for folder in (whole, bare):
        caplog.clear()
        clip = mu.load(folder, device="cpu")
        assert isinstance(clip, ClipModel)
        found[folder] = clip.preprocess([image])
        told = [record.getMessage() for record in caplog.records if "preprocessor_config.json" in record.getMessage()]
        assert len(told) == (folder == bare) and all("OpenAI" in line and "64" in line for line in told)
    assert torch.equal(found[bare], found[whole])
    wanted = image.resize((82, 64), Image.Resampling.BICUBIC).crop((9, 0, 73, 64)).getpixel((5, 5))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert torch.allclose(found[bare][0, :, 5, 5], (torch.tensor(wanted) / 255 - mean) / std, atol=1e-5)
    (bare / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="copy it again"):
        mu.load(bare, device="cpu")
