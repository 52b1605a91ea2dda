"""The examples run as they stand, on the embedded models, and what they print says that the concept went."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHORT = (
    "data.n_forget=48",
    "data.n_retain=64",
    "data.per_class=6",
    "layers.max_front=2",
    "search.steps=6",
    "devices=cpu",
)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_the_concept_goes_and_the_others_stay(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    words = [word for setting in SHORT for word in ("--set", setting)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    (gone, *kept), (gone_after, *kept_after) = (
        [int(n) for n in re.findall(r"(\d+)%", lines[when])] for when in ("before", "after")
    )
    assert gone > 70 and min(kept) > 70, "control: all were known"
    assert gone_after < 20 and min(kept_after) > 70
    assert min(Image.open(tmp_path / f"{name}.png").size) > 100


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 40
