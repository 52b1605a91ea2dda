"""The 95 % interval of a share. It needs no library, so that reports can tell that of each concept."""

from __future__ import annotations

import math

from mu.core.errors import DataError

Interval = tuple[float, float]

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def wilson(hits: float, n: int) -> Interval:
    """The interval of a share of ``hits`` in ``n`` images, both in 0..1. It does not shrink to a point at 0 or 1.
    Equal answers of a classifier are parts of a hit, so ``hits`` may be no whole number.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = hits/n. Source: Wilson 1927, eq. 8. Raises
    `DataError` for no images, or hits outside 0..n.

    >>> [round(end, 4) for end in wilson(0, 10)], [round(end, 4) for end in wilson(5, 10)]
    ([0.0, 0.2775], [0.2366, 0.7634])
    """
    if n < 1 or not 0 <= hits <= n:
        raise DataError(f"a share needs 0..n hits of n > 0 images, not {hits} of {n}")
    p, square = hits / n, Z * Z / n
    middle, half = p + square / 2, Z * math.sqrt((p * (1 - p) + square / 4) / n)
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    return max(low, 0.0) if hits else 0.0, min(high, 1.0) if hits < n else 1.0
