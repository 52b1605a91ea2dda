"""The page claims nothing that was not measured, and says what was changed after it was measured."""

from __future__ import annotations

import pytest

from mu.core.errors import OutputError
from mu.core.evidence import note_scores, note_search
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report import write_report
from mu.report.page import read_page
from mu.report.verdict import ERASED, SHOWN, UNMEASURED, WITHHELD
from tests.report.conftest import Reader, run_at, scores


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return run_at(tmp_path / "neon")


def heading(run: RunDirectory) -> str:
    page = write_report(run).read_text(encoding="utf-8")
    return page[page.index("<h1>") : page.index("</h1>")]


def test_a_measured_erasure_is_claimed(run):
    assert "erased" in heading(run) and read_page(run).verdict.state == ERASED


def test_an_unmeasured_edit_is_called_an_edit(run):
    run.scores.unlink()
    assert "erased" not in heading(run) and 'class="concept"' not in heading(run)
    assert read_page(run).verdict.state == UNMEASURED


@pytest.mark.parametrize(
    ("base", "edited", "state"), [(0.03, 0.2, SHOWN), (0.6, 0.97, WITHHELD), (0.03, None, UNMEASURED)]
)
def test_what_the_scores_do_not_show_is_not_claimed(run, base, edited, state):
    """Most images still show it; the base model hardly showed it; no score is about what was erased."""
    table = {
        column: [Score("UA" if value is not None else "IRA", 0.9 if value is None else value, 64, "higher", "mini/1")]
        for column, value in (("base", base), ("edited", edited))
    }
    run.write_scores("mini", table)
    page = read_page(run)
    assert not page.erased and page.verdict.state == state and "erased" not in heading(run)


def test_a_swapped_edit_and_an_edited_score_are_told(run):
    run.edit.write_bytes(b"weights")
    note_search(run)
    note_scores(run, "mini")
    assert not read_page(run).changed  # control
    run.edit.write_bytes(b"others")
    run.write_scores("mini", scores(ua=0.99))
    text = Reader(write_report(run).read_text(encoding="utf-8")).text
    assert {finding.part for finding in read_page(run).changed} == {"edit.safetensors", "scores of mini"}
    assert "edit.safetensors" in text and "scores of mini" in text


@pytest.mark.parametrize("name", ["edit.safetensors", "config.yaml", "before"])
def test_a_page_never_replaces_another_file(run, name):
    run.edit.write_bytes(b"weights")
    with pytest.raises(OutputError, match=name.replace(".", r"\.")):
        write_report(run, run.folder / name)
    assert run.edit.read_bytes() == b"weights" and run.before.is_dir()
    assert write_report(run, run.folder / "report.html") == write_report(run)  # control: a page is replaced
