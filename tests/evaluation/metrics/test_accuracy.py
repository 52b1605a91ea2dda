"""Accuracy against `torch.topk`, and what it does where topk is arbitrary."""

from __future__ import annotations

import pytest
import torch

from mu.core.errors import DataError
from mu.evaluation.metrics.accuracy import accuracy, class_hits, hits

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(200, 7, generator=GENERATOR)
TARGETS = torch.randint(7, (200,), generator=GENERATOR)


@pytest.mark.parametrize("k", range(1, 8))
def test_equals_topk_where_nothing_is_level(k: int):
    direct = (LOGITS.topk(k).indices == TARGETS[:, None]).any(dim=1).double().mean()
    assert accuracy(LOGITS, TARGETS, k) == pytest.approx(float(direct))


def test_a_perfect_and_an_inverted_model():
    perfect = torch.eye(7)[TARGETS]
    assert accuracy(perfect, TARGETS) == 1 and accuracy(-perfect, TARGETS) == 0


@pytest.mark.parametrize("k", [1, 2, 7])
def test_a_model_that_says_the_same_of_all_is_a_guess_not_a_success(k: int):
    assert accuracy(torch.zeros(200, 7), TARGETS, k) == pytest.approx(k / 7)
    assert accuracy(torch.zeros(200, 7).flip(1), 6 - TARGETS, k) == pytest.approx(k / 7)


def test_ties_are_the_mean_over_random_orders():
    coarse = LOGITS.round()
    noise = [torch.rand(coarse.shape, generator=GENERATOR) * 0.5 for _ in range(300)]
    sampled = sum(accuracy(coarse + n, TARGETS, 2) for n in noise) / len(noise)
    assert accuracy(coarse, TARGETS, 2) == pytest.approx(sampled, abs=0.01)
    assert abs(accuracy(coarse, TARGETS, 2) - accuracy(LOGITS, TARGETS, 2)) > 1e-3


def test_hits_are_what_accuracy_is_the_mean_of_and_a_broken_row_is_none():
    coarse = LOGITS.round()
    for k in (1, 3):
        assert float(hits(coarse, TARGETS, k).double().mean()) == pytest.approx(accuracy(coarse, TARGETS, k))
    assert int(((hits(coarse, TARGETS) % 1) > 0).sum()) > 0, "control: some are level"
    broken = torch.eye(7)[TARGETS]
    broken[:3] = torch.nan
    assert hits(broken, TARGETS).tolist() == [0.0] * 3 + [1.0] * 197, "accuracy refuses these, a search goes on"


def test_each_class_and_their_mean():
    by_class = class_hits(LOGITS, TARGETS, k=3)
    counts = TARGETS.bincount(minlength=7)
    assert sorted(by_class) == list(range(7)) and [len(by_class[label]) for label in range(7)] == counts.tolist()
    assert sum(map(sum, by_class.values())) / 200 == pytest.approx(accuracy(LOGITS, TARGETS, k=3))
    few = class_hits(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 2, 2]))
    assert few == {0: [1.0], 2: [0.0, 0.0]}


@pytest.mark.parametrize(
    ("logits", "targets", "k"),
    [
        (LOGITS, TARGETS[:5], 1), (LOGITS[0], TARGETS, 1), (LOGITS[:0], TARGETS[:0], 1), (LOGITS, TARGETS + 1, 1),
        (LOGITS, TARGETS - 1, 1), (LOGITS, TARGETS.float(), 1), (LOGITS, TARGETS, 0), (LOGITS, TARGETS, 8),
        (LOGITS / 0 * 0, TARGETS, 1),
    ],
)  # fmt: skip
def test_input_that_makes_no_sense_is_refused(logits: torch.Tensor, targets: torch.Tensor, k: int):
    with pytest.raises(DataError):
        accuracy(logits, targets, k)
