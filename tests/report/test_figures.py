"""Images and numbers by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mu.report.figures import inline_image, short


def test_large_images_are_reduced(tmp_path: Path, draw: Callable[..., np.ndarray]):
    draw(tmp_path / "large.png", 0, 1024)
    draw(tmp_path / "small.png", 0)
    large, small = inline_image(tmp_path, "large.png", ""), inline_image(tmp_path, "small.png", "")
    assert (large.width, large.pixelated) == (512, False) and (small.width, small.pixelated) == (64, True)
    assert len(large.uri) < (tmp_path / "large.png").stat().st_size / 4


def test_numbers_are_short():
    values = [0.27813, 12345.6, 0.0001, -1.5, 0.0, float("nan"), 1e9]
    assert [short(v) for v in values] == ["0.2781", "12,346", "0.0001", "−1.5", "0", "not finite", "1e9"]
    assert short(13.9, padded=True) == "13.90"
