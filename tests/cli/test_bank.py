"""``mu bank`` as it is typed: what it prints, writes and ends with; and the bank in ``mu erase`` and ``mu
generate``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mu.algorithms import ALGORITHMS, algorithm
from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm
from mu.edits.bank_folder import BankFolder, sha256
from mu.edits.edit import EditInfo, described
from mu.edits.files import open_edit
from mu.edits.low_rank import LowRankEdit
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter

KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="session")
def edit_files(tiny: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three edits of `tiny`: ``neon.safetensors``, ``star.safetensors`` and ``else.safetensors``, not on
    text."""
    folder = tmp_path_factory.mktemp("edits")
    names = {"neon": KEY, "star": KEY, "else": "unet.conv_out.bias"}
    for seed, (concept, name) in enumerate(names.items()):
        shift = torch.randn(find_parameter(tiny, name).shape, generator=torch.Generator().manual_seed(seed))
        WeightEdit({name: shift}, EditInfo("test", (concept,), **described(tiny, [name]))).save(
            folder / f"{concept}.safetensors"
        )
    return folder


@pytest.fixture
def bank(tiny: DiffusionModel, edit_files: Path, tmp_path: Path) -> Path:
    folder = BankFolder(tmp_path / "bank")
    folder.add(tiny, *(open_edit(edit_files / f"{name}.safetensors") for name in ("neon", "star")), reason="first")
    return folder.folder


def test_a_concept_s_life(tmp_path: Path, tiny_folder: Path, edit_files: Path, cli: Any) -> None:
    """Without --model the base is the one that the edits were found on."""
    bank = tmp_path / "bank"

    def bank_says(verb: str, *arguments: object) -> Any:
        done = cli("bank", verb, *arguments, "--bank", bank, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def states(state: dict[str, Any]) -> dict[str, tuple[bool, float]]:
        return {edit["concept"]: (edit["on"], edit["strength"]) for edit in state["edits"]}

    neon, star = edit_files / "neon.safetensors", edit_files / "star.safetensors"
    added = bank_says("add", neon, star, "--strength", 0.5, "--reason", "first release", "--device", "cpu")
    assert states(added) == {"neon": (True, 0.5), "star": (True, 0.5)} and added["base"] == str(tiny_folder)
    assert states(bank_says("restore", "neon", "--reason", "agreed"))["neon"] == (False, 0.5)
    assert states(bank_says("erase", "neon", "--strength", 2))["neon"] == (True, 2.0)
    assert states(bank_says("remove", "star")) == states(bank_says("list")) == {"neon": (True, 2.0)}
    log = bank_says("log")
    assert [(row["verb"], row["reason"]) for row in log] == [
        ("add", "first release"),
        ("restore", "agreed"),
        ("erase", ""),
        ("remove", ""),
    ]
    assert sorted(path.name for path in bank.iterdir()) == ["bank.json", "log.jsonl", "neon.safetensors"]

    shown = cli("bank", "list", "--bank", bank).stdout
    assert "neon.safetensors" in shown and "erased" in shown and "2" in shown
    told = cli("bank", "log", "--bank", bank).stdout
    assert "first release" in told and "neon, star" in told


def test_merge_is_reproducible_and_logged(bank: Path, tmp_path: Path, cli: Any) -> None:
    common = ("bank", "merge", "--bank", bank, "--format", "unet", "--device", "cpu", "--out")
    first = cli(*common, tmp_path / "a.safetensors", "--only", "star", "--only", "neon")
    assert first.exit_code == 0 and first.stdout.split()[1:] == ["sha256", sha256(tmp_path / "a.safetensors")]
    row = json.loads(cli(*common, tmp_path / "b.safetensors", "--reason", "release", "--json").stdout)
    assert row["sha256"] == sha256(tmp_path / "b.safetensors") == sha256(tmp_path / "a.safetensors")
    assert row == BankFolder(bank).history()[-1] and row["reason"] == "release"
    assert cli(*common, tmp_path / "c.safetensors", "--only", "star").exit_code == 0
    assert sha256(tmp_path / "c.safetensors") != row["sha256"]  # control


def test_check_ends_with_1_where_a_concept_is_not_spared(
    bank: Path, edit_files: Path, tiny: DiffusionModel, cli: Any
) -> None:
    common = ("bank", "check", "--bank", bank, "--device", "cpu")
    found = cli(*common, "--json")
    assert found.exit_code == 1
    rows = json.loads(found.stdout)
    assert [(row["edit"], row["on"], row["verdict"]) for row in rows] == [
        ("neon", "star", "both ways"),
        ("star", "neon", "both ways"),
    ]
    assert "'neon'" in cli(*common).stdout and "'star'" in cli(*common).stdout
    assert cli(*common, "--tolerance", 99).exit_code == 0
    folder = BankFolder(bank)
    folder.remove("star")
    folder.add(tiny, open_edit(edit_files / "else.safetensors"))
    mixed = cli(*common, "--tolerance", 99)
    assert mixed.exit_code == 0 and "'else'" in mixed.stdout


def test_generate_with_a_bank(bank: Path, edit_files: Path, tmp_path: Path, cli: Any) -> None:
    """The model is the bank's own base."""

    def image(name: str, *how: object) -> bytes:
        made = cli(
            "generate", "--prompt", "a neon star", "--steps", 2, "--device", "cpu", "--out", tmp_path / name, *how
        )
        assert made.exit_code == 0, made.output
        return (tmp_path / name / "0_0.png").read_bytes()

    folder = BankFolder(bank)
    base, both = image("base", "--model", folder.read().base), image("both", "--bank", bank)
    folder.restore("neon")
    one = image("one", "--bank", bank)
    assert one == image("edit", "--model", folder.read().base, "--edit", edit_files / "star.safetensors")
    folder.restore("star")
    assert image("none", "--bank", bank) == base
    assert len({base, both, one}) == 3


def test_erase_adds_what_it_finds(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    """One file for each concept where the method tells them apart; a concept that is there is refused before the
    search."""
    bank, searched = tmp_path / "bank", []
    search = SemipermeableMembraneAlgorithm.find_edit

    def counted(self: Any, *arguments: Any) -> LowRankEdit:
        searched.append(self)
        return search(self, *arguments)

    def apart(self: Any, edit: LowRankEdit) -> list[LowRankEdit]:
        return [LowRankEdit(edit.factors, EditInfo("spm", (concept,))) for concept in edit.info.concepts]

    monkeypatch.setattr(SemipermeableMembraneAlgorithm, "find_edit", counted)

    def erase(out: str, *more: object) -> Any:
        return cli(
            "erase",
            "spm",
            "--model",
            tiny_folder,
            "--preset",
            "canvas",
            "--device",
            "cpu",
            "--no-pictures",
            "--bank",
            bank,
            "--set",
            "train.iterations=1",
            "--set",
            "train.max_denoising_steps=2",
            "--out",
            tmp_path / out,
            *more,
        )

    assert erase("a", "--concept", "neon", "--reason", "asked for").exit_code == 0
    assert [row["reason"] for row in BankFolder(bank).history()] == ["asked for"]
    assert open_edit(bank / "neon.safetensors").info == open_edit(tmp_path / "a").info
    again = erase("b", "--concept", "neon")
    assert again.exit_code == 2 and "'neon'" in again.stderr and len(searched) == 1

    monkeypatch.setattr(SemipermeableMembraneAlgorithm, "separate", apart)
    assert erase("c", "--concept", "star", "--concept", "fish").exit_code == 0
    assert [entry.concept for entry in BankFolder(bank).read().edits] == ["neon", "star", "fish"]
    assert (bank / "fish.safetensors").exists()


@pytest.fixture
def other_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """`tiny_folder` with one bias moved, which no edit here shifts."""
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 1
    save_file(tensors, weights, {"format": "pt"})
    return other


@pytest.mark.parametrize("method", [name for name in ALGORITHMS if not name.startswith("clip-")])
def test_no_method_searches_for_a_bank_of_other_weights(
    method: str,
    bank: Path,
    tiny_folder: Path,
    other_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Any,
) -> None:
    class Searched(Exception): ...

    def search(*_: Any) -> None:
        raise Searched

    monkeypatch.setattr(algorithm(method), "find_edit", search)

    def erase(model: Path) -> Any:
        own = ("clip=canvas-clip", "data.forget=canvas", "data.retain=canvas") if method == "slug" else ()
        more = [part for setting in own for part in ("--set", setting)]
        common = ("--concept", "moon", "--device", "cpu", "--no-pictures", "--bank", bank, "--out", tmp_path / "run")
        return cli("erase", method, "--model", model, *common, *more)

    refused = erase(other_folder)
    assert refused.exit_code == 2 and str(bank) in refused.stderr and not (tmp_path / "run").exists()
    assert isinstance(erase(tiny_folder).exception, Searched)  # control


def test_a_sibling_s_weights_must_be_asked_for(
    bank: Path, edit_files: Path, other_folder: Path, tmp_path: Path, cli: Any
) -> None:
    for words in (
        ("add", edit_files / "else.safetensors"),
        ("merge", "--format", "unet", "--out", tmp_path / "unet.safetensors"),
    ):
        asked = ("bank", *words, "--bank", bank, "--model", other_folder, "--device", "cpu")
        refused, taken = cli(*asked), cli(*asked, "--transfer")
        assert refused.exit_code == 2 and str(bank) in refused.stderr
        assert taken.exit_code == 0 and "WARNING" in taken.stderr and str(other_folder) in "".join(taken.stderr.split())


def test_merging_files_tells_what_does_not_spare_what(
    edit_files: Path, tiny_folder: Path, tmp_path: Path, cli: Any
) -> None:
    """Two edits that promise to keep something, and not each other; without a promise nothing is told."""
    promising = []
    for name in ("neon", "star"):
        edit: Any = open_edit(edit_files / f"{name}.safetensors")
        promising.append(tmp_path / f"{name}.safetensors")
        WeightEdit(edit.shifts, replace(edit.info, protects=("",))).save(promising[-1])

    def merge(out: str, *edits: Path) -> str:
        done = cli(
            "merge", *edits, "--model", tiny_folder, "--device", "cpu", "--format", "unet", "--out", tmp_path / out
        )
        assert done.exit_code == 0, done.output
        return " ".join(done.stderr.split())

    assert "'neon'" not in merge("a.safetensors", *(edit_files / path.name for path in promising))  # control
    told = merge("b.safetensors", *promising)
    assert told.count("WARNING") == 2 and "'neon'" in told and "'star'" in told


CONCEPTS = {
    "uce": "model: {model}\nconcepts: [{concept}]\n",
    "sepce": "model: {model}\nconcepts: [{concept}]\ndata: {{images: 2, steps: 1}}\ntrain: {{iterations: 1}}\n",
    "spm": "pretrained_model: {{ckpt_path: {model}}}\nprompt: {{target: {concept}}}\n",
}


@pytest.mark.parametrize("method", CONCEPTS)
def test_a_file_s_concepts_are_looked_for_in_the_bank_before_the_search(
    method: str, bank: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    class Searched(Exception): ...

    def search(*_: Any) -> None:
        raise Searched

    monkeypatch.setattr(algorithm(method), "find_edit", search)

    def erase(concept: str, *more: str) -> Any:
        config = tmp_path / "config.yaml"
        config.write_text(CONCEPTS[method].format(model=tiny_folder, concept=concept), encoding="utf-8")
        return cli(
            "erase", method, "--config", config, "--bank", bank, "--no-pictures", "--out", tmp_path / "run", *more
        )

    refused = erase("neon")
    assert refused.exit_code == 2 and "'neon'" in refused.stderr and not (tmp_path / "run").exists()
    if method != "spm":  # whose entries are not a list of words
        assert "'neon'" in erase("moon", "--concept", "moon", "--concept", "neon").stderr
    assert isinstance(erase("moon", "--overwrite").exception, Searched)  # control


def test_a_method_that_does_not_separate_gives_its_edit_as_it_is() -> None:
    edit: Any = object()
    assert SemipermeableMembraneAlgorithm().separate(edit) == [edit]


# What is typed (`{bank}`, `{edits}`, `{tmp}` and `{tiny}` are folders), and what the line must say.
BAD_INPUT = {
    "no bank there": ("list --bank {tmp}/none", "bank.json"),
    "no bank named": ("list", "--bank"),
    "a folder of other things": ("add {edits}/neon.safetensors --bank {edits} --model {tiny}", "bank.json"),
    "restore what is not there": ("restore neom --bank {bank}", "'neon'"),
    "remove what is not there": ("remove neon sta --bank {bank}", "'star'"),
    "nothing to restore": ("restore --bank {bank}", "CONCEPT"),
    "there already": ("add {edits}/neon.safetensors --bank {bank}", "'neon'"),
    "twice at once": ("add {edits}/else.safetensors {edits}/else.safetensors --bank {bank}", "'else'"),
    "missing edit": ("add {tmp}/none.safetensors --bank {bank}", "{tmp}/none.safetensors"),
    "truncated edit": ("add {tmp}/cut.safetensors --bank {bank}", "{tmp}/cut.safetensors"),
    "unknown model": ("add {edits}/else.safetensors --bank {bank} --model canvs", "'canvas'"),
    "strength that is none": ("add {edits}/else.safetensors --bank {bank} --strength nan", "nan"),
    "endless strength": ("erase neon --bank {bank} --strength inf", "inf"),
    "unknown format": ("merge --bank {bank} --format koya --out {tmp}/x", "kohya"),
    "merge onto a file": ("merge --bank {bank} --format unet --out {tmp}/cut.safetensors", "{tmp}/cut.safetensors"),
    "merge into the bank": ("merge --bank {bank} --format unet --out {bank}/x.safetensors", "{bank}/x.safetensors"),
    "merge what is not there": ("merge --bank {bank} --format unet --out {tmp}/x.pt --only stra", "'star'"),
    "dense edits as LoRA": ("merge --bank {bank} --format kohya --out {tmp}/x.safetensors", "compvis"),
    "negative tolerance": ("check --bank {bank} --tolerance -1", "--tolerance"),
    "a name that leads out": ("list --bank {tmp}/escaping", "{tmp}/escaping/bank.json"),
    "a name that leads out, removed": ("remove neon --bank {tmp}/escaping", "{tmp}/escaping/bank.json"),
    "json that is none": ("log --bank {tmp}/torn", "{tmp}/torn/bank.json"),
    "an edit exchanged": ("check --bank {tmp}/exchanged", "SHA-256"),
    "an edit gone": ("merge --bank {tmp}/gone --format unet --out {tmp}/x.pt", "{tmp}/gone/neon.safetensors"),
    "edit and bank": ("../generate --prompt x --edit {edits}/neon.safetensors --bank {bank}", "--edit"),
    "reason without bank": ("../erase spm --concept x --reason y", "--reason"),
    "no bank to generate with": ("../generate --prompt x --bank {tmp}/none", "{tmp}/none"),
}


@pytest.mark.parametrize(("typed", "told"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_changes_nothing(
    typed: str, told: str, bank: Path, edit_files: Path, tiny_folder: Path, tmp_path: Path, cli: Any, as_kept: Any
) -> None:
    (tmp_path / "cut.safetensors").write_bytes((edit_files / "neon.safetensors").read_bytes()[:300])
    (tmp_path / "x.safetensors").write_bytes((edit_files / "neon.safetensors").read_bytes())
    for name in ("escaping", "torn", "exchanged", "gone"):
        shutil.copytree(bank, tmp_path / name)
    content = (bank / "bank.json").read_text(encoding="utf-8")
    (tmp_path / "escaping" / "bank.json").write_text(
        content.replace("neon.safetensors", "../x.safetensors"), encoding="utf-8"
    )
    (tmp_path / "torn" / "bank.json").write_text(content[:50], encoding="utf-8")
    shutil.copy(bank / "star.safetensors", tmp_path / "exchanged" / "neon.safetensors")
    (tmp_path / "gone" / "neon.safetensors").unlink()
    if "x.safetensors" in typed and "kohya" in typed:
        (tmp_path / "x.safetensors").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    places = {"bank": bank, "edits": edit_files, "tmp": tmp_path, "tiny": tiny_folder}
    verb, *words = typed.split(" ")
    group = verb.removeprefix("../").split() if verb.startswith("../") else ["bank", verb]
    ended = cli(*group, *(word.format(**places) for word in words))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.exit_code == 2, ended.output
    assert len(errors) == 1 and told.format(**places) in errors[0], ended.stderr
    assert ended.stderr.endswith(errors[0] + "\n") and ended.stdout == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    as_kept(" ".join([*group, *words]), errors[0], places)
