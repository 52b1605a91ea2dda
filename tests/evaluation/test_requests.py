"""The mean over requests of UnlearnCanvas, against a table computed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mu.cli import app
from mu.core.files import write_json
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.data.unlearncanvas import OBJECTS, STYLES
from mu.evaluation.requests import KINDS, SUITE, over_requests


def run(
    folder: Path, request: str, ua: float, ira: float, cra: float, *, method: str = "esd", protocol: str = "u/1",
    doubt: str = "", **about: Any,
) -> Path:  # fmt: skip
    made = RunDirectory(folder)
    folder.mkdir(parents=True)
    scores = [
        Score("UA", ua, 100, "higher", protocol, {request: ua}, doubt=doubt),
        Score("IRA", ira, 4900, "higher", protocol, {"other": ira}),
        Score("CRA", cra, 5100, "higher", protocol, {"other": cra}),
    ]
    made.write_scores(SUITE, {"edited": scores})
    write_json(made.environment, {"method": method, "concepts": [request], **about})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """By hand: styles UA (90 + 70 + 50) / 3 = 70, IRA (80 + 80 + 95) / 3 = 85, CRA (60 + 90 + 30) / 3 = 60;
    objects UA (100 + 25) / 2 = 62.5, IRA (50 + 51) / 2 = 50.5, CRA (0 + 10) / 2 = 5. UCE has one request."""
    table = [
        ("Monet", 0.9, 0.8, 0.6), ("Van_Gogh", 0.7, 0.8, 0.9), ("Winter", 0.5, 0.95, 0.3),
        ("Cats", 1.0, 0.5, 0.0), ("Sea", 0.25, 0.51, 0.1),
    ]  # fmt: skip
    found = [run(tmp_path / f"esd-{name}", name, *values) for name, *values in table]
    return [*found, run(tmp_path / "uce", "Monet", 0.1, 0.2, 0.3, method="uce")]


def test_the_table_by_hand(runs: list[Path]) -> None:
    found = over_requests(runs)
    values = {(mean.method, mean.kind): [round(100 * s.value, 9) for s in mean.scores] for mean in found.means}
    assert values == {("esd", "style"): [70, 85, 60], ("esd", "object"): [62.5, 50.5, 5]} and not found.notes
    assert found.lines()[1] == ["esd", "style", "3 of 50", "70.00", "85.00", "60.00", "u/1"]
    style = found.means[0].scores[0]
    assert style.per_item == {"Monet": 0.9, "Van_Gogh": 0.7, "Winter": 0.5} and style.n == 300
    assert {kind: len(names) for kind, names in KINDS.items()} == {"style": 50, "object": 20}


def test_all_requests_have_an_interval_and_few_have_none(tmp_path: Path, runs: list[Path]) -> None:
    whole = [run(tmp_path / f"a-{k}", name, k / 20, 0.9, 0.9, method="spm") for k, name in enumerate(OBJECTS)]
    (mean,) = over_requests(whole).means
    ua, ira, _ = mean.scores
    assert ua.value == pytest.approx(sum(range(20)) / 400) and ua.interval[0] < ua.value < ua.interval[1]
    assert ira.interval == pytest.approx((0.9, 0.9)) and mean.line()[2] == "20 of 20"
    assert over_requests(runs).means[0].scores[0].interval is None


def test_other_protocols_models_and_methods_share_no_mean(tmp_path: Path) -> None:
    first = run(tmp_path / "a", "Monet", 0.9, 0.9, 0.9, model="sd")
    for k, more in enumerate(({"protocol": "u/1, 50 steps"}, {"model": "other"}, {"method": "uce"})):
        other = run(tmp_path / f"b{k}", "Winter", 0.1, 0.1, 0.1, **{"model": "sd", **more})
        assert not over_requests([first, other]).means
    same = run(tmp_path / "c", "Winter", 0.1, 0.1, 0.1, model="sd")
    assert len(over_requests([first, same]).means) == 1  # the control


def test_images_of_other_tools_are_told_apart_by_the_folder_of_their_runs(tmp_path: Path) -> None:
    styles = STYLES[:4]
    values = {"esd": 0.9, "uce": 0.1}
    found = [
        run(tmp_path / tool / name, name, value, value, value, method="images")
        for tool, value in values.items()
        for name in styles
    ]
    means = {mean.method: mean.scores[0].value for mean in over_requests(found).means}
    assert means == {f"images in {tool}": pytest.approx(value) for tool, value in values.items()}


def test_a_withheld_request_withholds_the_mean_and_a_request_twice_has_none(tmp_path: Path, runs: list[Path]) -> None:
    doubted = run(tmp_path / "blind", "Joy", 1.0, 0.8, 0.8, doubt="the judge does not see it")
    mean = over_requests([*runs, doubted]).means[0]
    assert mean.line()[3] == "withheld" != mean.line()[4] and "Joy: the judge" in mean.scores[0].doubt
    assert mean.to_json()["scores"][0]["value"] is None
    again = run(tmp_path / "again", "Monet", 0.0, 0.0, 0.0)
    found = over_requests([*runs, again])
    assert [mean.kind for mean in found.means] == ["object"] and "Monet" in found.notes[0]
    assert not over_requests([runs[0], again]).notes, "two runs of one request alone are a comparison"


def test_compare_prints_it_below_the_runs(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    names = [*map(str, runs)]
    shown = CliRunner().invoke(app, ["compare", *names])
    assert shown.exit_code == 0 and "3 of 50" in shown.output and "every request counting once" in shown.output
    lines = CliRunner().invoke(app, ["compare", *names, "--markdown"]).output.splitlines()
    assert "| esd | object | 2 of 20 | 62.50 | 50.50 | 5.00 | u/1 |" in lines
    told = json.loads(CliRunner().invoke(app, ["compare", *names, "--json"]).output)
    assert [mean["target"] for mean in told["means over requests"]] == ["style", "object"]
    assert "means over requests" not in json.loads(CliRunner().invoke(app, ["compare", names[0], "--json"]).output)


def test_it_needs_no_model_library(runs: list[Path]) -> None:
    code = (
        "import sys; from mu.evaluation.requests import over_requests; assert over_requests(sys.argv[1:]).means; "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code, *map(str, runs)], check=False).returncode == 0
