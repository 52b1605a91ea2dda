"""Kinds of words, told apart where what lasts of two words depends on each of them too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mu.training.kinship import kinship, together

EASE = torch.tensor([0.0, 0.1, -0.1, 0.6, 0.5, 0.7])
"""How well each word stands beside any: three of one kind, which stand badly, and three of the other."""


def made(rivals: float) -> Tensor:
    """t of each two of the words: ``rivals`` less within a kind, and nan for a word with itself."""
    kind = torch.tensor([0, 0, 0, 1, 1, 1])
    t = 0.9 + EASE[:, None] / 2 + EASE / 2 - rivals * (kind[:, None] == kind)
    return t.masked_fill(torch.eye(6, dtype=torch.bool), torch.nan)


@pytest.mark.parametrize("concept", range(6))
def test_words_of_the_concepts_kind_are_told_whatever_each_stands(concept: int):
    """Words 3 to 5 stand beside each other as well as words 0 to 2 beside anything: t alone does not tell."""
    t, words = made(0.5), [k for k in range(6) if k != concept]
    found = kinship(t[concept, words], t[words][:, words], range(5), torch.ones(5, dtype=torch.bool))
    same = torch.tensor([(k < 3) == (concept < 3) for k in words])
    assert found[same].min() > found[~same].max() and found[same].min() > 0.1 > found[~same].max()
    alone = t[:3, :3].nan_to_num(0).max(), t[3:, 3:].nan_to_num(9).min()
    assert alone[0] < 1 < alone[1] - 0.05 or concept < 3, "control: no bound on t divides both kinds"


def test_where_words_do_not_rival_kinship_is_that_of_the_share_alone():
    t = made(0.0)
    found = kinship(t[0, 1:], t[1:, 1:], range(5), torch.ones(5, dtype=torch.bool))
    assert torch.allclose(found.argsort(), (1 - t[0, 1:]).argsort())


def test_one_word_alone_goes_by_what_lasts():
    one = torch.tensor([[torch.nan]])
    found = [float(kinship(torch.tensor([t]), one, [0], torch.tensor([True]))) for t in (0.3, 1.7)]
    assert found == [pytest.approx(0.35), pytest.approx(-0.35)]


def test_shares_of_words_without_effect_are_cut_off():
    assert together(torch.tensor([9.0, 0.5]), torch.tensor([-9.0, 0.25])).tolist() == [pytest.approx(1.0), 0.75]
