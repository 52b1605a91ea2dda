"""Kinds of words, told apart where what lasts of two words depends on each of them too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mu.models.diffusion import DiffusionModel
from mu.training.kinship import BOUNDS, KIN, STRANGERS, Compared, divided, kinship

KINDS = torch.arange(16) // 8
EASE = 0.3 * torch.rand(16, generator=torch.Generator().manual_seed(0))
"""How much more lasts of each of 16 words beside any: 8 of a kind that hides all others, and 8 of another."""


def profiles(references: list[int], *, kinds: bool = True) -> Tensor:
    """Of each word beside each reference what lasts, and of the reference: beside its own kind half, of a weak kind
    beside a strong one little. Without ``kinds``, that depends on the words alone."""
    strong = (KINDS == 0).float()
    last = (
        torch.where(KINDS[:, None] == KINDS, 0.4, 0.9 * strong[:, None] + 0.1 * strong)
        if kinds
        else torch.zeros(16, 16)
    )
    last = (last + EASE[:, None]).masked_fill(
        torch.eye(16, dtype=torch.bool), torch.nan
    )  # of the row beside the column
    return torch.cat([last[:, references], last[references].T], dim=1)


@pytest.mark.parametrize("references", [[0, 1, 2], [8, 9, 10], [0, 1, 8, 9]])
def test_words_of_one_kind_are_told_by_few_references_of_any_kind(references: list[int]):
    kin, same = kinship(profiles(references)), KINDS[:, None] == KINDS
    assert kin[same].min() > KIN and kin[~same].max() < STRANGERS
    told = kinship(profiles(references, kinds=False))[same]
    assert told.min() < 0, "control: words of no kind are alike and unlike"


def test_each_word_is_its_own_next_of_kin_and_what_is_missing_counts_as_nothing():
    kin = kinship(profiles([0, 8]))
    assert kin.diagonal().tolist() == pytest.approx([1.0] * 16) and torch.equal(kin, kin.T)
    assert kinship(torch.full((2, 2), torch.nan)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_what_lasts_of_two_words_is_measured_in_their_prompt(tiny: DiffusionModel):
    """Against the definition, and in the order that was asked for."""
    words = Compared(tiny, ["neon", "fish", "star"])
    shares = words.lasting([0, 2], [1, 2])
    assert shares.shape == (2, 2) and shares[:, 1].isnan().all()
    both = words._directions(["neon fish", "fish neon"])
    a, b = words.d[0], words.d[1]
    expected = [float(((both[0] - b) @ a) / (a @ a)), float(((both[0] - a) @ b) / (b @ b))]
    assert shares[:, 0].tolist() == pytest.approx([min(max(x, BOUNDS[0]), BOUNDS[1]) for x in expected], abs=1e-4)
    profile = words.profiles([0, 1, 2], [1])
    back = words.lasting([1], [0])[:, 0]
    assert profile[0].tolist() == pytest.approx(((shares[:, 0] + back.flip(0)) / 2).tolist(), abs=1e-4)
    assert profile[1].isnan().all()


def test_two_words_are_unlike_by_arithmetic_so_few_tell_no_kinds(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch):
    alike = torch.rand(1, 4).repeat(2, 1) + 1e-3 * torch.rand(2, 4)
    assert kinship(alike)[0, 1] < -0.9, "two words of nearly one profile"
    words = ["fish", "star", "house", "ring"]
    monkeypatch.setattr(Compared, "learned", lambda self, felt: felt)
    for count, told in ((1, False), (3, False), (4, True)):
        kinds = divided(tiny, "neon", words[:count])
        assert sorted([*kinds.peers, *kinds.partners, *kinds.others]) == sorted(words[:count])
        assert bool(kinds.peers or kinds.partners) == told


def test_a_word_counts_once_as_the_user_spells_it(tiny: DiffusionModel):
    kinds = divided(tiny, "neon", ["fish", "star"], ["Fish"])
    assert {*kinds.others} >= {"Fish"} and not {*kinds.others} & {"fish"}


def test_a_word_without_any_other_has_neither_peers_nor_partners(tiny: DiffusionModel):
    assert divided(tiny, "neon", []) == ((), (), ())
    kinds = divided(tiny, "neon", [], ["fish"])
    assert [*kinds.peers, *kinds.partners, *kinds.others] == ["fish"], "what the user named is not lost"
