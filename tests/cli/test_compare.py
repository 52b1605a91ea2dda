"""``mu compare``: a row for each run, a column for each score and protocol, nothing mixed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import DataError
from mu.core.files import write_json
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report.table import score_table


def made(folder: Path, edited: list[Score], base: list[Score] | None = None, **about: Any) -> Path:
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    run.write_scores("canvas", {**({"base": base} if base else {}), "edited": edited})
    write_json(run.environment, {"method": "spm", "concepts": ["neon"], **about})
    return folder


def ua(value: float, protocol: str = "canvas/1") -> Score:
    return Score("UA", value, 20, "higher", protocol)


def fid(value: float) -> Score:
    return Score("FID", value, 100, "lower", "fid/1")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        made(tmp_path / "a", [ua(0.9), fid(12)], [ua(0.1), fid(0.5)]),
        made(tmp_path / "b", [fid(11), ua(0.8)], [ua(0.1)], method="esd", concepts=["star", "a|b"]),
        made(tmp_path / "c", [ua(0.99, "unlearncanvas/2")]),
    ]


def test_numbers_of_two_protocols_stand_in_two_columns(runs: list[Path], cli: Any) -> None:
    told = json.loads(cli("compare", *runs, "--json").stdout)
    columns = [(c["name"], c["protocol"], c["direction"]) for c in told["columns"]]
    assert columns == [("UA", "canvas/1", "higher"), ("FID", "fid/1", "lower"), ("UA", "unlearncanvas/2", "higher")]
    values = {row["run"]: [s and s["value"] for s in row["scores"]] for row in told["rows"]}
    assert values == {"base": [0.1, 0.5, None], "a": [0.9, 12, None], "b": [0.8, 11, None], "c": [None, None, 0.99]}
    assert told["rows"][2]["method"] == "esd" and told["rows"][2]["concepts"] == ["star", "a|b"]
    for row in told["rows"]:
        for column, score in zip(told["columns"], row["scores"], strict=True):
            assert score is None or (score["name"], score["protocol"]) == (column["name"], column["protocol"])


def test_markdown_marks_the_best_edit_and_says_protocols_where_a_name_has_two(runs: list[Path], cli: Any) -> None:
    lines = cli("compare", *runs, "--markdown").stdout.strip().splitlines()
    assert lines[0] == "| run | method | concepts | UA (canvas/1) ↑ | FID ↓ | UA (unlearncanvas/2) ↑ |"
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: |"
    assert lines[2] == "| base |  |  | 0.1000 | 0.5000 |  |", "the untouched model is never the best edit"
    assert lines[3] == "| a | spm | neon | **0.9000** | 12.00 |  |"
    assert lines[4] == r"| b | esd | star, a\|b | 0.8000 | **11.00** |  |"
    assert lines[5] == "| c | spm | neon |  |  | 0.9900 |", "alone in its column there is nothing to choose"


def test_towards_a_number_the_nearest_is_the_best(tmp_path: Path, cli: Any) -> None:
    """A membership inference of 0.6 tells less than one of 0.3 or of 1, whatever is lower or higher."""
    runs = []
    for value in (0.3, 0.6, 1.0):
        runs.append(
            made(
                tmp_path / str(value),
                [Score("MIA", value, 9, "towards 0.5", "clip/1"), Score("odd", value, 9, "lower", "clip/1")],
            )
        )
    lines = cli("compare", *runs, "--markdown").stdout.strip().splitlines()
    assert lines[0].endswith("| MIA → 0.5 | odd ↓ |")
    assert [line.split("|")[4].strip() for line in lines[2:]] == ["0.3000", "**0.6000**", "1.000"]
    assert [line.split("|")[5].strip() for line in lines[2:]] == ["**0.3000**", "0.6000", "1.000"], (
        "control: the lowest is another"
    )


def test_the_plain_table_shows_every_run(runs: list[Path], cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli("compare", *runs).stdout
    assert all(text in shown for text in ("base", "esd", "0.9000", "11.00", "UA (unlearncanvas/2)"))


def test_intervals_are_shown_and_what_is_in_doubt_is_withheld(tmp_path: Path, cli: Any) -> None:
    """The base of run b hardly shows the concept, so its better number is worth nothing."""

    def shown(value: float, **more: Any) -> Score:
        return Score("target shown", value, 40, "lower", "concept/1", **more)

    runs = [
        made(tmp_path / "a", [shown(0.1, interval=(0.04, 0.23))], [shown(0.9)]),
        made(tmp_path / "b", [shown(0.0, interval=(0.0, 0.09))], [shown(0.2)]),
        made(tmp_path / "c", [shown(0.3)], [shown(0.9)]),
    ]  # fmt: skip
    lines = cli("compare", *runs, "--markdown").stdout.strip().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines[2:]}
    assert cells == {
        "base of a": "0.9000", "base of b": "withheld", "base of c": "0.9000",
        "a": "**0.1000 [0.04, 0.23]**", "b": "withheld", "c": "0.3000",
    }  # fmt: skip
    told = json.loads(cli("compare", *runs, "--json").stdout)
    doubts = {row["run"]: row["scores"][0].get("doubt", "") for row in told["rows"]}
    assert "only 20.0%" in doubts["b"] and not doubts["a"]


def test_many_scores_of_two_runs_fit_a_terminal(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"accuracy of kind {k}" for k in range(9)]
    scores = [Score(name, 0.5 + k / 100, 9, "higher", "clip/1") for k, name in enumerate(names)]
    shown = cli("compare", made(tmp_path / "neon", scores), made(tmp_path / "neon-uce", scores)).stdout
    assert (
        all(text in shown for text in (*names, "neon-uce", "0.5000", "0.5800"))
        and "\N{HORIZONTAL ELLIPSIS}" not in shown
    )


def test_other_numbers_of_the_untouched_model_are_told_apart(tmp_path: Path) -> None:
    runs = [made(tmp_path / k, [ua(0.9)], [ua(base)]) for k, base in (("a", 0.1), ("b", 0.2))]
    assert [(row.run, row.scores["UA", "canvas/1"].value) for row in score_table(runs).rows] == [
        ("base of a", 0.1),
        ("base of b", 0.2),
        ("a", 0.9),
        ("b", 0.9),
    ]


def test_runs_of_one_name_are_told_by_their_paths(tmp_path: Path) -> None:
    runs = [made(tmp_path / k / "neon", [ua(0.9)]) for k in ("a", "b")]
    assert [row.run for row in score_table(runs).rows] == [str(run) for run in runs]


def test_bad_input_is_one_line(tmp_path: Path, runs: list[Path], cli: Any) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scores.json").write_text('{"edited": [{"value": 1}]}', encoding="utf-8")
    turned = made(tmp_path / "turned", [Score("UA", 0.5, 20, "lower", "canvas/1")])
    for arguments, message in (
        ([tmp_path / "none"], "mu evaluate"),
        ([tmp_path / "broken"], "scores.json"),
        ([*runs, turned], "turned"),
        ([*runs, "--json", "--markdown"], "--json"),
    ):
        done = cli("compare", *arguments)
        assert done.exit_code == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1, (
            done.stderr
        )
    with pytest.raises(DataError, match="nowhere"):
        score_table([tmp_path / "nowhere"])


def test_it_needs_no_model_library(runs: list[Path]) -> None:
    code = "import sys; from mu.report.table import score_table; score_table(sys.argv[1:]); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code, *map(str, runs)], check=False).returncode == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_no_figure_of_a_table_is_cut(
    terminal: bool, runs: list[Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    shown = cli("compare", *runs, "--published", "unlearncanvas").stdout
    table = shown.partition("as published")[2].partition("\n[1] ")[0]
    assert "\N{HORIZONTAL ELLIPSIS}" not in table
    whole = [line for line in table.splitlines() if "SAEmnesia" in line and "94.65" in line]
    assert bool(whole) is not terminal  # a file has each word whole; a terminal breaks them to its width
    assert terminal is (max(map(len, re.sub(r"\x1b\[[\d;]*m", "", table).splitlines()[1:])) <= 80)
