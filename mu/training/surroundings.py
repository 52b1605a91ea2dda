"""What stands around a concept on the model in front of us: its peers, its partners, and sentences with them.

A method that trains on the concept's bare name erases the bare name. A method that protects a list from elsewhere may
protect words that this model never learned. Here the model itself is asked. The tokenizer of a text encoder was made
from captions, so its whole words are what the model may know; some evaluations of the backbone show which ones it does
know, and how they go together with the concept:

- a *peer* fares beside other words as the concept does, and may stand in its place ("neon" and "sketch");
- a *partner* fares differently, and stands beside it ("neon" and "fish").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.concept import folded, says
from mu.core.config import filled
from mu.data.prompt_lists import KEPT, KINDS, entries, everyday
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.effects import agreement, effects, encoded, states
from mu.training.kinship import Kinds, divided

MOST_WORDS = 256
"""Words whose effect on predictions is measured: those nearest to the concept."""
SHORTEST = 3
"""Letters of the shortest word. Shorter ones are articles, prepositions and pieces of words."""

PIECES, LETTERS = 1.5, 1.5
"""Tokens per word of a concept that is read in pieces, and letters per token of one that is read letter by letter."""
AGREED, AGREED_IN_PIECES = 0.5, 0.85
"""How far phrasings of a learned concept agree: of a word of the tokenizer, and of one that is read in pieces."""

ALONE = ("{}", "a {}", "{} style", "a picture of {}", "an image in {} style", "a {} image", "the {}", "{} art")
TOGETHER = ("# {}", "{} #", "a # in {} style", "a {} in # style", "a {} #", "a # {}", "#, {}", "{} style #")
PROBED_ALONE = ("one {}", "a drawing of {}")
PROBED_TOGETHER = ("a # and {}", "{} with #", "# in the style of {}", "my {} #", "{}: a #", "# of {}")
"""Phrasings of a concept ``{}``, alone and with a partner ``#``: for training, and for probes that nothing trains on.
They are none of those that suites ask (`mu.data.prompt_lists`)."""
JOINED, PROBED = 24, 8
"""Phrasings with a partner."""


@dataclass(frozen=True)
class Surroundings:
    """Of one concept: the words around it, the strongest first, and phrasings, each with ``{}`` for the concept."""

    concept: str
    peers: tuple[str, ...]
    partners: tuple[str, ...]
    templates: tuple[str, ...]
    """Phrasings to train on."""
    probes: tuple[str, ...]
    """Phrasings that are never trained on."""
    kept: tuple[str, ...]
    """Prompts of what should stay: all words that the model learned, alone and together, and everyday prompts."""
    beside: tuple[str, ...] = ()
    """Concepts that are erased together with this one."""
    others: tuple[str, ...] = ()
    """Words that should stay too, and are used for nothing else."""

    def prompts(self) -> list[str]:
        return [filled(template, self.concept) for template in self.templates]


def surroundings(
    model: DiffusionModel, concept: str, retain: Sequence[str] = (), beside: Sequence[str] = ()
) -> Surroundings:
    """The surroundings of ``concept`` on ``model``, which must be unedited; ``retain`` are words that the user named.

    ``beside`` are concepts that are erased together with this one: nothing around it names them.

    Costs 8 evaluations of the backbone for each of at most `MOST_WORDS` words, and then 16 for each of `COMPARED` and
    24 for each of `MOST_LEARNED` (`mu.training.kinship`).
    """
    named = [word for word in retain if not says(word, concept)]
    kinds = divided(model, concept, nearest(model, concept, whole_words(model, concept, *beside)), named)
    templates = [*ALONE, *joined(TOGETHER, kinds.partners, JOINED)]
    probes = [*PROBED_ALONE, *joined(PROBED_TOGETHER, kinds.partners[:PROBED][::-1], PROBED)]
    templates, probes = (
        [t for t in texts if model.fits(filled(t, concept))] or ["{}"] for texts in (templates, probes)
    )
    erased = (concept, *beside)
    kept = [text for text in kept_prompts(model, kinds) if not any(says(text, each) for each in erased)]
    return Surroundings(
        concept, kinds.peers, kinds.partners, tuple(templates), tuple(probes), tuple(kept), tuple(beside), kinds.others
    )


def joined(carriers: Sequence[str], words: Sequence[str], count: int) -> list[str]:
    """``count`` of the ``carriers`` in turn with the ``words`` in turn."""
    spread = [words[k % len(words)] for k in range(count)] if words else []
    shifted = [carriers[(k + k // len(carriers)) % len(carriers)] for k in range(count)]
    return list(dict.fromkeys(carrier.replace("#", word) for carrier, word in zip(shifted, spread, strict=False)))


def kept_prompts(model: DiffusionModel, kinds: Kinds) -> list[str]:
    """Each word in every phrasing of `ALONE`, sixteen beside partners in one of `TOGETHER`, and everyday prompts."""
    peers, partners, others = kinds
    alone = [filled(carrier, word) for word in (*peers, *partners, *others) for carrier in ALONE]
    pairs = product([*peers, *others][:16], partners)
    both = [filled(carrier.replace("#", b), a) for carrier, (a, b) in zip(cycle(TOGETHER), pairs, strict=False)]
    return [text for text in dict.fromkeys(["", *alone, *both, *everyday()[:KEPT]]) if model.fits(text)]


def whole_words(model: DiffusionModel, *erased: str) -> list[str]:
    """The whole words of the tokenizer, and the shipped names that it reads in few tokens; no word of ``erased``."""
    own = {word for concept in erased for word in folded(concept).split()}
    vocabulary = {
        word
        for token in model.text[0].tokenizer.get_vocab()
        if token.endswith("</w>") and token.isascii() and (word := token.removesuffix("</w>")).isalpha()
    }
    names = {name for kind in KINDS for name in entries(kind) if len(model.text[0].words(name)) <= len(name.split())}
    first = {folded(word): word for word in (*sorted(names), *sorted(vocabulary))}  # one spelling, the tokenizer's own
    return sorted(word for key, word in first.items() if len(word) >= SHORTEST and not own & set(key.split()))


@torch.no_grad()
def agreed(model: DiffusionModel, concept: str) -> float:
    """How far the phrasings of `ALONE` and `PROBED_ALONE` agree on ``concept``: the mean cosine of e(p(c)) - e("")."""
    carriers = (*ALONE, *PROBED_ALONE)
    found = effects(model, ["", *(filled(carrier, concept) for carrier in carriers)], states(model, 2))
    return float(agreement(found[1:] - found[:1]))


def learned(model: DiffusionModel, concept: str) -> bool:
    """Whether the model seems to have learned ``concept`` at all.

    Phrasings of a word of the tokenizer must be `agreed` by `AGREED`. A word that it reads in pieces was rare in the
    captions that it was made from: it needs more, and if it is read almost letter by letter, nothing suffices.
    """
    tokens, words = len(model.text[0].words(concept)), concept.split()
    if tokens <= PIECES * len(words):
        return agreed(model, concept) >= AGREED
    return len("".join(words)) >= LETTERS * tokens and agreed(model, concept) >= AGREED_IN_PIECES


@torch.no_grad()
def nearest(model: DiffusionModel, concept: str, words: Iterable[str]) -> list[str]:
    """The `MOST_WORDS` ``words`` nearest to ``concept`` in meaning, the nearest first.

    Thousands of words are first sorted by the cosine of token embeddings. Four times `MOST_WORDS` of them are then
    sorted by that of prompt embeddings at the end token; both without their mean.
    """
    words, text = list(words), model.text[0]
    table = cast(Tensor, text.embedding.weight).detach().float()
    rows = torch.stack([table[text.words(word)].mean(0) for word in [concept, *words]]) - table.mean(0)
    near = F.cosine_similarity(rows[1:], rows[:1]).argsort(descending=True, stable=True)[: 4 * MOST_WORDS].tolist()
    words = [words[k] for k in near]
    ends = torch.cat([_ends(model, part) for part in encoded(model, [concept, *words], 64)])
    ends = ends - ends.mean(0)
    order = F.cosine_similarity(ends[1:], ends[:1]).argsort(descending=True, stable=True).tolist()
    return [words[k] for k in order[:MOST_WORDS]]


def _ends(model: DiffusionModel, found: Conditioning) -> Tensor:
    """The prompt embeddings at each text's end token, (n, width)."""
    assert found.tokens is not None
    ends = (found.tokens == model.text[0].end).int().argmax(1)
    return found.sequence[torch.arange(len(ends)), ends].float()
