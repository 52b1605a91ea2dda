"""The stories of docs/stories, typed as they stand, on small models: the same commands, with other names and sizes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mu
from mu.cli import app
from mu.core.run import RunDirectory
from mu.evaluation.suites.canvas import seems_embedded
from mu.models import EMBEDDED
from tests.conftest import ROOT

STORIES = ROOT / "docs" / "stories"
SMALL = {"evaluate": "--seeds 1 --everyday 2 --steps 2", "erase": "--no-images", "generate": "--steps 2"}
NAMES = {"clip:openai/clip-vit-large-patch14": "clip:canvas-clip", "oil painting": "sketch", "pencil sketch": "photo"}
"""What a reader downloads, and what stands for it here; words that the embedded world knows."""


def commands(page: str) -> list[list[str]]:
    """The commands of the page's blocks, in order."""
    text = (STORIES / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert all(line.startswith("mu ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def typed(words: list[str]) -> str:
    """Type one command with small sizes; its output."""
    small = shlex.split(SMALL.get(words[0], ""))
    if "--images" in words:
        small = ["--seeds", "1"]
    elif "unlearncanvas" in words and words[0] == "evaluate":
        small = ["--seeds", "1", "--steps", "2"]
    ended = CliRunner().invoke(app, [*(NAMES.get(word, word) for word in words), *small], catch_exceptions=False)
    assert ended.exit_code == 0, (words, ended.output, ended.stderr)
    return ended.output


def another(folder: Path) -> None:
    """A Stable Diffusion of the user's own: a folder whose last layer is not the embedded model's.

    So what is told by a model's name or weights, like the default suite, is that of any other model."""
    shutil.copytree(EMBEDDED["canvas"], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.weight"] *= 1.05
    save_file(tensors, weights)
    assert not seems_embedded(mu.load(folder, device="cpu")) and seems_embedded(mu.load("canvas", device="cpu"))


def test_two_methods_by_the_protocol_of_unlearncanvas(place: Path, timm_vit: Any, small_search: None) -> None:
    """With random classifiers of the published layout, two themes and two objects."""
    another(place / "style50")
    torch.save({"model_state_dict": timm_vit(51)}, place / "style50.pth")
    torch.save({"model_state_dict": timm_vit(20)}, place / "style50_cls.pth")
    esd, uce, first, second, compare, theirs = commands("compare.md")
    typed([*esd, "--set", "train.iterations=1", "--set", "denoising_steps=2"])
    typed(uce)
    narrow = "--themes Van_Gogh,Monet --objects Cats,Dogs".split()
    typed([*first, *narrow])
    typed([*second, *narrow])
    scores = RunDirectory("outputs/uce").read_scores()["unlearncanvas"]["edited"]
    assert {"UA", "IRA", "CRA"} <= {score.name for score in scores}
    assert "ESD" in typed(compare)
    shutil.copytree("outputs/uce/answers/unlearncanvas/edited", "eval_results/Van_Gogh")
    typed([*theirs, *narrow])
    again = RunDirectory("outputs/theirs").read_scores()["unlearncanvas"]["edited"]
    assert [score.value for score in again if score.name == "UA"] == [s.value for s in scores if s.name == "UA"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_phrasings: None) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_concept_out_of_a_model_that_you_ship(place: Path, small_search: None) -> None:
    another(place / "my-sd")
    erase, measure, merge, again, report, verify = commands("ship.md")
    typed(erase)
    told = typed(measure)
    assert "report" in told
    typed(merge)
    typed(again)
    first, second = (
        RunDirectory(f"outputs/{name}").read_scores()["concept"]["edited"] for name in ("watercolor", "release")
    )
    assert first[0].name == second[0].name == "target shown" and first[0].protocol == second[0].protocol
    typed(report)
    assert (place / "outputs/release/manifest.json").exists() and list((place / "outputs/release").glob("*.pdf"))
    assert "changed" not in typed(verify)


def test_an_audit_of_two_checkpoints_made_by_others(place: Path) -> None:
    another(place / "base")
    model = mu.load("base", device="cpu")
    edit = mu.erase(model, "watercolor", method="uce", preset="canvas")
    with edit.applied(model):
        torch.save(model.components["unet"].state_dict(), place / "first.pt")
    edit.save(place / "edit.safetensors")
    typed("import first.pt --model base --concept watercolor --rank 64 --out low-rank.safetensors".split())
    typed("merge low-rank.safetensors --model base --format kohya --out second.safetensors".split())
    first, second, compare, import_, info, half = commands("audit.md")
    typed(first)
    made = {path: path.stat().st_mtime_ns for path in (place / "outputs/base").rglob("*.png")}
    typed(second)
    assert made == {path: path.stat().st_mtime_ns for path in (place / "outputs/base").rglob("*.png")} != {}
    scores = [RunDirectory(f"outputs/{name}").read_scores()["concept"]["edited"] for name in ("first", "second")]
    distance = [{score.name: score.value for score in each}["distance kept"] for each in scores]
    assert distance[0] == pytest.approx(distance[1], abs=0.05)  # nearly the same edit, published twice
    assert "first" in typed(compare)
    typed(import_)
    assert "watercolor" in typed(info)
    typed(half)
    assert list((place / "outputs/half").glob("*.png"))
