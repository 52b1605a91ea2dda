"""The first thing that a newcomer sees: the demo's report shows the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mu import demo
from mu.algorithms import algorithm
from mu.core.errors import OutputError
from mu.core.run import RunDirectory
from mu.core.scores import Score


def in_two_steps(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *what, **how: make(*what, **{**how, "steps": 2})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three training steps, images of two, and scores that nothing measured: the demo's own work stays."""
    spm = algorithm("spm")
    complete = spm.for_concepts
    settings = {"train": {"iterations": 3, "max_denoising_steps": 4}}
    monkeypatch.setattr(spm, "for_concepts", lambda *words: complete(*words).merged(settings))
    for name in ("before_after", "write_images"):
        monkeypatch.setattr(demo, name, in_two_steps(getattr(demo, name)))

    def told(value: float) -> list[Score]:
        return [Score(name, value, n=1, direction="higher", protocol="canvas/1") for name in ("UA", "IRA", "CRA")]

    measured = iter([0.1, 0.2])
    monkeypatch.setattr(demo, "evaluate", lambda *_, **__: {"base": told(next(measured)), "edited": told(1.0)})


def test_the_report_shows_every_column(short: None, tmp_path: Path) -> None:
    report = demo.run(tmp_path / "demo", overwrite=True)  # as `make demo` calls it
    home = RunDirectory(tmp_path / "demo")
    (panel,) = home.read_panels()
    assert panel.columns[0] == "base" and len(panel.columns) == 5
    scores = home.read_scores()
    assert {suite: table["base"][0].value for suite, table in scores.items()} == {
        "canvas, neon erased": 0.1,
        "canvas, star erased": 0.2,  # each beside its own base
    }
    images = [home.folder / str(name) for row in panel.rows for name in row.images]
    assert images and all(path.exists() for path in images)
    assert report.read_text(encoding="utf-8").count("data:image/") >= len(images)
    with pytest.raises(OutputError, match="--overwrite"):
        demo.run(tmp_path / "demo")
