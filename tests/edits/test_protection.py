"""What restoring leaves: how much the edits that stay on move sentences with the restored word, and its images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from mu.algorithms.speed.algorithm import Speed
from mu.cli import app
from mu.data.prompt_lists import phrasings
from mu.diffusion import restored
from mu.diffusion.restored import left_over
from mu.edits.bank import Bank
from mu.edits.bank_folder import BankFolder
from mu.edits.conflicts import heat_map
from mu.edits.edit import EditInfo, described
from mu.edits.protection import leaks
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter


def edit_of(model: DiffusionModel, concept: str, null_on: list[str] | None = None, size: float = 0.3) -> WeightEdit:
    """A random delta of one layer's keys, null on the prompts ``null_on``."""
    (name,) = list(model.layers("text-keys"))[:1]
    delta = torch.randn(find_parameter(model, name).shape, generator=torch.Generator().manual_seed(len(concept))) * size
    if null_on:
        rows = model.encode(null_on).sequence.flatten(0, 1)
        basis = torch.linalg.svd(rows, full_matrices=False)
        keep = basis.Vh[1e-5 * basis.S[0] < basis.S]
        delta = delta - delta @ keep.T @ keep
    return WeightEdit({name: delta}, EditInfo("test", (concept,), **described(model, [name])))


def test_an_edit_that_is_null_on_the_word_may_still_move_its_sentences(tiny: DiffusionModel) -> None:
    a, b = edit_of(tiny, "star", null_on=["neon"]), edit_of(tiny, "neon")
    (there,) = [leak for leak in leaks(Bank(tiny, [a, b])) if leak.edit == "star"]
    assert there.verdict == "spared" and there.sentences is not None and there.sentences > 0.05
    assert "'neon'" in there.of_sentences() and "%" in there.of_sentences()
    (whole,) = [leak for leak in leaks(Bank(tiny, [edit_of(tiny, "star"), b])) if leak.edit == "star"]
    assert whole.sentences is not None and whole.sentences > there.sentences


def test_the_distance_is_that_of_the_images(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restored, "STEPS", 2)
    bank = Bank(tiny, [edit_of(tiny, "star", size=3.0), edit_of(tiny, "neon")])
    bank.restore("neon")
    texts = ["a neon boat", "neon at night"]
    found = left_over(bank, "neon", texts)
    base = restored._images(tiny, texts)
    with bank.applied():
        edited = restored._images(tiny, texts)
    truth = (base - edited).abs().mean(dim=(1, 2, 3)) * 255
    assert found.mean == pytest.approx(float(truth.mean())) and found.largest == pytest.approx(float(truth.max()))
    assert found.largest > 0.01 and found.worst == texts[int(truth.argmax())] and "/255" in str(found)
    bank.restore("star")
    assert left_over(bank, "neon", texts).largest == 0
    assert left_over(bank, "neon").prompts == sum(tiny.fits(text) for text in phrasings("neon")) > 5


def test_restoring_says_the_distance_that_it_leaves(
    tiny_folder: Path, tiny: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restored, "STEPS", 1)
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, edit_of(tiny, "star", size=3.0), edit_of(tiny, "neon"))

    def told(*words: str) -> str:
        ended = CliRunner().invoke(app, ["bank", *words, "--bank", str(folder.folder)], catch_exceptions=False)
        assert ended.exit_code == 0
        return ended.stderr

    assert "/255" in told("restore", "neon", "--model", str(tiny_folder), "--device", "cpu")
    folder.erase("neon")
    assert told("restore", "neon", "--no-measure") == ""
    assert told("restore", "star", "--model", str(tiny_folder)) == ""  # no edit is on any more


def test_of_many_edits_the_worst_pairs_are_named_and_drawn(
    tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path
) -> None:
    """Fifteen edits: ten of 210 pairs, and a map. Control: of two edits every pair is shown."""
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, *(edit_of(tiny, "star" + "r" * k, size=0.1 * (k + 1)) for k in range(15)))
    chart = tmp_path / "map.png"

    def told(*words: object) -> tuple[int, list[str]]:
        ended = CliRunner().invoke(
            app, ["bank", "check", *map(str, words), "--model", str(tiny_folder), "--device", "cpu"]
        )
        return ended.exit_code, ended.stdout.splitlines()

    code, lines = told("--bank", folder.folder, "--chart", chart)
    found = folder.check(tiny)
    assert code == 1 and any("of 210 pairs" in line for line in lines)
    assert sum("so restoring" in line for line in lines) == 10
    first = max(found, key=lambda leak: leak.share or 0)
    assert str(first) in "\n".join(lines)
    assert Image.open(chart).size[0] > 400
    assert heat_map(found, 0.01).axes[0].images[0].get_array().shape == (15, 15)
    bad, _ = told("--bank", folder.folder, "--chart", tmp_path / "map.txt")
    assert bad == 2 and not (tmp_path / "map.txt").exists()
    two = BankFolder(tmp_path / "two")
    two.add(tiny, edit_of(tiny, "star"), edit_of(tiny, "neon"))
    assert not any("pairs" in line for line in told("--bank", two.folder)[1])


def test_joint_edits_are_measured_as_they_act_together(tiny: DiffusionModel) -> None:
    """Shares of edits of one solve are those of the solve for all. Control: each solved alone has others."""
    whole = Speed({"concepts": ["neon", "star", "moon"], "anchors": ["photo"], "filter": False}, model=tiny).find_edit()
    parts = whole.parts()
    shares = {(leak.edit, leak.on): leak.share for leak in leaks(Bank(tiny, parts), sentences=False)}
    rows = {name: tiny.encode([name]).sequence[0].double() for name in ("neon", "star", "moon")}

    def effect(down: dict[str, Tensor], name: str, k: int) -> float:
        total = 0.0
        for layer, up in whole.ups.items():
            total += float((rows[name] @ torch.outer(down[layer][k], up[:, k].double())).square().sum())
        return total**0.5

    wanted = effect(whole.rights, "star", 0) / effect(whole.rights, "neon", 0)
    alone = effect(parts[0].rights, "star", 0) / effect(parts[0].rights, "neon", 0)
    assert shares["neon", "star"] == pytest.approx(wanted, rel=1e-4) != pytest.approx(alone, rel=1e-3)
