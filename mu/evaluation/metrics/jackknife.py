"""95 % intervals of distances between two sets of images: the jackknife, which leaves out groups of images.

A bootstrap is wrong here. A set that is drawn again holds about 63 % different images, and distances of sets grow as
the images become fewer: its percentiles lie above the number that they should surround. Without one of `GROUPS` groups
all sets are equally large, and their common bias is no part of the spread. Source: Quenouille 1956, Tukey 1958. The
jackknife's variance is the true one or more, in the mean, for every statistic that is the same in any order of the
images, smooth or not (Efron & Stein 1981, Ann. Statist. 9, 586): so also for fewer images than features.

The ends are computed for the distance and then squared, as the numbers are: small ones spread like their root. They say
where the number of equally many images could lie; the bias of few images is in the number and in its interval alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.core.intervals import Interval

GROUPS = 20
T = 2.0930240544082634
"""The 97.5 % point of Student's distribution with `GROUPS` - 1 degrees of freedom."""


class Squared(NamedTuple):
    """A squared distance of two sets, 0 and more, and that without each group; none of fewer than `GROUPS` images."""

    value: float
    without: Sequence[float] = ()

    @property
    def interval(self) -> Interval | None:
        """Its 95 % interval.

        >>> Squared(4.0, [4.0] * GROUPS).interval, Squared(4.0).interval
        ((4.0, 4.0), None)
        """
        if not self.without:
            return None
        middle, half = math.sqrt(self.value), _half([math.sqrt(value) for value in self.without])
        return max(middle - half, 0.0) ** 2, (middle + half) ** 2

    def change(self, before: Squared) -> Interval | None:
        """That of the difference from ``before``, which is of the base's images of the same prompts in the same order.

        >>> Squared(4.0, [4.0, 4.0]).change(Squared(1.0, [1.0, 1.0]))
        (3.0, 3.0)
        """
        if not (self.without and before.without):
            return None
        middle = self.value - before.value
        half = _half([now - then for now, then in zip(self.without, before.without, strict=True)])
        return middle - half, middle + half


def _half(without: Sequence[float]) -> float:
    """Half of the interval's width."""
    values = torch.tensor(without, dtype=torch.float64)
    spread = float((values - values.mean()).square().sum())
    return T * math.sqrt((len(values) - 1) / len(values) * spread)


def check_pairs(a: Tensor, b: Tensor, fixed: bool) -> None:
    """Raise `DataError` for sets that are not equally many, unless the second is ``fixed``.

    >>> check_pairs(torch.ones(3, 2), torch.ones(4, 2), fixed=True)
    """
    if not fixed and len(a) != len(b):
        raise DataError(f"paired images must be equally many, not {len(a)} and {len(b)}")


def groups(n: int, seed: int = 0) -> Tensor:
    """The group of each of n images (n,), drawn by chance; empty for fewer than `GROUPS`.

    >>> sorted(groups(40).tolist()) == [k // 2 for k in range(40)], len(groups(19))
    (True, 0)
    """
    if n < GROUPS:
        return torch.empty(0, dtype=torch.long)
    found = torch.empty(n, dtype=torch.long)
    found[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] = torch.arange(n) % GROUPS
    return found


def left_out(distance: Callable[[Tensor], float], n: int) -> list[float]:
    """``distance`` of the images at the places (n,) that are True, without each group; [] of fewer than `GROUPS`.

    >>> left_out(lambda kept: float(kept.sum()), 40) == [38.0] * GROUPS
    True
    """
    own = groups(n)
    return [distance(own != k) for k in range(GROUPS)] if len(own) else []
