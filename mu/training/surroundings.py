"""What stands around a concept on the model in front of us: its peers, its partners, and sentences with them.

A method that trains on the concept's bare name erases the bare name. A method that protects a list from elsewhere may
protect words that this model never learned. Here the model itself is asked. The tokenizer of a text encoder was made
from captions, so its whole words are what the model may know; two evaluations of the backbone for each show which ones
it does know, and a few more how they go together with the concept:

- a *peer* stands in the concept's place ("neon" and "sketch"): of two peers in one prompt, one gives way;
- a *partner* stands beside it ("neon" and "fish"): both show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.concept import folded, says
from mu.core.config import filled
from mu.data.prompt_lists import KINDS, entries, everyday
from mu.diffusion.denoising import denoise, initial_noise
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.kinship import kinship, together

MOST_WORDS = 256
"""Words whose effect on predictions is measured: those nearest to the concept."""
FELT = 0.1
"""The share of the concept's own effect on predictions that a word must have to count as known."""
COMPARED = 96
"""Words with an effect, whose company with the concept is measured."""
HUBS = 4
"""Words that stand well beside the concept; what lasts beside them was learned. As many that stand there badly."""
SHORTEST = 3
"""Letters of the shortest word. Shorter ones are articles, prepositions and pieces of words."""
LASTING = 0.35
"""The share of a word's direction that must last in company; a word that the model never learned loses it."""
KIN = 0.1
"""The `kinship` above which a word is a peer."""
NEAREST_OF_KIN = 3
"""Words whose kinship with a word counts as much as the concept's own does."""

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
    """Prompts of what should stay: peers and partners, alone and together, and everyday prompts."""
    beside: tuple[str, ...] = ()
    """Concepts that are erased together with this one."""

    def prompts(self) -> list[str]:
        return [filled(template, self.concept) for template in self.templates]


def surroundings(
    model: DiffusionModel, concept: str, retain: Sequence[str] = (), beside: Sequence[str] = ()
) -> Surroundings:
    """The surroundings of ``concept`` on ``model``, which must be unedited; ``retain`` are words that the user named.

    ``beside`` are concepts that are erased together with this one: nothing around it names them.

    Costs two evaluations of the backbone for each of at most `MOST_WORDS` words, 28 for each of `COMPARED`, and at most
    28 more for each that the model has learned.
    """
    named = [word for word in retain if not says(word, concept)]
    known = whole_words(model, concept, *beside)
    words = felt(model, concept, nearest(model, concept, known))[:COMPARED]
    peers, partners = divided(model, concept, list(dict.fromkeys([*named, *words])))
    peers = list(dict.fromkeys([*peers, *(word for word in named if word not in partners)]))
    templates = [*ALONE, *joined(TOGETHER, partners, JOINED)]
    probes = [*PROBED_ALONE, *joined(PROBED_TOGETHER, partners[::-1], PROBED)]
    fit = [[t for t in texts if model.fits(filled(t, concept))] or ["{}"] for texts in (templates, probes)]
    erased = (concept, *beside)
    kept = [text for text in kept_prompts(model, peers, partners) if not any(says(text, each) for each in erased)]
    return Surroundings(concept, *map(tuple, (peers, partners, *fit, kept, beside)))


def joined(carriers: Sequence[str], words: Sequence[str], count: int) -> list[str]:
    """``count`` of the ``carriers`` in turn with the ``words`` in turn."""
    spread = [words[k % len(words)] for k in range(count)] if words else []
    shifted = [carriers[(k + k // len(carriers)) % len(carriers)] for k in range(count)]
    return list(dict.fromkeys(carrier.replace("#", word) for carrier, word in zip(shifted, spread, strict=False)))


def kept_prompts(model: DiffusionModel, peers: Sequence[str], partners: Sequence[str]) -> list[str]:
    """Each word in every phrasing of `ALONE`, each peer with each partner in one of `TOGETHER`, everyday prompts."""
    alone = [filled(carrier, word) for word in (*peers, *partners) for carrier in ALONE]
    pairs = [(a, b) for a in peers[:16] for b in partners[:16]]
    both = [filled(carrier.replace("#", b), a) for carrier, (a, b) in zip(cycle(TOGETHER), pairs, strict=False)]
    return [text for text in dict.fromkeys(["", *alone, *both, *everyday()[:48]]) if model.fits(text)]


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
def agreement(model: DiffusionModel, concept: str) -> float:
    """How far the phrasings of `ALONE` and `PROBED_ALONE` agree on ``concept``.

    The mean cosine between any two of e(p(c)) - e(""). What a model learned moves predictions in one direction; letters
    that it never saw together move them differently in every sentence.
    """
    carriers = (*ALONE, *PROBED_ALONE)
    found = _effects(model, ["", *(filled(carrier, concept) for carrier in carriers)], _states(model, 2))
    d = F.normalize(found[1:] - found[:1], dim=1)
    return float(((d @ d.T).sum() - len(d)) / (len(d) * (len(d) - 1)))


def learned(model: DiffusionModel, concept: str) -> bool:
    """Whether the model seems to have learned ``concept`` at all.

    A word of the tokenizer needs an `agreement` of `AGREED`. A word that the tokenizer reads in pieces was rare in the
    captions that it was made from: it needs more, and if it is read almost letter by letter, nothing suffices.
    """
    tokens, words = len(model.text[0].words(concept)), concept.split()
    if tokens <= PIECES * len(words):
        return agreement(model, concept) >= AGREED
    return len("".join(words)) >= LETTERS * tokens and agreement(model, concept) >= AGREED_IN_PIECES


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
    ends = torch.cat([_ends(model, part) for part in _encoded(model, [concept, *words], 64)])
    ends = ends - ends.mean(0)
    order = F.cosine_similarity(ends[1:], ends[:1]).argsort(descending=True, stable=True).tolist()
    return [words[k] for k in order[:MOST_WORDS]]


@torch.no_grad()
def felt(model: DiffusionModel, concept: str, words: Sequence[str]) -> list[str]:
    """The ``words`` whose prompt moves the prediction away from that of the empty prompt, the farthest first.

    Of at least `FELT` times the concept's own distance. Words like "image" and most pieces of words have no such
    effect.
    """
    if not words:
        return []
    moved = _effects(model, ["", concept, *words], _states(model, 1))
    moved = (moved - moved[:1]).norm(dim=1)
    order = moved[2:].argsort(descending=True, stable=True).tolist()
    return [words[k] for k in order if moved[2 + k] >= FELT * moved[1]]


@torch.no_grad()
def divided(model: DiffusionModel, concept: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The peers and the partners among ``words``: the nearest of kin come first, and companions that show most.

    Let d(p) = e(p) - e("") for a prompt p. Of a word's direction d(w), beside the concept c, the share
    <d(w c) - d(c), d(w)> / |d(w)|^2 lasts, and of the concept's the share <d(w c) - d(w), d(c)> / |d(c)|^2. d(w c) is
    the mean over both orders. What the model never learned lasts neither beside the concept nor beside its best
    companions: it is neither peer nor partner. Of the rest, `kinship` tells peers from partners, by the shares that
    last beside `HUBS` companions and as many rivals; beside rivals only the rest is measured. A word may hide the
    concept and be of another kind (a style that no object suits well), so it is the mean of the concept's kinship with
    a word and that of its `NEAREST_OF_KIN`.
    """
    if not words:
        return [], []
    states = _states(model, 2)
    found = _effects(model, ["", concept, *words], states)
    nothing, c, w = found[0], found[1] - found[0], found[2:] - found[0]

    def shares(d: Tensor, *orders: Sequence[str], of: Sequence[int] = range(len(words))) -> tuple[Tensor, Tensor]:
        """What lasts of the words ``of``, and of the one of direction ``d`` beside each, in all ``orders``."""
        texts, mine = [text for order in orders for text in order], w[list(of)]
        both = _effects(model, texts, states).reshape(len(orders), len(of), -1).mean(0) - nothing
        return ((both - d) * mine).sum(1) / mine.square().sum(1), (both - mine) @ d / d.square().sum()

    of_words, of_concept = shares(c, [f"{concept} {a}" for a in words], [f"{a} {concept}" for a in words])
    company, t = torch.minimum(of_words, of_concept), together(of_words, of_concept)
    hubs = company.argsort(descending=True, stable=True)[:HUBS].tolist()
    rivals = [k for k in t.argsort(stable=True).tolist() if k not in hubs][:HUBS]
    beside_hubs = [shares(w[k], [f"{words[k]} {word}" for word in words]) for k in hubs]
    others = torch.stack([of_each for of_each, _ in beside_hubs])
    others[range(len(hubs)), hubs] = 0
    known = (torch.maximum(of_words, others.mean(0)) >= LASTING).nonzero().flatten().tolist()
    if not known:
        return [], []
    beside = {k: together(*both)[known] for k, both in zip(hubs, beside_hubs, strict=True)}

    def row(k: int) -> Tensor:
        """t of word k with those known; nan with itself."""
        if k not in beside:
            beside[k] = together(*shares(w[k], [f"{words[k]} {words[n]}" for n in known], of=known))
        return beside[k].masked_fill(torch.tensor([n == k for n in known]), torch.nan)

    among, own = torch.stack([row(k) for k in (*hubs, *rivals)]), t[[*hubs, *rivals]]
    kin = kinship(t[known], among, own)
    nearest = [k for k in kin.argsort(descending=True, stable=True).tolist() if kin[k] > KIN][:NEAREST_OF_KIN]
    kin = torch.stack([kin, *(kinship(row(known[k]), among, among[:, k]) for k in nearest)]).nanmean(dim=0)
    peers = [k for k in kin.argsort(descending=True, stable=True).tolist() if kin[k] > KIN]
    partners = [k for k in company[known].argsort(descending=True, stable=True).tolist() if kin[k] <= KIN]
    return [words[known[k]] for k in peers], [words[known[k]] for k in partners]


def _states(model: DiffusionModel, images: int, steps: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Latents (images, c, h, w) without a prompt, and timesteps: pure noise, and after a fifth of ``steps``."""
    size, found = model.default_size, []
    for k in (0, steps // 5):
        generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
        scheduler, empty = model.new_scheduler(steps), model.encode([""]).repeat(images)
        x = initial_noise(model, size, size, generators)
        if k:
            x = denoise(model, x, empty, empty, scheduler, steps=k, guidance=1.0, generators=generators)
        else:
            x = x * scheduler.init_noise_sigma
        t = scheduler.timesteps[k]
        found.append((scheduler.scale_model_input(x, t), t))
    return found


def _effects(model: DiffusionModel, texts: Sequence[str], states: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(n, values): the backbone's own output for each prompt of ``texts``, at all ``states``."""
    columns, encoded = [], _encoded(model, texts)
    for x, t in states:
        rows = [
            model.predict(x.repeat(len(c), 1, 1, 1), t, c[torch.arange(len(c)).repeat_interleave(len(x))])
            for c in encoded
        ]
        columns.append(torch.cat(rows).reshape(len(texts), -1).float().cpu())
    return torch.cat(columns, dim=1)


def _encoded(model: DiffusionModel, texts: Sequence[str], batch: int = 16) -> list[Conditioning]:
    return [model.encode(texts[k : k + batch]) for k in range(0, len(texts), batch)]


def _ends(model: DiffusionModel, found: Conditioning) -> Tensor:
    """The prompt embeddings at each text's end token, (n, width)."""
    assert found.tokens is not None
    ends = (found.tokens == model.text[0].end).int().argmax(1)
    return found.sequence[torch.arange(len(ends)), ends].float()
