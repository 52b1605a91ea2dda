"""docs/mass.md, typed as it stands on the small model: the same commands and the same Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mu.cli import app
from mu.edits.bank_folder import BankFolder
from mu.models import EMBEDDED
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "mass.md").read_text(encoding="utf-8")
NAMES = ["Ada Moss", "Ben Tull", "Cy Rook"]


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not EMBEDDED["canvas"].exists():
        pytest.skip("the embedded model's weights are not in this checkout")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    (tmp_path / "names_kept.csv").write_text("concept\nDee Fox\nEli Ray\nFay Low\n", encoding="utf-8")
    return tmp_path


def test_the_commands_of_the_page_run(place: Path) -> None:
    """All of them, in order; `check` ends with 1 where edits act on each other, as names do."""
    lines = [line for line in blocks("bash").splitlines() if line]
    assert all(line.startswith("mu ") for line in lines) and len(lines) == 6
    on = []
    for line in lines:
        words = shlex.split(line)[1:]
        small = {"erase": ["--no-images"], "bank restore": ["--no-measure"]}
        more = small.get(words[0], small.get(" ".join(words[:2]), []))
        ended = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        assert ended.exit_code in ((0, 1) if words[1] == "check" else (0,)), (line, ended.output, ended.stderr)
        on.append([entry.concept for entry in BankFolder("outputs/people").read().edits if entry.on])
    assert on == [NAMES, NAMES, NAMES, NAMES[1:], NAMES, NAMES]
    assert Path("outputs/conflicts.png").stat().st_size > 1000 and Path("outputs/people.safetensors").exists()


def test_the_python_of_the_page_runs(place: Path) -> None:
    names: dict = {}
    exec(compile(blocks("python"), "docs/mass.md", "exec"), names)
    assert names["exact"].info.concepts == ("neon", "moon") and 0 < names["error"] < 10
    assert names["names"] == ["neon", "star", "moon"]
