"""Pictures, curves and numbers by themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mu.report.figures import line_chart, picture, short


def test_large_pictures_are_reduced(tmp_path: Path, draw: Callable[..., np.ndarray]):
    draw(tmp_path / "large.png", 0, 1024)
    draw(tmp_path / "small.png", 0)
    large, small = picture(tmp_path, "large.png", ""), picture(tmp_path, "small.png", "")
    assert (large.width, large.pixelated) == (512, False) and (small.width, small.pixelated) == (64, True)
    assert len(large.uri) < (tmp_path / "large.png").stat().st_size / 4


def test_a_curve_reaches_its_extremes():
    svg = str(line_chart("loss", [(0, 4.0), (1, 2.0), (2, 3.0)]))
    line = re.search(r'class="line" points="([^"]*)"', svg).group(1)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, corner.split(",")) for corner in line.split())
    assert (x0, x2) == (46, 350) and x1 == 198
    assert y0 == 8 and y1 == 146 and y2 == pytest.approx((8 + 146) / 2)
    assert 'aria-label="loss: from 4 to 3"' in svg


def test_a_long_curve_is_summarised_with_its_range():
    noisy = [(i, 1.0 + (i % 2)) for i in range(20_000)]
    svg = str(line_chart("loss", noisy))
    corners = re.search(r'class="line" points="([^"]*)"', svg).group(1).split()
    assert len(corners) == 160 and all(abs(float(corner.split(",")[1]) - 77) < 1 for corner in corners)
    band = re.search(r'class="band" points="([^"]*)"', svg).group(1).split()
    assert {float(corner.split(",")[1]) for corner in band} == {8.0, 146.0}


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-1.0, -1.0], [1.0, float("nan"), float("inf"), 2.0], [1e-12, 1e12], [1e30, 3e30]]
)
def test_odd_curves_are_drawn(values: list[float]):
    svg = str(line_chart("<loss>", list(enumerate(values))))
    assert "<polyline" in svg and "nan" not in svg and "inf" not in svg and "<loss>" not in svg
    assert line_chart("loss", [(0, float("nan"))]) == ""


def test_numbers_are_short():
    values = [0.27813, 12345.6, 0.0001, -1.5, 0.0, float("nan"), 1e9]
    assert [short(v) for v in values] == ["0.2781", "12,346", "0.0001", "−1.5", "0", "not finite", "1e9"]
    assert short(13.9, padded=True) == "13.90"
