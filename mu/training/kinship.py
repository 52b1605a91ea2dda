"""Of which kind a word is: of the concept's own, whose place it might take, or of one that stands beside it.

Let t(a, b) be what lasts of both words' directions in one prompt, summed: 2 if both show, 1 if one gives way. It
depends on the kinds, but also on each word: a style changes all of an image and an object a part, so little of any
object lasts beside any style. What each word loses beside every other is therefore taken off first.
"""

from __future__ import annotations

from torch import Tensor

BOUNDS = (-0.2, 1.2)
"""Shares beyond these are those of words that hardly change predictions, and are cut off there."""


def together(first: Tensor, second: Tensor) -> Tensor:
    """t of the shares that last of two words."""
    return first.clamp(*BOUNDS) + second.clamp(*BOUNDS)


def kinship(t: Tensor, among: Tensor, own: Tensor) -> Tensor:
    """How far each of n words is of the concept's kind: (n,), above 0 if it is.

    ``t`` (n,) is t(concept, word), ``among`` (r, n) is t(reference, word), and ``own`` (r,) is t(concept, reference).
    Some references stand well beside the concept and some badly; one that is a word itself has nan with itself, and so
    have the concept in ``t`` if it is one of the words, and in ``own`` if it is a reference.

    It is the mean of three: 1 - t; how far t is below what concept and word have with others; and the correlation, over
    the references, of what the word has with each and what the concept has. No paper has this measure: a check is to
    count the kinds it finds where they are known, as the tests do on the embedded model.
    """
    typical = among.nanmean(dim=1, keepdim=True)
    ease = (among - typical).nanmean(dim=0)
    below = t.nanmean() + ease - t
    beyond = own[:, None] - typical
    beyond = beyond - beyond.nanmean()
    profile = among - typical - ease
    size = (profile.square().nanmean(dim=0) * beyond.square().nanmean()).sqrt()
    alike = (profile * beyond).nanmean(dim=0) / size.clamp_min(1e-9)
    return (1 - t + below.nan_to_num() + alike.nan_to_num()) / 2
