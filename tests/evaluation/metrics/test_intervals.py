"""95 % intervals: drawn in parts they are the same, so that many images need no more memory than few."""

from __future__ import annotations

import numpy as np
import pytest

from mu.evaluation.metrics import intervals
from mu.evaluation.metrics.intervals import bootstrap


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    values = np.random.default_rng(5).normal(size=70).tolist()
    whole = bootstrap(values)
    for at_once in (1, 333, 70 * 7):
        monkeypatch.setattr(intervals, "AT_ONCE", at_once)
        assert bootstrap(values) == whole
    assert bootstrap(values, seed=1) != whole  # the control


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(6).normal(size=400)
    low, high = bootstrap(values.tolist())
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
