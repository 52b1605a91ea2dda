"""What the log of a run comes to in the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mu.core.run import RunDirectory


def test_losses_that_are_not_finite_are_counted(run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]):
    assert "not finite" not in read(page_of(run)).text
    with run.metrics.open("a") as lines:
        lines.write('{"step": 50, "lr": 1e-4, "loss": NaN}\n')
    assert "1 of 51 values are not finite" in read(page_of(run)).text
