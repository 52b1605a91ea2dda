"""95 % intervals: drawn in parts they are the same, so that many images need no more memory than few; and every group of a
mean over groups counts once."""

from __future__ import annotations

import numpy as np
import pytest

from mu.evaluation.metrics import intervals
from mu.evaluation.metrics.intervals import bootstrap, evenly, mean_of_shares, wilson


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


def test_groups_of_equal_size_have_the_interval_of_their_share():
    groups = [[True, True], [False, True]]
    assert mean_of_shares(groups) == wilson(3, 4)
    low, high = mean_of_shares([[True, True], [True, True]])
    assert high == 1 and low < 0.6  # few images that all agree are no certainty


def test_groups_of_other_sizes_count_once_each():
    groups = [[True] * 9 + [False], [False, False]]
    weighted = evenly(groups)
    assert sum(weighted) / len(weighted) == pytest.approx((0.9 + 0) / 2)
    assert mean_of_shares(groups) == bootstrap(weighted)
    assert mean_of_shares(groups) != wilson(9, 12), "the control: pooling differs"
