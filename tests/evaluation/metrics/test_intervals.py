"""95 % intervals: drawn in parts they are the same, so that many images need no more memory than few; and every group of a
mean over groups counts once."""

from __future__ import annotations

import numpy as np
import pytest

from mu.core.errors import DataError
from mu.evaluation.metrics import intervals
from mu.evaluation.metrics.intervals import bootstrap, mean_of_means, mean_of_shares, paired, paired_means, wilson


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
    low, high = mean_of_shares(groups)
    assert low < (0.9 + 0) / 2 < high and (low, high) == mean_of_means(groups)
    assert mean_of_shares(groups) != wilson(9, 12), "the control: pooling differs"
    many = [[1.0] * 900 + [0.0] * 100, [0.0] * 200]
    assert sum(mean_of_means(many)) / 2 == pytest.approx((0.9 + 0) / 2, abs=0.03) != 900 / 1200


@pytest.mark.parametrize("sizes", [(1, 9), (1, 1, 30), (2, 3, 50)])
def test_intervals_of_shares_stay_shares_whatever_the_sizes(sizes):
    """A group of one image weighs as much as one of many, and may be drawn often."""
    ones, halves = [[1.0] * n for n in sizes], [[float(k % 2) for k in range(n)] for n in sizes]
    assert mean_of_shares(ones) == (1.0, 1.0)
    low, high = mean_of_shares(halves)
    assert 0 <= low < high <= 1
    zeros = [[0.0] * n for n in sizes]
    assert paired_means(ones, zeros) == (-1.0, -1.0) and -1 <= paired_means(ones, halves)[0] < 0


def test_groups_that_are_paired_must_be_equally_large():
    with pytest.raises(DataError, match="equally many, not 2 and 1"):
        paired_means([[1.0], [1.0, 0.0]], [[1.0], [1.0]])


def test_one_value_has_no_interval():
    """An interval of no width would call any change of one image certain."""
    assert bootstrap([0.3]) is paired([0.3], [0.1]) is mean_of_means([[0.3]]) is paired_means([[1.0]], [[0.0]]) is None
    assert bootstrap([0.3, 0.1]) == (0.1, 0.3) and mean_of_shares([[1.0]]) == wilson(1, 1)  # the control
