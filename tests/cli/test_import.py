"""``mu import`` as a user meets it, and where other verbs point to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mu
from mu.edits.edit import shifted
from mu.edits.files import open_edit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter

KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def uce(tiny: DiffusionModel, tmp_path: Path) -> Path:
    """One changed matrix of the UNet, by a difference of rank 1."""
    weight = find_parameter(tiny, f"unet.{KEY}")
    save_file({KEY: weight + torch.outer(torch.ones(len(weight)), weight[0])}, tmp_path / "uce.safetensors")
    return tmp_path / "uce.safetensors"


def test_published_weights_in_a_bank(
    uce: Path, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path, cli: Any
) -> None:
    out = tmp_path / "edit.safetensors"
    done = cli("import", uce, "--model", tiny_folder, "--concept", "Van Gogh", "--method", "uce", "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    edit = open_edit(out)
    assert (edit.concept(), edit.info.method, edit.parameters) == ("Van Gogh", "uce", [f"unet.{KEY}"])
    assert "rank 1" in " ".join(cli("info", out).stdout.split())

    again = cli("import", uce, "--model", tiny_folder, "--out", out)
    assert again.exit_code == 2 and "--overwrite" in again.stderr and open_edit(out).concept() == "Van Gogh"
    dense = cli("import", uce, "--model", tiny_folder, "--error", 0, "--out", out, "--overwrite")
    assert dense.exit_code == 0 and json.loads(cli("info", out, "--json").stdout)["kind"] == "WeightEdit"

    assert cli("bank", "add", out, "--bank", tmp_path / "bank").exit_code == 0
    assert cli("bank", "restore", "uce", "--bank", tmp_path / "bank").exit_code == 0


def test_what_is_refused_leaves_nothing(
    uce: Path, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path, cli: Any
) -> None:
    same, odd = tmp_path / "same.safetensors", tmp_path / "odd.safetensors"
    save_file({KEY: find_parameter(tiny, f"unet.{KEY}").detach()}, same)
    save_file({"mid_block.adapter.weight": torch.ones(1)}, odd)
    before = sorted(tmp_path.iterdir())
    rows = {
        "nothing to import": (same, "--model", tiny_folder, "--out", tmp_path / "e.safetensors"),
        "'mid_block.adapter.weight'": (odd, "--model", tiny_folder, "--out", tmp_path / "e.safetensors"),
        ".safetensors path": (uce, "--model", tiny_folder, "--out", tmp_path / "e.pt"),
        "does not exist": (tmp_path / "none.pt", "--model", tiny_folder, "--out", tmp_path / "e.safetensors"),
        "is what the result is made of": (uce, "--model", tiny_folder, "--out", uce, "--overwrite"),
        "does not make images": (uce, "--model", "canvas-clip", "--out", tmp_path / "e.safetensors"),
        "exclude each other": (
            uce, "--model", tiny_folder, "--rank", 1, "--error", 0.1, "--out", tmp_path / "e.safetensors"
        ),
    }  # fmt: skip
    for told, words in rows.items():
        done = cli("import", *words)
        assert done.exit_code == 2 and told in done.stderr.splitlines()[-1], (told, done.output)
        assert sorted(tmp_path.iterdir()) == before


def test_other_verbs_point_to_it(uce: Path, tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path, cli: Any) -> None:
    torch.save({"unet": {KEY: torch.ones(2)}}, tmp_path / "delta.bin")
    save_file(dict(tiny.components["text_encoder"].state_dict()), tmp_path / "te.safetensors")
    tiny.components["text_encoder"].save_pretrained(tmp_path / "te")
    common = ("--prompt", "x", "--out", tmp_path / "images")
    rows = [
        (uce, ("generate", "--edit", uce, *common)),
        (tmp_path / "delta.bin", ("generate", "--edit", tmp_path / "delta.bin", *common)),
        (tiny_folder, ("generate", "--edit", tiny_folder, *common)),
        (uce, ("merge", uce, "--format", "diffusers", "--out", tmp_path / "images")),
        (uce, ("bank", "add", uce, "--bank", tmp_path / "images")),
        (uce, ("generate", "--model", uce, *common)),
        (tmp_path / "te.safetensors", ("generate", "--model", tmp_path / "te.safetensors", *common)),
        (tmp_path / "te", ("generate", "--model", tmp_path / "te", *common)),
    ]
    for place, words in rows:
        done = cli(*words)
        assert done.exit_code == 2 and done.stderr.count("error: ") == 1, done.output
        assert f"mu import {place.name} --model BASE" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "images").exists()


def test_a_text_encoder_keeps_its_images(tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path, cli: Any) -> None:
    """The images of the base with the edit are those of the model that was published."""
    name = "text_encoder.embeddings.token_embedding.weight"

    def image() -> torch.Tensor:
        return mu.generate(tiny, ["a star"], seeds=[1], steps=1)

    base = image()
    with shifted(tiny, {name: find_parameter(tiny, name).detach() * 0.5}):
        tiny.components["text_encoder"].save_pretrained(tmp_path / "adv")
        published = image()
    edit = tmp_path / "edit.safetensors"
    assert cli("import", tmp_path / "adv", "--model", tiny_folder, "--out", edit).exit_code == 0
    with mu.open_edit(edit).applied(tiny):
        assert torch.equal(image(), published) and not torch.equal(published, base)
    assert torch.equal(image(), base)
