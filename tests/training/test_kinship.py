"""Kinds of words, told apart where what lasts of two words depends on each of them too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mu.training.kinship import kinship, together

KINDS = torch.arange(16) // 8
EASE = 0.6 * KINDS + 0.2 * torch.rand(16, generator=torch.Generator().manual_seed(0))
"""How well each of 16 words stands beside any: 8 of one kind, which stand badly, and 8 of another."""


def made(rivals: float) -> Tensor:
    """t of each two of the words: ``rivals`` less within a kind, and nan for a word with itself."""
    t = 0.9 + EASE[:, None] / 2 + EASE / 2 - rivals * (KINDS[:, None] == KINDS)
    return t.masked_fill(torch.eye(16, dtype=torch.bool), torch.nan)


def kin(t: Tensor, concept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kinship, t, and whether the kind is the concept's, of all other words; four references of each kind."""
    words = [k for k in range(16) if k != concept]
    references = [*range(4), *range(11, 15)]
    of_concept, among = t[concept, words], t[words][:, words][references]
    return kinship(of_concept, among, of_concept[references]), of_concept, KINDS[words] == KINDS[concept]


@pytest.mark.parametrize("concept", [0, 7, 8, 15])
def test_words_of_the_concepts_kind_are_told_however_well_each_stands(concept: int):
    found, t, same = kin(made(0.5), concept)
    assert found[same].min() > 0.1 > found[~same].max()
    if concept >= 8:
        assert t[same].max() > 1, "control: a bound on t alone would not call them rivals"


def test_where_no_words_rival_none_is_of_kin():
    found, _, same = kin(made(0.0), 8)
    assert found[same].max() < 0.5 and (found[same].mean() - found[~same].mean()).abs() < 0.35
    told, _, same = kin(made(0.5), 8)
    assert told[same].mean() - told[~same].mean() > 1, "control"


def test_one_word_alone_goes_by_what_lasts():
    one = torch.tensor([[torch.nan]])
    found = [float(kinship(torch.tensor([t]), one, torch.tensor([t]))) for t in (0.3, 1.7)]
    assert found == [pytest.approx(0.35), pytest.approx(-0.35)]


def test_shares_of_words_without_effect_are_cut_off():
    assert together(torch.tensor([9.0, 0.5]), torch.tensor([-9.0, 0.25])).tolist() == [pytest.approx(1.0), 0.75]
