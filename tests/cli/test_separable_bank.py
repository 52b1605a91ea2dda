"""``mu erase sepce --bank``: concepts join one after another and stay apart; what is wrong is one line, and nothing is
lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mu.algorithms.separable_concept_erasure.trainer import SeparableConceptErasureTrainer
from mu.edits.bank_folder import BankFolder
from mu.models.diffusion import DiffusionModel

FAST = [
    "--preset",
    "style",
    "--device",
    "cpu",
    "--no-pictures",
    "--set",
    "train.iterations=3",
    "--set",
    "train.lr=0.01",
    "--set",
    "train.stop=steps",
    "--set",
    "data.images=4",
    "--set",
    "data.steps=2",
    "--set",
    "basis.kind=orthonormal",
    "--set",
    "basis.scale_factor=1",
]


@pytest.fixture
def erase(tmp_path: Path, tiny_folder: Path, cli: Any):
    """``erase("star")``: the ended command; its run is in ``tmp_path``/star, the bank in ``tmp_path``/bank."""

    def run(concept: str, *words: object, model: Path = tiny_folder) -> Any:
        common = ["--model", model, "--out", tmp_path / concept.replace(" ", "-"), "--bank", tmp_path / "bank", *FAST]
        return cli("erase", "sepce", "--concept", concept, *common, *words)

    return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def begin(erase: Any, kept: Path, tmp_path: Path) -> Callable[[str], None]:
    """``begin("star")``: the run and the bank of a first concept, which is erased once for all tests."""

    def copied(concept: str) -> None:
        name = concept.replace(" ", "-")
        if not (kept / name).exists():
            assert erase(concept).exit_code == 0
            for folder in (name, "bank"):
                shutil.copytree(tmp_path / folder, kept / name / folder)
        else:
            shutil.copytree(kept / name, tmp_path, dirs_exist_ok=True)

    return copied


def said(ended: Any) -> str:
    """The one line of an error that ended with 2."""
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.exit_code == 2 and len(errors) == 1 and ended.stdout == "", ended.output
    return errors[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_concepts_that_join_one_by_one_protect_each_other(
    erase: Any, begin: Any, tmp_path: Path, tiny: DiffusionModel
) -> None:
    bank = BankFolder(tmp_path / "bank")
    begin("star")
    bank.restore("star")  # what was given back must stay as it is as well
    assert erase("moon", "--reason", "second").exit_code == 0
    assert erase("heart").exit_code == 0
    protects = {concept: set(edit.info.protects) for concept, edit in bank.open(tiny).edits.items()}
    assert protects == {"star": {"", "moon", "heart"}, "moon": {"", "star", "heart"}, "heart": {"", "star", "moon"}}
    assert {leak.verdict for leak in bank.check(tiny)} == {"spared"}
    assert [entry.on for entry in bank.read().edits] == [False, True, True]
    assert [(row["verb"], row["reason"]) for row in bank.history()] == [
        ("add", ""),
        ("restore", ""),
        ("replace", "second"),
        ("add", "second"),
        ("replace", ""),
        ("add", ""),
    ]


def test_older_shifts_can_be_left_as_they_are(erase: Any, tmp_path: Path, tiny: DiffusionModel) -> None:
    bank = BankFolder(tmp_path / "bank")
    assert erase("star", "--set", "protect.gate=never").exit_code == 0
    before = contents(tmp_path / "bank")["star.safetensors"]
    ended = erase("moon", "--set", "protect.mend=null")
    assert ended.exit_code == 0 and all(word in ended.stderr for word in ("WARNING", "'star'", "'moon'"))
    assert contents(tmp_path / "bank")["star.safetensors"] == before
    verdicts = {(leak.edit, leak.on): leak.verdict for leak in bank.check(tiny)}
    assert verdicts == {("star", "moon"): "one-sided", ("moon", "star"): "spared"}


# The concept that the bank has, the one that is asked for, a setting, and what the line must say.
WORDS = '["heart","moon","ring","tree","cross","fish","house","photo","neon","sketch","vintage"]'
WRONG = {
    "no room": ("star", "sun", f"protect.prompts={WORDS}", "'moon' 16"),
    "the concept itself": ("star", "sun", 'protect.prompts=["sun"]', "'sun' "),
    "its beginning": ("star", "sun", 'protect.prompts=["sun image"]', "'sun image'"),
    "the beginning of what the bank has": ("sun image", "sun", "seed=0", "'sun image'"),
    "no pictures": ("star", "sun", "data.folder={tmp}/empty", "{tmp}/empty"),
    "pictures that are none": ("star", "sun", "data.folder={tmp}/texts", "{tmp}/texts"),
    "no folder": ("star", "sun", "data.folder={tmp}/nowhere", "{tmp}/nowhere"),
    "there already": ("star", "star", "seed=0", "'star'"),
}


@pytest.mark.parametrize(("there", "concept", "setting", "line"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_changes_nothing(
    there: str, concept: str, setting: str, line: str, erase: Any, begin: Any, tmp_path: Path, as_kept: Any
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no picture")
    begin(there)
    before = contents(tmp_path)
    ended = erase(concept, "--out", tmp_path / "new", "--set", setting.format(tmp=tmp_path))
    assert line.format(tmp=tmp_path) in said(ended)
    assert {n: c for n, c in contents(tmp_path).items() if not n.startswith("new/")} == before
    assert not (tmp_path / "new" / "config.yaml").exists()  # the folder is free again
    as_kept(f"erase sepce --concept {concept} --bank {{tmp}}/bank --set {setting}", said(ended), {"tmp": tmp_path})


def test_a_bank_of_other_weights_is_refused_before_the_search(
    erase: Any, begin: Any, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    begin("star")
    before, other = contents(tmp_path / "bank"), tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert str(tmp_path / "bank") in said(erase("moon", model=other))
    assert contents(tmp_path / "bank") == before and not (tmp_path / "moon").exists()


def test_interrupted_and_gone_on_with(
    erase: Any, begin: Any, tmp_path: Path, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin("star")
    before, step = contents(tmp_path / "bank"), SeparableConceptErasureTrainer.step

    def failing(self: SeparableConceptErasureTrainer, i: int) -> Any:
        if i == 2:
            raise KeyboardInterrupt
        return step(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(SeparableConceptErasureTrainer, "step", failing)
        assert erase("moon").exit_code == 130
    assert contents(tmp_path / "bank") == before
    assert "--resume" in said(erase("moon"))
    with monkeypatch.context() as patch:  # killed while the bank is written
        patch.setattr("mu.edits.bank_folder.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert erase("moon", "--resume").exit_code == 130
    assert {n: c for n, c in contents(tmp_path / "bank").items() if n in before and n != "log.jsonl"} == {
        n: c for n, c in before.items() if n != "log.jsonl"
    }
    assert erase("moon", "--resume").exit_code == 0
    bank = BankFolder(tmp_path / "bank")
    assert list(bank.open(tiny).edits) == ["star", "moon"]
    assert {leak.verdict for leak in bank.check(tiny)} == {"spared"}
