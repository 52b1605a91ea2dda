"""95 % intervals of measured numbers: Wilson's for shares, the percentile bootstrap for means and differences.

They say how far another draw of the same prompts and seeds could lie from the number. They say nothing of prompts that
were not asked, and nothing of a judge that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mu.core.errors import DataError
from mu.core.intervals import Interval, wilson

DRAWS = 2000
AT_ONCE = 4_000_000
"""Values drawn at once, so that tens of thousands of images need no gigabyte."""


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0) -> Interval | None:
    """The interval of the mean of ``values``: the 2.5 and 97.5 % points of the means of `DRAWS` samples drawn again.

    With positive ``weights``, of the weighted mean; each sample's mean is weighted by its own weights, so that it lies
    among the values. Deterministic for a seed. Source: Efron 1979. None for a single value: nothing says how far
    another would lie from it. Raises `DataError` for no values, or values that are not finite.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    draws = _again(values, weights, seed)
    return _middle(draws) if len(values) > 1 else None


def _again(values: Sequence[float], weights: Sequence[float] | None, seed: int) -> NDArray[np.float64]:
    """The means of `DRAWS` samples; equally many values are drawn at the same places."""
    known = np.asarray(values, dtype=np.float64)
    if not known.size or not np.isfinite(known).all():
        raise DataError("a mean needs one or more finite values: check how they were measured")
    heavy = None if weights is None else np.asarray(weights, dtype=np.float64)
    random, part = np.random.default_rng(seed), max(1, AT_ONCE // len(known))
    draws = (min(part, DRAWS - k) for k in range(0, DRAWS, part))
    return np.concatenate([_means(known, heavy, random.integers(len(known), size=(n, len(known)))) for n in draws])


def _middle(draws: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _means(values: NDArray[np.float64], weights: NDArray[np.float64] | None, drawn: NDArray[np.int64]) -> Any:
    """The mean of each sample (draws, n) of places."""
    if weights is None:
        return values[drawn].mean(axis=1)
    return (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)


def mean_of_shares(groups: Sequence[Sequence[float]]) -> Interval | None:
    """The interval of the mean of the groups' shares, every group counting once.

    A value is a hit, 1 or 0, or the chance of one. Wilson's of all images where the groups are equally large, since the
    mean is then their share; else the bootstrap.

    >>> mean_of_shares([[True, True], [False, False]]) == wilson(2, 4)
    True
    """
    if len({len(group) for group in groups}) == 1:
        return wilson(sum(map(sum, groups)), sum(map(len, groups)))
    return mean_of_means(groups)


def mean_of_means(groups: Sequence[Sequence[float]]) -> Interval | None:
    """The bootstrap's interval of the mean of the groups' means, every group counting once.

    >>> mean_of_means([[True], [True, True, True]])
    (1.0, 1.0)
    """
    return bootstrap([value for group in groups for value in group], _even(groups))


Groups = Sequence[Sequence[float]]


def of_harmonic_mean(
    first: Groups, second: Groups, before: tuple[Groups, Groups] | None = None
) -> tuple[Interval, Interval | None]:
    """The intervals of the harmonic mean of two means of groups' means, and of its change from ``before``, paired.

    Both sets of images are drawn again, each by itself.

    >>> of_harmonic_mean([[1.0, 1.0]], [[0.5]], ([[0.0, 0.0]], [[0.5]]))
    ((0.6666666666666666, 0.6666666666666666), (0.6666666666666666, 0.6666666666666666))
    """
    now = _harmonic(first, second)
    return _middle(now), _middle(now - _harmonic(*before)) if before else None


def _harmonic(first: Groups, second: Groups) -> NDArray[np.float64]:
    both = ((first, 0), (second, 1))
    a, b = (_again([value for group in groups for value in group], _even(groups), seed) for groups, seed in both)
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a), where=a + b > 0)


def paired(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Interval | None:
    """The interval of the mean change from ``before`` to ``after``, paired: the same prompt and seed at each place.

    >>> paired([1.0, 0.0, 1.0], [0.0, -1.0, 0.0])
    (-1.0, -1.0)
    """
    return bootstrap(_changes(before, after), seed=seed)


def paired_means(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Interval | None:
    """`paired` of groups of values, of which every group counts once.

    >>> paired_means([[1.0], [1.0, 1.0]], [[0.0], [0.0, 0.0]])
    (-1.0, -1.0)
    """
    return mean_of_means([_changes(b, a) for b, a in zip(before, after, strict=True)])


def _changes(before: Sequence[float], after: Sequence[float]) -> list[float]:
    if len(before) != len(after):
        raise DataError(f"paired values must be equally many, not {len(before)} and {len(after)}")
    return [float(a) - float(b) for b, a in zip(before, after, strict=True)]


def _even(groups: Sequence[Sequence[float]]) -> list[float] | None:
    """Weights by which every group counts once; None for groups of one size, whose values all weigh the same."""
    if len({len(group) for group in groups}) == 1:
        return None
    return [1 / len(group) for group in groups for _ in group]
