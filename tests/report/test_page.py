"""A run folder with a part missing, damaged, or named by what it holds."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import DataError, OutputError
from mu.core.run import RunDirectory
from mu.report import write_report


@pytest.mark.parametrize(
    ("part", "sign", "instead"),
    [
        ("config.yaml", "config.yaml", ""),
        ("environment.json", "Versions", "neon-run"),
        ("metrics.jsonl", "Training", ""),
        ("scores.json", "How each was measured", "mu evaluate"),
        ("prompts.json", "Prompts and gates", "1_0.png"),
        ("panels.json", "Two edits", ""),
        ("after", "after the edit: A star image in neon style.", "no image"),
    ],
)
def test_a_missing_part_is_left_out(
    run: RunDirectory, part: str, sign: str, instead: str, read: Callable[[str], Any], page_of: Callable[..., str]
):
    def seen() -> str:
        reader = read(page_of(run))
        return " ".join([reader.text, *(alt for alt, _ in reader.images())])

    assert sign in seen()
    path = run.folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sign not in seen() and instead in seen()


def test_the_emptiest_run_says_how_to_go_on(tmp_path: Path, read: Callable[[str], Any], page_of: Callable[..., str]):
    run = RunDirectory(tmp_path / "my run")
    run.folder.mkdir()
    with pytest.raises(DataError, match="my run"):
        write_report(run)
    run.config.write_text("seed: 1\n")
    assert f"mu evaluate '{run.folder}'" in read(page_of(run)).text
    with pytest.raises(DataError, match="run"):
        write_report([])
    with pytest.raises(OutputError, match=r"config\.yaml/report\.html"):
        write_report(run, run.config / "report.html")


def test_the_title_of_an_edit_without_scores_says_so(run: RunDirectory, page_of: Callable[..., str]):
    def title() -> str:
        return html.unescape(page_of(run).partition("<title>")[2].partition("</title>")[0])

    concepts = ", ".join(run.origin().concept_names())
    assert concepts in title() and "not measured" not in title(), "control"
    run.scores.unlink()
    assert title() == f"edit for {concepts}, not measured yet"


def test_each_gate_is_named_by_its_concept(
    run: RunDirectory, read: Callable[[str], Any], loads: Callable[[str], list[str]], page_of: Callable[..., str]
):
    asked = json.loads((run.folder / "prompts.json").read_text())
    environment = json.loads(run.environment.read_text())
    prompts = [{**prompt, "gate": [0.91, 0.12]} for prompt in asked]
    (run.folder / "prompts.json").write_text(json.dumps(prompts))
    assert "gate 2" in read(page_of(run)).text
    run.environment.write_text(json.dumps({**environment, "concepts": ["neon", "star"]}))
    text = read(page_of(run)).text
    assert "gate: neon" in text and "gate: star" in text
    assert "gate 0.91, 0.12" in text and "gate 2" not in text


def damage(name: str, text: str) -> Callable[[RunDirectory], object]:
    return lambda run: (run.folder / name).write_text(text)


@pytest.mark.parametrize(
    "spoil",
    [
        damage("environment.json", "{"),
        damage("prompts.json", '{"case_number": 0}'),
        damage("prompts.json", '[{"seed": 1}]'),
        damage("scores.json", '{"base": [{"name": "UA"}]}'),
        damage(
            "panels.json",
            '[{"title": "t", "columns": ["a", "b"], "rows": [{"label": "l", "images": ["panels/a.png"]}]}]',
        ),
    ],
)
def test_a_damaged_file_is_named(run: RunDirectory, spoil: Callable[[RunDirectory], object]):
    write_report(run)
    spoil(run)
    with pytest.raises(DataError, match=r"environment|prompts|metrics|scores|panels"):
        write_report(run)
