"""Membership inference: can a classifier separate the pairs that a model learned from others, by one score each?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

import numpy as np

from mu.core.errors import DataError, MissingDependency

SMALLEST = 6
"""Fewest pairs of each kind: with fewer, a tenth of all holds less than one of each."""
LIMIT = 100.0


class Membership(NamedTuple):
    """Accuracy in 0..1, ``mean`` and population ``std`` over the seeds; ``n`` pairs were used for each seed."""

    mean: float
    std: float
    n: int


def membership_inference(
    members: Sequence[float],
    others: Sequence[float],
    *,
    seeds: Iterable[int] = range(10),
    splits: int = 10,
    others_first: bool = False,
) -> Membership:
    """Accuracy of a logistic regression that separates ``members`` from ``others`` (one score a pair, any unit).

    For every seed, equal numbers of both (as many as the shorter list holds) are drawn without replacement and cut to
    -100..100. They are split ``splits`` times into nine tenths to fit and a tenth to test, with the same share of both;
    the mean test accuracy counts. Published as percent with SLUG (arXiv 2407.11867), on the cosine of image and
    caption: 0.5 is no leakage. A model that forgets too much is detected too: its forget pairs fit conspicuously
    *little*, and the accuracy rises again. ``others_first`` draws the others before the members, as the released
    program does; the numbers then equal its own, and differ from the default by the noise of the draws.

    Equal scores in both lists may give less than 0.5. Raises `DataError` for fewer than 6 of a kind and for scores that
    are not finite, and `MissingDependency` without scikit-learn.

    >>> membership_inference([0.9] * 20, [0.1] * 30)
    Membership(mean=1.0, std=0.0, n=40)
    """
    n = min(len(members), len(others))
    if n < SMALLEST:
        raise DataError(
            f"membership inference needs {SMALLEST} pairs of each kind, not {len(members)} and {len(others)}"
        )
    if not np.isfinite([*members, *others]).all():
        raise DataError("scores hold NaN or infinity: check the model and its input")
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
    except ImportError:
        raise MissingDependency("scikit-learn", "eval", "membership inference") from None
    labels = np.repeat([0, 1], n)
    accuracies = []
    for seed in seeds:
        draw = random.Random(seed)
        last = draw.sample(others, n) if others_first else None
        scores = np.clip([*draw.sample(members, n), *(last or draw.sample(others, n))], -LIMIT, LIMIT)
        folds = StratifiedShuffleSplit(n_splits=splits, random_state=seed)
        accuracies.append(float(cross_val_score(LogisticRegression(), scores[:, None], labels, cv=folds).mean()))
    return Membership(fmean(accuracies), pstdev(accuracies), 2 * n)
