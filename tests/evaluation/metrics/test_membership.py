"""Membership inference against the protocol written out, and at its two ends."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from mu.core.errors import DataError, MissingDependency
from mu.evaluation.metrics.membership import membership_inference

linear_model = pytest.importorskip("sklearn.linear_model")

DRAWN = np.random.default_rng(0)
MEMBERS, OTHERS = (DRAWN.normal(mean, 0.05, n).tolist() for mean, n in ((0.30, 90), (0.25, 140)))


def test_equals_the_protocol_written_out():
    from sklearn.model_selection import StratifiedShuffleSplit

    means = []
    for seed in range(10):
        random.seed(seed)
        scores = np.array(random.sample(MEMBERS, 90) + random.sample(OTHERS, 90)).reshape(-1, 1)
        labels = np.array([0] * 90 + [1] * 90)
        right = []
        for fit, test in StratifiedShuffleSplit(10, random_state=seed).split(scores, labels):
            model = linear_model.LogisticRegression().fit(scores[fit], labels[fit])
            right.append((model.predict(scores[test]) == labels[test]).mean())
            assert len(test) == 18, "a tenth"
        means.append(np.mean(right))
    found = membership_inference(MEMBERS, OTHERS)
    assert found == pytest.approx((np.mean(means), np.std(means), 180), abs=1e-12)
    assert 0.6 < found.mean < 0.8, "control: half a standard deviation to either side"


def test_the_released_order_of_draws_is_a_switch():
    """The others are drawn first and stand last."""
    from sklearn.model_selection import StratifiedShuffleSplit

    means = []
    for seed in range(10):
        random.seed(seed)
        others = random.sample(OTHERS, 90)
        scores, labels = np.array(random.sample(MEMBERS, 90) + others).reshape(-1, 1), np.repeat([0, 1], 90)
        folds = StratifiedShuffleSplit(10, random_state=seed).split(scores, labels)
        fits = [(linear_model.LogisticRegression().fit(scores[fit], labels[fit]), test) for fit, test in folds]
        means.append(np.mean([(model.predict(scores[test]) == labels[test]).mean() for model, test in fits]))
    found = membership_inference(MEMBERS, OTHERS, others_first=True)
    assert found == pytest.approx((np.mean(means), np.std(means), 180), abs=1e-12)
    assert found.mean != membership_inference(MEMBERS, OTHERS).mean, "control"


def test_no_difference_is_a_half_and_a_large_one_is_certain():
    a, b = (DRAWN.normal(0.3, 0.05, 400).tolist() for _ in range(2))
    assert membership_inference(a, b).mean == pytest.approx(0.5, abs=0.05)
    assert membership_inference([1e9] * 20, [0.0] * 20).mean == 1.0, "cut to 100, not overflown"


def test_too_little_forgetting_and_too_much_are_told_alike():
    """The accuracy does not see in which direction the pairs stand out."""
    low = [0.5 - each for each in MEMBERS]
    assert membership_inference(low, OTHERS).mean == pytest.approx(
        membership_inference(MEMBERS, [0.5 - each for each in OTHERS]).mean, abs=0.02
    )
    assert membership_inference(OTHERS, MEMBERS).mean == pytest.approx(
        membership_inference(MEMBERS, OTHERS).mean, abs=0.03
    )


def test_the_same_lists_give_the_same_number_whatever_the_global_seed():
    random.seed(1)
    first = membership_inference(MEMBERS, OTHERS, seeds=(3,))
    random.seed(2)
    assert (
        membership_inference(MEMBERS, OTHERS, seeds=(3,)) == first != membership_inference(MEMBERS, OTHERS, seeds=(4,))
    )


@pytest.mark.parametrize(
    ("members", "others"), [([0.1] * 5, OTHERS), (MEMBERS, []), (MEMBERS, [*OTHERS, float("nan")])]
)
def test_input_that_makes_no_sense_is_refused(members, others):
    with pytest.raises(DataError):
        membership_inference(members, others)


def test_without_scikit_learn_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingDependency, match=r"pip install scikit-learn .*'eval'"):
        membership_inference(MEMBERS, OTHERS)
