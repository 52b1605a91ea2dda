"""Which words a model learned, and of which kind they are: of the concept's own, or such as stand beside it.

Where two words stand in one prompt, each keeps a share of what it does alone. How much depends on both: a style changes
all of an image and an object a part, so little of any object lasts beside any style, and all of the style. What lasts
of a word beside some references, and of them beside it, is therefore its profile, and those of one kind are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mu.core.concept import folded
from mu.core.config import filled
from mu.models.diffusion import DiffusionModel
from mu.training.effects import agreement, effects, states

ALONE = ("{}", "a {}", "a {} image", "a drawing of {}")
"""Phrasings in which words are compared: a noun's, an adjective's, and the bare word."""
IMAGES = 2
"""Images whose predictions are compared."""
FELT = 0.1
"""The share of the concept's own effect on predictions that a word must have to be looked at further."""
COMPARED, BESIDE = 96, 8
"""Words that are put beside others, and words that they are put beside."""
LEARNED, MOST_LEARNED = 0.5, 48
"""The share of what the best words reach that a learned word must reach, and the most words that count as learned."""
REFERENCES, FEWEST = 6, 4
"""Learned words whose company tells the kinds apart, and the fewest that tell any: what two or three words have in
common is taken off their profiles, and what is left of them is unlike in any case."""
KIN, STRANGERS = 0.55, 0.3
"""The `kinship` of a peer is at least the one, and that of a partner at most the other."""
NEAREST_OF_KIN = 3
"""Words whose kinship with a word counts as much as the concept's own does."""
PARTNERS = 12
"""Partners at most."""
BOUNDS = (-0.2, 1.2)
"""Shares beyond these are those of words that hardly change predictions, and are cut off there."""


class Kinds(NamedTuple):
    """The words that a model learned, from a concept's side."""

    peers: tuple[str, ...] = ()
    """Words of the concept's kind, the nearest first."""
    partners: tuple[str, ...] = ()
    """Words of another kind, those that were learned best first."""
    others: tuple[str, ...] = ()
    """Words of no clear kind, and partners beyond `PARTNERS`; those that were learned best first."""


class Compared:
    """``words`` of one model: what each does to predictions, alone and in one prompt with another.

    Let d(p) = e(p) - e("") for a prompt p. `d` (n, values) holds it for each word, `agreement` (n,) the mean cosine of
    a word's directions in the phrasings of `ALONE`: what a model learned moves predictions in one direction, letters
    that it never saw together move them differently in every sentence.
    """

    def __init__(self, model: DiffusionModel, words: Sequence[str]):
        self.model, self.words = model, words
        self.states = states(model, IMAGES)[1:]  # in pure noise, learned words stand out less
        self.nothing = effects(model, [""], self.states)
        bare, agreements = [], []
        for k in range(0, len(words), 16):  # all phrasings at once would take much memory at SDXL's sizes
            phrased = self._directions([filled(carrier, word) for word in words[k : k + 16] for carrier in ALONE])
            phrased = phrased.unflatten(0, (-1, len(ALONE)))
            bare.append(phrased[:, 0])
            agreements.append(agreement(phrased))
        self.d, self.agreement = torch.cat(bare), torch.cat(agreements)

    def _directions(self, texts: Sequence[str]) -> Tensor:
        return effects(self.model, texts, self.states) - self.nothing

    def lasting(self, first: Sequence[int], second: Sequence[int]) -> Tensor:
        """(2, n): what lasts of each word of ``first``, and of that of ``second``, in the prompt of both.

        Of the word v beside the word w that is <d(v w) - d(w), d(v)> / |d(v)|^2, cut off at `BOUNDS`: 1 if it shows as
        it does alone, 0 if nothing of it does. nan for a word with itself.
        """
        a, b = self.d[list(first)], self.d[list(second)]
        both = self._directions([f"{self.words[v]} {self.words[w]}" for v, w in zip(first, second, strict=True)])
        shares = torch.stack([((both - b) * a).sum(1) / a.square().sum(1), ((both - a) * b).sum(1) / b.square().sum(1)])
        return shares.clamp(*BOUNDS).masked_fill(torch.tensor(first) == torch.tensor(second), torch.nan)

    def learned(self, words: Sequence[int]) -> list[int]:
        """Those of ``words`` that the model seems to have learned, at most `MOST_LEARNED`, the best first.

        A learned word's phrasings agree, and it lasts beside others. The product of its agreement and of the mean of
        what lasts of it after `BESIDE` of the words, of all ranks of agreement, must be `LEARNED` times the median of
        the `BESIDE` best. Neither alone tells: some pieces of words agree and fade, weak words agree less and last.
        """
        beside = dict.fromkeys(words[int((k + 0.5) * len(words) / BESIDE)] for k in range(BESIDE))
        shares = torch.stack([self.lasting([k] * len(words), words)[1] for k in beside])
        score = shares.nanmean(dim=0).nan_to_num(1) * self.agreement[list(words)]
        least = LEARNED * score.topk(min(BESIDE, len(words))).values.median()
        best = score.argsort(descending=True, stable=True).tolist()
        return [words[k] for k in best if score[k] >= least][:MOST_LEARNED]

    def profiles(self, words: Sequence[int], references: Sequence[int]) -> Tensor:
        """(n, 2r): what lasts of each of ``words`` beside each reference, and of the reference, in the mean order."""
        n = len(words)
        shares = [(self.lasting(words, [r] * n) + self.lasting([r] * n, words).flip(0)) / 2 for r in references]
        return torch.cat(shares).T


def kinship(profiles: Tensor) -> Tensor:
    """How alike the ``profiles`` (n, m) of n words are: cosines (n, n), 1 for words of the same profile.

    What all n words have in common is taken off each of the m shares first; nan counts as missing. No paper has this
    measure: a check is to count the kinds it finds where they are known, as the tests do on the embedded model.
    """
    own = profiles - profiles.nanmean(dim=0)
    there = (~own.isnan()).to(own.dtype)
    own = own.nan_to_num()
    sizes = own.square() @ there.T
    return (own @ own.T) / (sizes * sizes.T).sqrt().clamp_min(1e-9)


@torch.no_grad()
def divided(model: DiffusionModel, concept: str, words: Sequence[str], named: Sequence[str] = ()) -> Kinds:
    """The kinds of ``words`` around ``concept``; ``named`` words count, and are of no kind if they were not learned.

    A word counts once, whatever its case, as it is spelled in ``named`` or else first in ``words``.

    Of the words with an effect of at least `FELT` times the concept's, `COMPARED` are looked at: those whose phrasings
    agree most. `REFERENCES` of those that were learned make the profiles. One word may be a poor example of its kind,
    so its kinship with a word is the mean of its own and those of its `NEAREST_OF_KIN`.
    """
    spelled: dict[str, str] = {}
    for word in (*named, *words):
        spelled.setdefault(folded(word), word)
    compared = Compared(model, [concept, *spelled.values()])
    names, effect = compared.words, compared.d.norm(dim=1)
    order = compared.agreement.argsort(descending=True, stable=True).tolist()
    felt = [k for k in order if k and (effect[k] >= FELT * effect[0] or names[k] in named)][:COMPARED]
    known = compared.learned(felt) if felt else []
    learned = [names[k] for k in known]
    merely_named = [name for name in names[1:] if name in named and name not in learned]
    if len(known) < FEWEST:
        return Kinds(others=(*learned, *merely_named))
    near = kinship(compared.profiles([0, *known], [k for k in order if k in known][:REFERENCES]))
    near.fill_diagonal_(torch.nan)
    nearest = [k for k in near[0].argsort(descending=True, stable=True).tolist() if near[0, k] >= KIN][:NEAREST_OF_KIN]
    kin = dict(zip(known, near[[0, *nearest]].nanmean(dim=0)[1:].tolist(), strict=True))
    peers = [names[k] for k in sorted(known, key=lambda k: -kin[k]) if kin[k] >= KIN]
    partners = [names[k] for k in known if kin[k] <= STRANGERS][:PARTNERS]
    others = [name for k in known if (name := names[k]) not in peers and name not in partners]
    return Kinds(tuple(peers), tuple(partners), (*others, *merely_named))
