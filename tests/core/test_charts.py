"""Charts are the same everywhere, read no text as a formula, and leave the user's home alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from mu.core.charts import drawing, new_figure, png, svg

ROOT = Path(__file__).resolve().parents[2]


@drawing()
def drawn(title: str = "") -> Figure:
    figure = new_figure(2, 1)
    figure.add_subplot(title=title).plot([0, 1], [1, 3])
    return figure


def test_the_same_figure_gives_the_same_bytes_whatever_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    first = svg(drawn()), png(drawn(), 50)
    monkeypatch.setitem(rcParams, "lines.linewidth", 9)
    monkeypatch.setitem(rcParams, "svg.hashsalt", "another")
    assert (svg(drawn()), png(drawn(), 50)) == first
    assert rcParams["lines.linewidth"] == 9, "and theirs stay"
    assert b"<dc:date>" not in first[0] and b"Matplotlib" not in first[0]


def test_a_text_is_no_formula() -> None:
    text = r"$\frac$"
    assert text.encode() in svg(drawn(text))
    plain = Figure(figsize=(2, 1))
    plain.add_subplot(title=text)
    with pytest.raises(ValueError, match="frac"):  # control: matplotlib's own way
        png(plain, 50)


def written_by(code: str, home: Path) -> list[Path]:
    """What ``code`` leaves in the user's home."""
    home.mkdir()
    names = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLBACKEND", "DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [path for path in home.rglob("*") if path.is_file()]


def test_nothing_is_written_into_the_users_home(tmp_path: Path) -> None:
    ours = "from mu.core.charts import *\nwith drawing():\n    f = new_figure(1, 1); f.text(0, 0, 'x')\nsvg(f)"
    assert written_by(ours, tmp_path / "ours") == []
    theirs = (
        "from matplotlib.figure import Figure\nf = Figure(); f.text(0, 0, 'x'); f.savefig(__import__('io').BytesIO())"
    )
    assert written_by(theirs, tmp_path / "theirs"), "control: matplotlib alone does"
