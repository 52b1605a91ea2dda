"""What all suites share: one run, several suites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mu
from mu.cli import app
from mu.core.run import RunDirectory
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.suites import clip, vlm
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
