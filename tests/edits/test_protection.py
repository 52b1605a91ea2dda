"""What restoring leaves: how much the edits that stay on move sentences with the restored word, and its images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mu.cli import app
from mu.data.prompt_lists import phrasings
from mu.diffusion import restored
from mu.diffusion.restored import left_over
from mu.edits.bank import Bank
from mu.edits.bank_folder import BankFolder
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
