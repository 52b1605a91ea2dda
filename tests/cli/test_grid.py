"""``mu grid`` and ``mu tune`` as they are typed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mu.core.lock import locked
from mu.core.run import RunDirectory
from tests.grid.conftest import small

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of four cells; "moon" should stay too, so that its cells fail."""
    path = tmp_path_factory.mktemp("plans") / "methods.yaml"
    methods = ["uce", {"method": "uce", "sweep": {"lamb": [5.0]}}]
    path.write_text(yaml.safe_dump(small(methods=methods, concepts=["star", "moon"])))
    return path


@pytest.fixture(scope="module")
def grid(plan: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """That plan, run."""
    out = tmp_path_factory.mktemp("grids") / "methods"
    ended = cli("grid", "run", plan, "--out", out, "--jobs", 0)
    assert ended.exit_code == 1, ended.output + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == f"grid    {out}: 2 of 4 cells have results"
    assert all("failed  uce-moon-canvas-" in line and "cannot stay" in line for line in lines[1:]) and len(lines) == 3
    return out


def test_a_dry_run_lists_the_cells_and_makes_nothing(plan: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("grid", "run", plan, "--dry-run", "--out", tmp_path / "grid")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 4
    assert done.stdout.splitlines()[2].endswith("  uce lamb=5")
    assert not (tmp_path / "grid").exists()


def test_the_state_of_each_cell(grid: Path, cli: Cli) -> None:
    told = cli("grid", "status", grid).stdout
    assert "2 done, 0 running, 0 waiting, 2 failed" in told
    content = json.loads(cli("grid", "status", grid, "--json").stdout)
    assert [each["state"] for each in content.values()] == ["done", "failed", "done", "failed"]
    assert all(each["evaluations"] > 0 for each in content.values() if each["state"] == "done")


def test_the_table_in_every_format(grid: Path, tmp_path: Path, cli: Cli) -> None:
    content = json.loads(cli("grid", "table", grid, "--format", "json").stdout)
    assert [each["state"] for each in content] == ["done", "failed", "done", "failed"]
    done = content[0]
    run = RunDirectory(grid / "runs" / done["cell"])
    shown = next(score for score in run.read_scores()["concept"]["edited"] if score.name == "target shown")
    assert done["erased"] == 1 - shown.value
    assert done["erased_interval"] == pytest.approx([1 - shown.interval[1], 1 - shown.interval[0]])  # type: ignore[index]
    kept = next(score for score in run.read_scores()["concept"]["edited"] if score.name == "neighbours kept")
    assert done["kept"] == kept.value

    rows = list(csv.DictReader(io.StringIO(cli("grid", "table", grid, "--format", "csv").stdout)))
    assert [row["cell"] for row in rows] == [each["cell"] for each in content]
    name = next(key for key in rows[0] if key.startswith("target shown") and key.endswith(" high"))
    assert float(rows[0][name]) == pytest.approx(shown.interval[1])  # type: ignore[index]
    assert rows[1]["reason"].startswith("'moon' is erased") and rows[1][name] == ""

    latex = cli("grid", "table", grid, "--format", "latex").stdout
    assert latex.startswith(r"\begin{tabular}{llll") and latex.count(r"\\") == 5 and "%" not in latex.replace(r"\%", "")
    out = tmp_path / "table.md"
    assert cli("grid", "table", grid, "--format", "md", "--out", out).exit_code == 0
    assert out.read_text(encoding="utf-8").count("\n") == 6 and "failed: 'moon' is erased" in out.read_text(
        encoding="utf-8"
    )
    assert (
        "2 of 4" not in cli("grid", "table", grid).stdout and "1 of 2" in cli("grid", "table", grid, "--means").stdout
    )
    assert cli("grid", "table", grid, "--means", "--format", "md").stdout.count("| 1 of 2 |") == 2
    refused = cli("grid", "table", grid, "--means", "--format", "csv")
    assert refused.exit_code == 2 and "--means is for the terminal and for --format md" in refused.stderr


def test_the_page_has_all_cells_plots_and_a_section_for_each_concept(grid: Path, cli: Cli) -> None:
    done = cli("grid", "report", grid)
    page = Path(done.stdout.strip()).read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2, "the means, and star; moon has no results"
    assert '<section id="star">' in page and '<section id="moon">' in page and "Nothing here has an erased" in page
    links = [part.partition('"')[0] for part in page.split('href="runs/')[1:]]
    assert links and all((grid / "runs" / link).is_file() for link in links)
    assert 'src="http' not in page and "<script" not in page, "one file"
    assert cli("grid", "report", grid).exit_code == 0, "its own page is replaced"


def test_what_is_wrong_is_said_in_a_line_each(plan: Path, grid: Path, tmp_path: Path, cli: Cli) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "methods: [ucee, {method: uce, set: {lamda: 1}}]\nconcepts: [star]\nsuites: [conceptt]\nattacks: [x]\n"
    )
    before = sorted(tmp_path.rglob("*"))
    ended = cli("grid", "run", bad, "--out", tmp_path / "out")
    assert ended.exit_code == 2 and ended.stderr == f"error: {bad}: attacks: none exist yet, leave the key out\n"
    bad.write_text(bad.read_text().replace("attacks: [x]\n", ""))
    ended = cli("grid", "run", bad, "--out", tmp_path / "out")
    assert ended.exit_code == 2 and [line[:7] for line in ended.stderr.splitlines()] == ["error: "] * 3
    assert sorted(tmp_path.rglob("*")) == before
    for words, line in {
        ("status", tmp_path): "is not a grid's folder",
        ("table", tmp_path / "none"): "does not exist",
        ("table", grid, "--format", "xls"): "Formats: csv, json, latex, md",
        ("table", grid, "--out", tmp_path / "t.csv"): "--out needs --format",
        ("report", grid, "--out", bad): "is not a grid's page",
        ("run", plan, "--ray", "auto", "--jobs", 2): "leave one of the two out",
    }.items():
        ended = cli("grid", *words)
        assert ended.exit_code == 2 and line in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_two_grids_in_one_folder_are_refused(plan: Path, grid: Path, cli: Cli) -> None:
    with locked(grid):
        ended = cli("grid", "run", plan, "--out", grid, "--jobs", 0)
    assert ended.exit_code == 2 and f"another process is working in {grid}" in ended.stderr
