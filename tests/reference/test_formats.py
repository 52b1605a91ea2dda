"""Files that version 1 wrote open for ever, with the values that were put in, and still act. `make` wrote them.

The files of ``v1`` are never remade. The numbers here are stated anew, so that this test needs nothing of the script.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import mu
from mu.algorithms import algorithm
from mu.core.errors import DataError, EditError, OutputError
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import is_found_on
from mu.edits.gates import gate_to_json
from mu.models.diffusion import DiffusionModel
from mu.report import write_report
from mu.report.page import read_page
from mu.training.gradient_files import open_gradients, read_gradients

V1 = Path(__file__).parent / "v1"
EDITS = ("low_rank.safetensors", "dense.safetensors", "spm.safetensors", "spm_original.safetensors", "run")
WITH_A_FORMAT = ("low_rank.safetensors", "dense.safetensors", "bank/van-gogh.safetensors", "run/edit.safetensors")

ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
KEYS, VALUES, BIAS = (f"{ATTENTION}.{end}" for end in ("to_k.weight", "to_v.weight", "to_out.0.bias"))
CONV = "unet.mid_block.attentions.0.proj_in.weight"
NORM = "text_encoder.final_layer_norm.weight"


@pytest.fixture(scope="module")
def canvas() -> DiffusionModel:
    model = mu.load("canvas", device="cpu")
    assert isinstance(model, DiffusionModel)
    return model


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files, for what writes."""
    return shutil.copytree(V1, tmp_path / "v1")


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is warned of in the test."""
    with caplog.at_level(logging.WARNING, "mu"):
        yield
    assert [record.getMessage() for record in caplog.records if record.name.startswith("mu")] == []


def ramp(*shape: int, start: int = 0) -> Tensor:
    """Multiples of 1/64 between -15/64 and 15/64, exact in half precision: every tensor was filled with it."""
    count = torch.Size(shape).numel()
    return torch.tensor([((k + start) * 7 % 31 - 15) / 64 for k in range(count)]).reshape(shape)


def outer(width: int, rank: int, scale: float) -> Tensor:
    """The shift of a layer of 128 rows, as a matrix."""
    return scale * ramp(128, rank, start=1) @ ramp(rank, width)


# Each edit's shifts: (128, width) of the low-rank ones is seen as the layer's own shape.
SHIFTS: dict[str, dict[str, Tensor]] = {
    "low_rank.safetensors": {KEYS: outer(192, 1, 1.0), VALUES: outer(192, 1, 0.5), CONV: outer(128, 2, 1.5)},
    "dense.safetensors": {BIAS: ramp(128), NORM: ramp(192, start=2)},
    "spm.safetensors": {KEYS: outer(192, 2, 0.5), CONV: outer(128, 2, 0.5)},
    "spm_original.safetensors": {KEYS: outer(192, 2, 0.5), CONV: outer(128, 2, 0.5)},
}


def same_shifts(edit: mu.Edit, wanted: dict[str, Tensor]) -> bool:
    found = {name: shift.float() for name, shift in edit.deltas()}
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[name].flatten(), wanted[name].flatten(), rtol=0, atol=1e-6) for name in wanted
    )


def output(model: DiffusionModel) -> Tensor:
    """eps for fixed latents and a prompt with the first concept of every edit."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    return model.predict_noise(x, 500, model.encode(["a pop art sketch of van gogh in neon"])).detach()


# -- edits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIFTS)
def test_an_edit_holds_the_numbers_that_were_put_in(name: str) -> None:
    edit = mu.open_edit(V1 / name)
    assert same_shifts(edit, SHIFTS[name])
    one = next(iter(SHIFTS[name]))
    assert not same_shifts(edit, {**SHIFTS[name], one: SHIFTS[name][one] + 1e-3}), "control"


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_output_and_comes_off_bit_for_bit(name: str, canvas: DiffusionModel, snapshot) -> None:
    edit = mu.open_edit(V1 / name)
    before, plain = snapshot(canvas), output(canvas)
    with edit.applied(canvas):
        on = output(canvas)
    assert not torch.equal(on, plain)
    assert snapshot(canvas) == before and torch.equal(output(canvas), plain)
    with edit.applied(canvas, strength=0):
        assert torch.equal(output(canvas), plain), "control: what changes the output is the edit"


def test_a_low_rank_edit_tells_all_that_it_told() -> None:
    info = mu.open_edit(V1 / "low_rank.safetensors").info
    assert (info.method, info.base, info.seed, info.format) == ("spm", "canvas", 7, 1)
    assert info.concepts == ("pop art", "neon, blue")
    assert (info.protects, info.spares) == (("", "a photo of a tree"), ("a dog, a hat", "日本"))
    assert info.promises == ("", "a photo of a tree", "a dog, a hat", "日本")
    found = {"updates": 3, "updates_at_most": 300, "correlation": None, "norm": 0.25, "width": 192, "free": 24}
    assert info.found == found
    how = {"factor": 1.0, "metric": "clipcos_tokenuni", "arithmetic": "paper"}
    assert gate_to_json(info.gate) == {"kind": "facilitated_transport", **how}
    assert info.config == {"train": {"iterations": 3, "lr": 1e-4}, "erased": ["pop art", "neon, blue"], "preset": None}
    assert info.loading == {"clip_skip": 1, "prediction_type": "epsilon"}
    assert info.versions["torch"] == "2.13.0+cpu" and info.versions["mu-unlearning"] == "0.1.0"
    assert "Größer" in info.citation


def test_a_dense_edit_tells_all_that_it_told() -> None:
    edit = mu.open_edit(V1 / "dense.safetensors")
    info = edit.info
    assert (info.method, info.concepts, info.seed, info.spares) == ("uce", ("sketch",), None, ("a photo",))
    assert (info.protects, gate_to_json(info.gate), dict(info.found)) == ((), {}, {})
    assert {name: shift.dtype for name, shift in edit.deltas()} == {BIAS: torch.float32, NORM: torch.float16}


def test_spm_files_tell_their_concepts() -> None:
    ours, original = (mu.open_edit(V1 / f"{name}.safetensors").info for name in ("spm", "spm_original"))
    assert ours.concepts == original.concepts == ("van gogh", "neon")
    assert (ours.config["mu_method"], ours.config["mu_base"]) == ("spm", "canvas")
    told = {"prompts": "van gogh,neon", "rank": "2", "alpha": "1.0"}
    assert dict(original.config) == {"file": "spm_original", **told}


def test_a_gate_reads_the_prompt_as_it_did(canvas: DiffusionModel) -> None:
    prompts = ["a star in pop art style", "neon, blue", "a dog", ""]
    passes = mu.Bank(canvas, [mu.open_edit(V1 / "low_rank.safetensors")]).gates(prompts)
    assert passes[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.3327, 0.4614], abs=1e-3)
    assert mu.Bank(canvas, [mu.open_edit(V1 / "dense.safetensors")]).gates(prompts).tolist() == [[1.0]] * 4, "control"


@pytest.mark.parametrize("name", ["low_rank.safetensors", "dense.safetensors", "run"])
def test_an_edit_knows_its_base(name: str, canvas: DiffusionModel, tiny: DiffusionModel, quiet: None) -> None:
    edit = mu.open_edit(V1 / name)
    mu.Bank(canvas, [edit])
    assert is_found_on(edit, canvas)
    assert not is_found_on(edit, tiny), "control: the same architecture with other weights"


def test_edits_saved_again_are_the_same_edits(tmp_path: Path) -> None:
    for name in ("low_rank.safetensors", "dense.safetensors"):
        mu.open_edit(V1 / name).save(tmp_path / name)
        old, new = mu.open_edit(V1 / name), mu.open_edit(tmp_path / name)
        assert same_shifts(new, SHIFTS[name])
        facts = [{key: value for key, value in edit.info.to_json().items() if key != "format"} for edit in (old, new)]
        assert facts[0] == facts[1]


# -- a bank ------------------------------------------------------------------------------------------------------------


def test_a_bank_is_as_it_was_left(canvas: DiffusionModel, quiet: None) -> None:
    folder = BankFolder(V1 / "bank")
    state = folder.read()
    assert (state.format, state.base) == (1, "canvas")
    first, second = ((entry.concept, entry.file, entry.on, entry.strength) for entry in state.edits)
    assert first == ("van gogh", "van-gogh.safetensors", True, 0.75)
    assert second == ("Ada Stone", "Ada-Stone.safetensors", False, 1.0)
    bank = folder.open(canvas)
    assert list(bank.edits) == ["van gogh", "Ada Stone"]
    assert [edit.concept() for edit in bank.on] == ["van gogh"] and bank.restored == {"Ada Stone"}
    assert bank.strengths(None) == [0.75]
    assert bank.gates(["a van", "the sky of van gogh", "a dog"]).tolist() == [[0.25], [0.5], [0.0]]
    assert bank.deltas().keys() == {VALUES}
    assert torch.allclose(bank.deltas()[VALUES], 0.75 * outer(192, 1, 1.0), rtol=0, atol=1e-6)


def test_a_bank_acts_and_comes_off(canvas: DiffusionModel, snapshot) -> None:
    before, plain = snapshot(canvas), output(canvas)
    bank = BankFolder(V1 / "bank").open(canvas)
    with bank.applied():
        one = output(canvas)
    bank.erase("Ada Stone")
    with bank.applied():
        both = output(canvas)
    assert len({tuple(eps.flatten().tolist()) for eps in (plain, one, both)}) == 3
    assert snapshot(canvas) == before and torch.equal(output(canvas), plain)


def test_a_banks_log_is_read(quiet: None) -> None:
    rows = BankFolder(V1 / "bank").history()
    told = [(row["verb"], [edit["concept"] for edit in row["edits"]], row["reason"]) for row in rows]
    assert told == [
        ("add", ["van gogh"], "asked for by its heirs"),
        ("add", ["Ada Stone"], "a trial"),
        ("restore", ["Ada Stone"], "the trial is over"),
    ]


def test_a_bank_goes_on(copy: Path, canvas: DiffusionModel) -> None:
    folder = BankFolder(copy / "bank")
    folder.add(canvas, mu.open_edit(V1 / "dense.safetensors"), strength=0.5)
    folder.erase("Ada Stone", strength=2.0)
    assert [(e.concept, e.on, e.strength) for e in folder.read().edits] == [
        ("van gogh", True, 0.75),
        ("Ada Stone", True, 2.0),
        ("sketch", True, 0.5),
    ]
    assert len(folder.history()) == 5


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_are_read_with_their_sign() -> None:
    clip = mu.load("canvas-clip", device="cpu")
    path = V1 / "gradient.safetensors"
    names = ["text_encoder.final_layer_norm.bias", "vision_model.post_layernorm.weight"]
    found = read_gradients(path, clip, names, kind="forget", loss="cosine", concept="Ada Stone")
    assert torch.equal(found[names[0]], ramp(192)) and torch.equal(found[names[1]], ramp(128))
    info, tensors = open_gradients(path)
    assert info and sorted(tensors) == names
    assert (info.kind, info.loss, info.pairs, info.batch_size, info.captions) == ("forget", "cosine", 9, None, "own")
    assert (info.concept, info.model, info.sign, info.format) == ("Ada Stone", "canvas-clip", "+grad", 1)
    with pytest.raises(DataError):
        read_gradients(path, clip, names, concept="Bo Reed")


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_runs_records_are_read() -> None:
    run = RunDirectory(V1 / "run")
    suites = run.read_scores()
    assert {suite: list(table) for suite, table in suites.items()} == {
        "canvas": ["base", "edited"],
        "judge": ["base", "edited"],
    }
    assert [*suites["canvas"]["edited"], *suites["judge"]["edited"]] == [
        Score("UA", 0.9375, 64, "higher", "canvas/1", {"neon": 0.9375}),
        Score("IRA", 0.953125, 96, "higher", "canvas/1", {"photo": 1.0, "Größe": 0.90625}),
        Score("Fréchet distance", 13.875, 96, "lower", "judge/1"),
    ]
    base = [score.value for table in suites.values() for score in table["base"]]
    assert base == [0.03125, 0.96875, 12.5]
    assert run.read_metrics() == [
        {"step": 0, "lr": 2e-4, "loss": 0.0015418169787153602, "k": 1.0},
        {"step": 1, "lr": 2e-4, "loss": 0.05464329198002815, "k": 0.0},
        {"step": 2, "lr": 2e-4, "loss": 0.0008764228550717235, "k": 1.0},
    ]
    environment = run.read_environment()
    assert (environment["method"], environment["model"], environment["concepts"]) == ("esd", "canvas", ["neon"])
    assert (environment["seconds"], environment["platform"]) == (0.1, "Linux")
    assert environment["versions"]["python"] == "3.11.7"


def test_a_runs_settings_are_parsed() -> None:
    settings: Any = algorithm("esd").config_class.load(V1 / "run" / "config.yaml")
    assert (settings.model, settings.concepts, settings.seed, settings.variant) == ("canvas", ["neon"], 5, "esd-x")
    assert (settings.train.iterations, settings.train.lr, settings.denoising_steps) == (3, 2e-4, 2)
    assert mu.open_edit(V1 / "run").info.config["train"]["iterations"] == 3


def test_a_finished_run_is_resumed_as_finished(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    run = algorithm("esd")(Path("run/config.yaml")).run(resume=True).run
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert run.folder == Path("run")


def test_a_setting_of_a_later_version_counts_as_its_default_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    assert "sampler" not in Path("run/config.yaml").read_text(), "it was added later"
    algorithm("esd")(Path("run/config.yaml"), sampler="aligned").run(resume=True)
    for other in ({"sampler": "released"}, {"train.weight_decay": 0.1}, {"train.lr": 0.5}):
        with pytest.raises(OutputError, match="different settings"):
            algorithm("esd")(Path("run/config.yaml"), **other).run(resume=True)


def test_a_runs_page_shows_its_files(copy: Path) -> None:
    page = read_page(RunDirectory(copy / "run"))
    assert (page.concepts, page.origin.method) == (["neon"], "esd")
    assert [(suite.suite, suite.columns) for suite in page.suites] == [
        ("canvas", ["base", "edited"]),
        ("judge", ["base", "edited"]),
    ]
    prompts = [(p.case_number, p.prompt, p.seed, p.role, p.gate) for p in page.prompts]
    assert prompts == [(0, "a star in neon style", 188, "target", [1.0]), (1, "a dog", 188, "retain", [1.0])]
    assert [(group.role, [pair.prompt for pair in group.pairs]) for group in page.groups] == [
        ("target", ["a star in neon style"]),
        ("retain", ["a dog"]),
    ]
    (grid,) = page.grids
    assert (grid.title, grid.columns, grid.rows[0][0]) == ("One edit", ["base", "edited", "restored"], "a dog")
    assert [bool(shot.uri) for shot in grid.rows[0][1]] == [True, True, False]
    (accuracy,) = (measure for measure in page.measures if measure.name == "UA")
    assert {column: cell.score.value for column, cell in accuracy.cells.items() if cell.score} == {
        "base": 0.03125,
        "edited": 0.9375,
    }
    assert {"loss", "k"} <= {curve.name for curve in page.curves}
    html = write_report(RunDirectory(copy / "run")).read_text(encoding="utf-8")
    assert "a star in neon style" in html and "Größe" in html


# -- controls: what is newer or damaged is refused, and named ----------------------------------------------------------


def rewritten(path: Path, **facts: object) -> Path:
    """``path`` with other facts in its metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={**metadata, **{f"mu.{key}": json.dumps(value) for key, value in facts.items()}})
    return path


@pytest.mark.parametrize("name", WITH_A_FORMAT)
def test_control_a_newer_edit_is_refused(name: str, copy: Path) -> None:
    with pytest.raises(EditError) as refusal:
        mu.open_edit(rewritten(copy / name, format=1_000))
    assert str(copy / name) in str(refusal.value)
    assert mu.open_edit(rewritten(copy / name, format=1)).info.concepts, "control: what is refused is the number"


def test_control_newer_gradients_are_refused(copy: Path) -> None:
    path = copy / "gradient.safetensors"
    with pytest.raises(DataError) as refusal:
        open_gradients(rewritten(path, format=1_000))
    assert str(path) in str(refusal.value)
    assert open_gradients(rewritten(path, format=1))[0]


def test_control_a_newer_bank_is_refused(copy: Path) -> None:
    path = copy / "bank" / "bank.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, "format": 1_000}), encoding="utf-8")
    with pytest.raises(EditError) as refusal:
        BankFolder(path.parent).read()
    assert str(path) in str(refusal.value)


def test_control_another_file_in_the_bank_is_refused(copy: Path, canvas: DiffusionModel) -> None:
    path = copy / "bank" / "van-gogh.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EditError) as refusal:
        BankFolder(path.parent).open(canvas)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "opened", "error"),
    [
        *((name, mu.open_edit, EditError) for name in SHIFTS),
        ("run/edit.safetensors", mu.open_edit, EditError),
        ("gradient.safetensors", open_gradients, DataError),
    ],
)
def test_control_a_flipped_byte_in_the_header_is_refused(
    name: str, opened: Callable[[Path], Any], error: type[Exception], copy: Path
) -> None:
    """The highest bit of every sixteenth byte: then the header is no text, or has no such length."""
    path = copy / name
    whole = path.read_bytes()
    for place in range(0, 8 + int.from_bytes(whole[:8], "little"), 16):
        damaged = bytearray(whole)
        damaged[place] ^= 0x80
        path.write_bytes(damaged)
        with pytest.raises(error) as refusal:
            opened(path)
        assert str(path) in str(refusal.value), place
    path.write_bytes(whole)
    assert opened(path)


@pytest.mark.parametrize("record", ["scores.json", "environment.json", "prompts.json", "panels.json"])
def test_control_a_damaged_record_of_a_run_is_refused(record: str, copy: Path) -> None:
    path = copy / "run" / record
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError) as refusal:
        read_page(RunDirectory(copy / "run"))
    assert path.name in str(refusal.value)


# -- the files themselves ----------------------------------------------------------------------------------------------


def test_the_files_are_small_and_name_no_machine() -> None:
    files = [path for path in V1.rglob("*") if path.is_file()]
    assert len(files) >= 20 and sum(path.stat().st_size for path in files) < 150_000
    assert all(path.relative_to(V1).as_posix().isascii() for path in files)
    roots = (b"/home/", b"/root/", b"/tmp/", b"/Users/")
    assert [path for path in files if any(root in path.read_bytes() for root in roots)] == []
