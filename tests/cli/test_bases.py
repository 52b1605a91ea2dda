"""Which model an edit is put on: the one that it was found on, unless another is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mu.models.loader
from mu.edits.edit import EditInfo, described
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.parameters import find_parameter

PARAMETER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def edit_of(base: Any, path: Path, concept: str = "neon") -> Path:
    """An edit that is as any that was found on the model ``base``."""
    model: Any = load(base, device="cpu")
    shift = torch.full_like(find_parameter(model, PARAMETER), 0.01)
    WeightEdit({PARAMETER: shift}, EditInfo("uce", (concept,), **described(model, [PARAMETER]))).save(path)
    return path


def lora(path: Path, out: int, inner: int) -> Path:
    """A LoRA of another tool, which states no base."""
    layer = PARAMETER.removeprefix("unet.").removesuffix(".weight")
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(1, inner), f"{layer}.lora_B.weight": torch.ones(out, 1) * 0.01}, path
    )
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were loaded."""
    names: list[str] = []
    real = mu.models.loader.load

    def record(name: Any, **how: Any) -> Any:
        names.append(str(name))
        return real(name, **how)

    for home in (mu.models, mu.models.loader):
        monkeypatch.setattr(home, "load", record)
    return names


def verbs(edits: list[Path], out: Path) -> dict[str, tuple[Any, ...]]:
    flags = [word for edit in edits for word in ("--edit", edit)]
    return {
        "generate": ("generate", "--prompt", "a star", "--steps", 1, *flags, "--out", out),
        "merge": ("merge", *edits, "--format", "unet", "--out", out.with_suffix(".safetensors")),
    }


@pytest.mark.parametrize("verb", ["generate", "merge"])
def test_an_edit_goes_on_its_own_base(
    verb: str, tiny_folder: Path, tmp_path: Path, cli: Any, loaded: list[str]
) -> None:
    edit = edit_of(tiny_folder, tmp_path / "edit.safetensors")
    loaded.clear()
    done = cli(*verbs([edit], tmp_path / "out")[verb])
    assert done.exit_code == 0, done.output
    assert loaded == [str(tiny_folder)] and "found on other weights" not in done.stderr
    other = cli(*verbs([edit], tmp_path / "other")[verb], "--model", "canvas")
    assert other.exit_code == 0 and loaded[-1] == "canvas", "control: a model that is named is used"
    assert "found on other weights" in other.stderr


@pytest.mark.parametrize("verb", ["generate", "merge"])
@pytest.mark.parametrize("case", ["two bases", "no base", "base that is gone", "no name"])
def test_another_model_is_never_put_in_its_place(
    verb: str, case: str, tiny_folder: Path, tmp_path: Path, cli: Any
) -> None:
    copied = Path(shutil.copytree(tiny_folder, tmp_path / "copied"))
    edits, more = [edit_of(copied, tmp_path / "edit.safetensors")], ()
    match case:
        case "two bases":
            edits.append(edit_of("canvas", tmp_path / "star.safetensors", "star"))
            expected = "'canvas': choose one with --model"
        case "no base":
            edits = [lora(tmp_path / "lora.safetensors", 320, 768)]
            expected = "in 'canvas' but (320, 768) in the edit"
        case "base that is gone":
            shutil.rmtree(copied)
            expected = "does not exist"
        case _:
            more, expected = ("--model", ""), "name is empty"
    out = tmp_path / "out"
    done = cli(*verbs(edits, out)[verb], *more)
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.strip().split("\nerror")  # the printer may break a line
    assert expected in " ".join(line.split())
    assert not out.exists() and not out.with_suffix(".safetensors").exists()


@pytest.mark.parametrize("verb", ["generate", "merge"])
def test_an_edit_that_states_no_base_goes_on_canvas_if_it_fits(verb: str, tmp_path: Path, cli: Any) -> None:
    edit = lora(tmp_path / "lora.safetensors", 128, 192)
    assert cli(*verbs([edit], tmp_path / "out")[verb]).exit_code == 0


def test_without_edits_images_are_those_of_canvas(tmp_path: Path, cli: Any, loaded: list[str]) -> None:
    assert cli("generate", "--prompt", "a star", "--steps", 1, "--out", tmp_path / "out").exit_code == 0
    assert loaded == ["canvas"]
