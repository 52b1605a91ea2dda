"""Suite i2p: what is counted, by a detector whose findings are known; and the real one on two images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import mu
from mu.cli import app
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.answers import Subject
from mu.evaluation.judges.nudenet import PRESETS, NudityJudge
from mu.evaluation.metrics.intervals import wilson
from mu.evaluation.suites import i2p
from mu.evaluation.suites.i2p import I2PSuite
from mu.models.parameters import select
from tests.evaluation.suites.conftest import COLOURS, Colours

COLUMNS = ("prompt", "categories", "evaluation_seed", "evaluation_guidance", "sd_image_width", "sd_image_height")
ROWS = [
    ("one", "sexual", 1, 7, 8, 4),
    ("two", "sexual, hate", 2, 7, 4, 4),
    ("three", "hate", 3, 5.5, 4, 8),
    ("", "violence", 4, 7, 4, 4),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "i2p.csv", ROWS)


def written(path: Path, rows) -> Path:
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([COLUMNS, *rows])
    return path


def detector(image: Tensor):
    """Red: a breast twice, and a face. Green: a belly of low score. Blue: feet. White: nothing."""
    means = image.mean(dim=(1, 2))
    name = next(name for name, colour in COLOURS.items() if torch.allclose(means, torch.tensor(colour), atol=0.01))
    found = {
        "red": [("FEMALE_BREAST_EXPOSED", 0.9), ("FEMALE_BREAST_EXPOSED", 0.7), ("FACE_FEMALE", 0.9)],
        "green": [("BELLY_EXPOSED", 0.5)],
        "blue": [("FEET_EXPOSED", 0.8)],
    }.get(name, [])
    return [{"class": part, "score": score} for part, score in found]


def plan(bank, file, monkeypatch, preset="mace"):
    judge = NudityJudge(detector, PRESETS[preset], f"nudenet:{preset}")
    monkeypatch.setattr(i2p, "open_judge", lambda name, device: judge)
    return I2PSuite(Subject.of(bank), [1], prompts=file)


def colours(column, row):
    base = {"one": "red", "two": "blue", "three": "green", "": ""}
    return base[row.prompt] if column == "base" else {**base, "one": ""}[row.prompt]


def test_what_enters_each_number(bank, scored, file, monkeypatch):
    nude = bank("nudity")
    found = scored(plan(nude, file, monkeypatch), nude, colours)
    base, edited = found["base"], found["edited"]
    assert (base["flagged"].value, edited["flagged"].value) == (0.5, 0.25)
    assert edited["flagged"].interval == wilson(1, 4) and edited["flagged"].change[0] < -0.2
    assert base["flagged"].per_item == {"sexual": 1.0, "hate": 0.5, "violence": 0.0}
    assert base["body parts"].value == 3 and edited["body parts"].value == 1, "two breasts and feet, not the face"
    counted = {part: count for part, count in base["body parts"].per_item.items() if count}
    assert counted == {"FEMALE_BREAST_EXPOSED": 2, "FEET_EXPOSED": 1} and len(base["body parts"].per_item) == 9
    assert base["body parts of sexual"].value == 3 and base["body parts of sexual"].n == 2
    assert edited["body parts of sexual"].value == 1 == base["body parts of hate"].value
    low, high = edited["body parts"].change
    assert low <= -2 <= high and edited["body parts"].interval[1] <= 4


def test_a_concept_that_the_judge_does_not_know_is_said(bank, scored, file, monkeypatch):
    both, nude = bank("nudity", "neon"), bank("nudity")
    assert scored(plan(both, file, monkeypatch), both, colours)["how"]["not measured: concepts"] == ["neon"]
    assert "not measured: concepts" not in scored(plan(nude, file, monkeypatch), nude, colours)["how"]  # the control


def test_the_preset_s_threshold_and_parts_count_and_are_in_the_protocol(bank, scored, file, monkeypatch):
    nude = bank("nudity")
    low = scored(plan(nude, file, monkeypatch, "unlearndiffatk"), nude, colours)
    assert low["base"]["flagged"].value == 0.75, "the belly of score 0.5 too"
    assert low["base"]["flagged"].protocol.endswith("nudenet:unlearndiffatk")
    assert low["how"]["threshold"] == PRESETS["unlearndiffatk"].threshold


def test_a_base_without_findings_shows_nothing(bank, scored, file, monkeypatch):
    nude = bank("nudity")
    found = scored(plan(nude, file, monkeypatch), nude, lambda *_: "")
    assert not found["edited"]["body parts"].value
    assert all("nothing" in each.doubt for column in ("base", "edited") for each in found[column].values())
    seen = scored(plan(nude, file, monkeypatch), nude, colours)
    assert not any(each.doubt for each in seen["edited"].values())  # control


def test_q16_gives_shares_alone(bank, scored, file, tmp_path):
    clip, nude = mu.load("canvas-clip", device="cpu"), bank("sexual content")
    images = torch.stack([torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, 4, 4) for name in ("", "red")])
    np.save(tmp_path / "p.npy", clip.encode_images(images).detach().numpy())  # red is the inappropriate one
    suite = I2PSuite(Subject.of(nude), [1], prompts=file, judge=f"q16:{tmp_path / 'p.npy'},canvas-clip")
    found = scored(suite, nude, lambda column, row: "red" if column == "base" and row.seed < 3 else "")
    assert found["base"]["flagged"].value == 0.5 and found["edited"]["flagged"].value == 0 and len(found["base"]) == 1


@pytest.mark.parametrize(
    ("content", "judge", "concept", "error", "said"),
    [
        ("prompt,seed\na,1\n", None, "nudity", DataError, "'categories'"),
        (None, "other", "nudity", ConfigError, "nudenet or q16"),
        (None, None, "neon", DataError, "'neon'"),
        ("prompt,categories\n", None, "nudity", DataError, "no prompts"),
    ],
)
def test_refused_by_name(content, judge, concept, error, said, bank, file, monkeypatch):
    if content:
        file.write_text(content)
    opened = Colours() if judge else NudityJudge(detector, PRESETS["mace"], "nudenet:mace")
    monkeypatch.setattr(i2p, "open_judge", lambda name, device: opened)
    with pytest.raises(error, match=said):
        I2PSuite(Subject.of(bank(concept)), [1], prompts=file, judge=judge or "nudenet:mace")


def test_the_real_detector_on_the_embedded_model_s_images(tmp_path):
    pytest.importorskip("nudenet")
    model = mu.load("canvas", device="cpu")
    side = model.default_size
    rows = [("a star", "sexual", 3, 4, side, side), ("a portrait", "hate", 4, 2.5, side * 3 // 2, side)]
    file, run = written(tmp_path / "part.csv", rows), RunDirectory(tmp_path / "run")
    run.folder.mkdir()
    shifts = {name: torch.full_like(p, 1.0) for name, p in select(model, "unet.conv_out.bias").items()}
    WeightEdit(shifts, EditInfo("test", ("nudity",))).save(run.edit)
    command = ["evaluate", str(run.folder), "--suite", "i2p", "--model", "canvas", "--device", "cpu", "--steps", "2"]
    told = CliRunner().invoke(app, [*command, "--prompts", str(file), "--judge", "nudenet:esd"])
    assert told.exit_code == 0, told.output
    sizes = {Image.open(path).size for path in (run.answers / "i2p" / "edited").glob("*.png")}
    assert sizes == {(side, side), (side * 3 // 2, side)}
    table = json.loads(run.scores.read_text())["suites"]["i2p"]
    for column in ("base", "edited"):
        flagged, parts, *by_category = table[column]
        assert flagged["n"] == parts["n"] == 2 and parts["value"] == sum(parts["per_item"].values())
        assert [each["name"] for each in by_category] == ["body parts of hate", "body parts of sexual"]
    refused = CliRunner().invoke(app, [*command, "--prompts", str(file), "--judge", "nudenet:mace2"])
    assert refused.exit_code == 2 and "mace2" in refused.stderr
