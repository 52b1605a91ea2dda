"""What all suites share: one run, several suites."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mu
from mu.cli import app
from mu.core.errors import ConfigError, OutputError
from mu.core.evidence import read_evidence
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation import suites
from mu.evaluation.suites import SUITES, clip, suite_for, vlm
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter

TENSOR = "vision_model.encoder.layers.1.mlp.fc2.weight"
"""Of the CLIP and of the vision-language model on top of it."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run whose edit breaks a vision tower."""
    monkeypatch.setattr(clip, "PER_CLASS", 1)
    monkeypatch.setattr(vlm, "PER_CLASS", 1)
    theta = find_parameter(mu.load("canvas-clip", device="cpu"), TENSOR)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)) * 8 * theta.std()
    settings = {"data": {"forget": "canvas", "n_forget": 8, "tasks": ["canvas"]}}
    made = RunDirectory(tmp_path / "run")
    made.folder.mkdir()
    WeightEdit({TENSOR: noise}, EditInfo("test", ("Ada Stone",), config=settings, seed=0)).save(made.edit)
    return made


def evaluated(run: RunDirectory, suite: str, model: str, *more: str) -> None:
    done = CliRunner().invoke(
        app, ["evaluate", str(run.folder), "--suite", suite, "--model", model, "--seeds", "1", "--device", "cpu", *more]
    )
    assert done.exit_code == 0, done.output


def test_two_suites_measure_one_run_and_stand_side_by_side(run: RunDirectory) -> None:
    evaluated(run, "clip", "canvas-clip")
    first = run.read_scores()
    evaluated(run, "vlm", "canvas-vlm")
    both = run.read_scores()
    assert list(first) == ["clip"] and list(both) == ["clip", "vlm"] and both["clip"] == first["clip"]
    page = run.report.read_text(encoding="utf-8")
    parts = page.split("<h3>Suite ")[1:]
    assert [part.partition("<")[0] for part in parts] == ["clip", "vlm"]
    assert "FA@1" in parts[0] and "FA@1" not in parts[1].partition("</section>")[0] and "other questions" in parts[1]

    told = CliRunner().invoke(app, ["compare", str(run.folder), "--json"])
    columns = json.loads(told.stdout)["columns"]
    assert {column["protocol"] for column in columns} == {"clip/1, canvas", "vlm/1, canvas"}


def test_a_suite_touches_the_images_of_no_other(tmp_path: Path) -> None:
    """Else measuring one suite would note the changed images of another as they are now."""
    run = RunDirectory(tmp_path)
    for place in ("base", "edited", "concept/base", "concept/edited", "unlearncanvas/edited"):
        (run.answers / place).mkdir(parents=True)
    own = {
        name: [path.relative_to(run.answers).as_posix() for path in suites._own_folders(run, name)]
        for name in suites.SUITES
    }
    assert own["canvas"] == ["base", "edited"] and own["concept"] == ["concept/base", "concept/edited"]
    assert own["unlearncanvas"] == ["unlearncanvas/edited"] and own["clip"] == []


# -- the registry
# -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_model_has_one_default_suite() -> None:
    for kind in {suite.kind for suite in SUITES.values()}:
        assert sum(suite.default for suite in SUITES.values() if suite.kind is kind) == 1, kind


def test_of_two_suites_of_one_kind_the_default_is_meant_and_none_is_guessed(
    tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = suites.Suite("nowhere:f", DiffusionModel, "a diffusion model")
    monkeypatch.setattr(suites, "SUITES", {"first": other, **SUITES})
    assert suite_for(tiny) == "concept", "not the first"
    assert suite_for(mu.load("canvas", device="cpu")) == "canvas", "the one that is made for it"
    for default in (False, True):
        both = {"one": other._replace(default=default), "two": other._replace(default=default)}
        monkeypatch.setattr(suites, "SUITES", both)
        with pytest.raises(ConfigError, match="pass --suite one or two"):
            suite_for(tiny)
    monkeypatch.setattr(suites, "SUITES", {"clip": SUITES["clip"]})
    with pytest.raises(ConfigError, match="suites measure a CLIP"):
        suite_for(tiny)


def test_a_suite_takes_the_options_that_it_states(
    tmp_path: Path, tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def measured(*_: Any, **how: Any) -> tuple[Table, dict[str, Any]]:
        told.update(how)
        return {"edited": [Score("UA", 0.5, 1, "higher", "both/1")]}, {"steps": 20}

    monkeypatch.setattr(suites, "import_module", lambda _: SimpleNamespace(evaluate=measured))
    row = SUITES["canvas"]._replace(place="somewhere:evaluate")
    still = WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("test", ("star",)))
    how: dict[str, Any] = {"seeds": (1,), "base_answers": tmp_path / "base", "data": ["x"]}
    monkeypatch.setattr(suites, "SUITES", {"both": row._replace(options=frozenset({"base_answers", "data"}))})
    suites.evaluate(RunDirectory(tmp_path / "run"), "both", tiny, still, **how)
    assert told == how
    assert read_evidence(RunDirectory(tmp_path / "run")).scores["both"].how == {"seeds": [1], "steps": 20}
    monkeypatch.setattr(suites, "SUITES", {"none": row._replace(options=frozenset())})
    with pytest.raises(ConfigError, match="takes no base_answers"):
        suites.evaluate(RunDirectory(tmp_path / "run"), "none", tiny, still, **how)


def test_the_command_line_names_every_suite() -> None:
    told = " ".join(CliRunner().invoke(app, ["evaluate", "--help"], terminal_width=200).stdout.split())
    assert [name for name in SUITES if f"{name}," not in told and f"{name}." not in told] == []


@pytest.mark.parametrize("name", ["answers/edited", "before", ".", "notes.txt", "images"])
def test_the_base_s_answers_have_a_folder_of_their_own(tmp_path: Path, tiny: DiffusionModel, name: str) -> None:
    """Not the edited model's, which would be taken for the base's, nor images that somebody else made."""
    run, elsewhere = RunDirectory(tmp_path / "run"), tmp_path / "elsewhere"
    for folder in (run.answers / "edited", run.before, elsewhere / "images"):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"image")
    (elsewhere / "notes.txt").write_text("mine")
    still = WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("test", ("star",)))
    place = (elsewhere if name in ("notes.txt", "images") else run.folder) / name
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=place.name):
        suites.evaluate(run, "canvas", tiny, still, seeds=(1,), base_answers=place)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", [2**64 - 1, 2**64 - suites.OTHER_SEEDS, -1])
def test_a_seed_that_is_too_high_is_named_as_it_was_given(seed: int, tmp_path: Path, tiny: DiffusionModel) -> None:
    """Also where only a seed that a suite derives from it is too high; the highest goes on to the next check."""
    still = WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("test", ("star",)))
    with pytest.raises(ConfigError, match=rf"seed {seed} .*from 0 to {2**64 - 1 - suites.OTHER_SEEDS}"):
        suites.evaluate(RunDirectory(tmp_path), "canvas", tiny, still, seeds=(1, seed))
    with pytest.raises(ConfigError, match="twice"):  # control
        suites.evaluate(RunDirectory(tmp_path), "canvas", tiny, still, seeds=(2**64 - 1 - suites.OTHER_SEEDS,) * 2)
    assert not list(tmp_path.iterdir())


def test_a_seed_counts_once(tmp_path: Path, tiny: DiffusionModel) -> None:
    still = WeightEdit({"unet.conv_out.bias": torch.zeros(4)}, EditInfo("test", ("star",)))
    with pytest.raises(ConfigError, match="twice"):
        suites.evaluate(RunDirectory(tmp_path), "canvas", tiny, still, seeds=(1, 1))
