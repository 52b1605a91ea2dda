"""95 % intervals of measured numbers: Wilson's for shares, the percentile bootstrap for means and differences.

They say how far another draw of the same prompts and seeds could lie from the number. They say nothing of prompts that
were not asked, and nothing of a judge that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mu.core.errors import DataError
from mu.core.intervals import Interval, wilson

DRAWS = 2000
AT_ONCE = 4_000_000
"""Values drawn at once, so that tens of thousands of images need no gigabyte."""


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The interval of the mean of ``values``: the 2.5 and 97.5 % points of the means of `DRAWS` samples drawn again.

    Deterministic for a seed. Source: Efron 1979. A single value has no interval: it is returned twice. Raises
    `DataError` for no values, or values that are not finite.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    known = np.asarray(values, dtype=np.float64)
    if not known.size or not np.isfinite(known).all():
        raise DataError("a mean needs one or more finite values: check how they were measured")
    random, part = np.random.default_rng(seed), max(1, AT_ONCE // len(known))
    draws = (min(part, DRAWS - k) for k in range(0, DRAWS, part))
    means = [known[random.integers(len(known), size=(n, len(known)))].mean(axis=1) for n in draws]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def mean_of_shares(groups: Sequence[Sequence[bool]]) -> Interval:
    """The interval of the mean of the groups' shares, every group counting once: see `evenly`.

    Wilson's of all images where the groups are equally large, since the mean is then their share; else the bootstrap.

    >>> mean_of_shares([[True, True], [False, False]]) == wilson(2, 4)
    True
    """
    if len({len(group) for group in groups}) == 1:
        return wilson(sum(map(sum, groups)), sum(map(len, groups)))
    return bootstrap(evenly(groups))


def evenly(groups: Sequence[Sequence[bool]]) -> list[float]:
    """The values of all groups, weighted so that their mean is the mean of the groups' means.

    >>> evenly([[True], [True, False, False]])
    [2.0, 0.6666666666666666, 0.0, 0.0]
    """
    n = sum(map(len, groups))
    return [float(value) * n / (len(groups) * len(group)) for group in groups for value in group]


def paired(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Interval:
    """The interval of the mean change from ``before`` to ``after``, paired: the same prompt and seed at each place.

    >>> paired([1.0, 0.0, 1.0], [0.0, -1.0, 0.0])
    (-1.0, -1.0)
    """
    if len(before) != len(after):
        raise DataError(f"paired values must be equally many, not {len(before)} and {len(after)}")
    return bootstrap([b - a for a, b in zip(before, after, strict=True)], seed=seed)
