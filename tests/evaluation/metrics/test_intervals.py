"""Intervals of means over groups: every group counts once."""

from __future__ import annotations

import pytest

from mu.evaluation.metrics.intervals import bootstrap, evenly, mean_of_shares, wilson


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
