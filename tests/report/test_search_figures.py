"""What the page of a run says of a calibrated search."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.report import write_report
from mu.report.page import read_page

READINGS = [
    {"step": 20, "left": 0.8, "shown": 0.5, "moved": 0.01},
    {"step": 40, "left": 0.05, "shown": 0, "moved": 0.1},
]
ENDED: dict[str, Any] = {
    "gone": True, "known": True, "mild": True, "left": 0.05, "shown": 0.0, "moved": 0.1, "strength": 1.25,
    "anchor": "sketch", "tried": [{"anchor": "sketch"}, {"anchor": ""}], "peers": ["sketch"], "partners": ["fish"], "others": ["tree"], "curve": READINGS,
    "strengths": [{"strength": s, "left": 0.3 - s / 5, "shown": 0, "moved": s / 10} for s in (1.0, 1.25)],
}  # fmt: skip


def folder(tmp_path: Path, **changes: Any) -> Path:
    (tmp_path / "config.yaml").write_text("model: canvas\n")
    (tmp_path / "calibration.json").write_text(json.dumps({"neon": {**ENDED, **changes}}))
    return tmp_path


def told(tmp_path: Path, **changes: Any) -> str:
    (search,) = read_page(RunDirectory(folder(tmp_path, **changes))).searches
    return search.sentence


def test_the_page_shows_how_a_search_ended_and_its_trade_off(tmp_path: Path):
    page = write_report(RunDirectory(folder(tmp_path)), tmp_path / "report.html").read_text()
    section = page.partition('id="search"')[2].partition("</section>")[0]
    assert {"neon", "sketch", "fish", "tree"} <= {*re.findall(r"\w+", section)} and "data:image/svg" in section
    assert "sketch, the empty prompt" in section, "the anchors that were tried"


def test_a_page_without_a_search_has_no_such_section(tmp_path: Path):
    folder(tmp_path)
    (tmp_path / "calibration.json").unlink()
    assert 'id="search"' not in write_report(RunDirectory(tmp_path), tmp_path / "report.html").read_text(), "control"


def test_the_sentence_claims_what_was_measured(tmp_path: Path):
    assert told(tmp_path).startswith("Gone") and "10 %" in told(tmp_path)
    assert told(tmp_path, gone=False, left=0.4).startswith("Not gone") and "40 %" in told(
        tmp_path, gone=False, left=0.4
    )
    assert "bound" in told(tmp_path, mild=False) and "bound" not in told(tmp_path), "control: a mild one"
    assert "Gone" not in told(tmp_path, gone=False, known=False)


@pytest.mark.parametrize("changes", [{"left": float("nan")}, {"curve": "no"}, {"gone": None}])
def test_a_damaged_record_is_one_line(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(DataError, match=r"calibration\.json"):
        told(tmp_path, **changes)
