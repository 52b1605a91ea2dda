"""Published figures: as their sources print them, each with source and variant, and never in measured columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mu.cli import app
from mu.core.errors import ConfigError
from mu.core.files import write_json
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.evaluation.published import published, read_published
from mu.evaluation.suites.unlearncanvas import VARIANTS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = RunDirectory(tmp_path / "van-gogh")
    made.folder.mkdir()
    made.write_scores("unlearncanvas", {"edited": [Score("UA", 0.625, 100, "higher", "unlearncanvas/1")]})
    write_json(made.environment, {"method": "esd", "concepts": ["Van Gogh"]})
    return made.folder


def compare(*words: object) -> str:
    done = CliRunner().invoke(app, ["compare", *map(str, words)], prog_name="mu")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_figures_are_those_of_the_sources():
    table = read_published("unlearncanvas")
    of = {(row.method, row.target, row.source, row.note): row.scores for row in table.rows}
    assert len(of) == len(table.rows)  # no row twice
    assert of["SalUn", "object", "table", ""] == {"UA": 86.91, "IRA": 96.35, "CRA": 99.59}
    assert of["SPM", "all", "table", ""] == {"FID": 59.79, "seconds": 29700, "memory GB": 6.9, "stored GB": 0}
    assert of["SAeUron", "style", "saeuron", ""]["CRA"] == 99.40
    assert sum(row.source == "table" for row in table.rows) == 27
    means = {  # of the published averages
        ("ESD", "style"): 91.17, ("FMN", "style"): 63.95, ("UCE", "style"): 68.78, ("CA", "style"): 83.18,
        ("SalUn", "style"): 90.58, ("SEOT", "style"): 78.63, ("SPM", "style"): 79.22, ("EDiff", "style"): 88.42,
        ("SHS", "style"): 73.18, ("ESD", "object"): 64.05, ("FMN", "object"): 69.91, ("UCE", "object"): 56.11,
        ("CA", "object"): 72.92, ("SalUn", "object"): 94.28, ("SEOT", "object"): 67.18, ("SPM", "object"): 81.23,
        ("EDiff", "object"): 76.39, ("SHS", "object"): 76.62,
    }  # fmt: skip
    for (method, target), mean in means.items():
        scores = of[method, target, "table", ""]
        assert sum(scores.values()) / 3 == pytest.approx(mean, abs=0.011), (method, target)


def test_figures_of_nudity_are_those_of_the_sources():
    of = {(row.method, row.target, row.source): row.scores for row in read_published("nudity").rows}
    assert of["AdvUnlearn", "nudity", "board"] == {"pre-ASR": 7.75, "ASR": 21.13, "FID": 19.34, "CLIP score": 29.0}
    assert of["MACE", "nudity", "trce"]["P4D"] == 7.95 and of["MACE", "Van Gogh", "others"]["ASR"] == 58.5
    assert of["DES", "nudity", "des"] == {"I2P detections": 16, "FID": 15.44, "CLIP score": 25.52}
    both = {method for method, target, source in of if source == "trce" and (method, target, "board") in of}
    lower = {
        name for name in both if of[name, "nudity", "trce"]["UnlearnDiffAtk"] < of[name, "nudity", "board"]["ASR"] - 15
    }
    assert both - lower == {"ESD"} and len(lower) == 4, "as the source's caveat says"


@pytest.mark.parametrize("name", [*published()])
def test_every_row_has_a_source_and_only_figures_of_its_table(name: str):
    table = read_published(name)
    assert {row.source for row in table.rows} == {*table.sources}
    for row in table.rows:
        assert row.scores and {*row.scores} <= {*table.columns}
    for source in table.sources.values():
        assert source.text and source.caveat
        assert name != "unlearncanvas" or source.variant in {*VARIANTS, "not stated"}
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
        read_published(f"{name}s")


def test_they_stand_beside_the_runs_and_never_in_their_columns(run: Path):
    told = json.loads(compare(run, "--published", "unlearncanvas", "--json"))
    plain = json.loads(compare(run, "--json"))
    beside = told.pop("published")
    assert told == plain and [column["protocol"] for column in told["columns"]] == ["unlearncanvas/1"]
    assert all(row["source"]["variant"] and row["source"]["text"] for row in beside["rows"])
    lines = compare(run, "--published", "unlearncanvas", "--markdown").splitlines()
    ours, theirs = lines[: lines.index("")], lines[lines.index("") :]
    assert ours == compare(run, "--markdown").splitlines() and not any("98.58" in line for line in ours)
    assert any("as published, not measured here" in line for line in theirs)
    assert "| ESD | style | published | 98.58 | 80.97 | 93.96 |  |  |  |  | [1] |" in theirs
    assert any(line.startswith("- [1] UnlearnCanvas v4") for line in theirs)
    text = compare(run, "--published", "speed")
    assert "0.6250" in text and "29700" in text and "[3] UnlearnCanvas v4" in text
    refused = CliRunner().invoke(app, ["compare", str(run), "--published", "unlerncanvas"], prog_name="mu")
    assert refused.exit_code == 2 and "'unlearncanvas'" in refused.stderr
