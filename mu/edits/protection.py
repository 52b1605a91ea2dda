"""Which edits of a bank act on each other's concepts, and so what restoring one edit changes for the others.

In cross-attention, keys and values are linear in the prompt embedding E (tokens, d). An edit of them alone adds E D^T.
If that is 0 for a prompt, the prompt's images stay exactly the same for all latents. For edits found one after another
this often holds in one direction only: the new edit protects the old concepts, but the old edit did not know the new.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.errors import EditError, quoted, titled
from mu.data.prompt_lists import phrasings
from mu.edits.bank import Bank
from mu.edits.edit import Edit
from mu.edits.gatekeeper import prompt_gates
from mu.edits.gates import OPEN
from mu.models.diffusion import DiffusionModel

TOLERANCE = 1e-2

log = logging.getLogger("mu")

Verdict = Literal["spared", "one-sided", "both ways", "other way unknown", "not measurable"]


@dataclass(frozen=True)
class Leak:
    """The effect of the edit of ``edit`` on the prompt ``on``.

    ``share``: the effect relative to that on its own concept, None if unknown. ``sentences``: the same for sentences
    with ``on`` that no preset protects, relative to sentences with its own concept, on average. ``listed``: the edit's
    file lists ``on`` as protected. ``verdict``: ``spared`` if ``share`` is within the tolerance; else the other
    direction's result.
    """

    edit: str
    on: str
    share: float | None
    listed: bool
    verdict: Verdict
    sentences: float | None = None

    @property
    def leaking(self) -> bool:
        """Whether restoring ``edit`` changes the images of ``on``."""
        return self.verdict not in ("spared", "not measurable")

    def __str__(self) -> str:
        acts = f"{self.verdict}: the edit of {quoted(self.edit)} acts on {quoted(self.on)}"
        return f"{acts}, so restoring {quoted(self.edit)} changes {quoted(self.on)}"

    def of_sentences(self) -> str:
        return (
            f"the edit of {quoted(self.edit)} moves sentences with {quoted(self.on)} by {self.sentences:.1%} of its "
            f"own effect: restored, {quoted(self.on)} is not quite the base's there"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def leaks(bank: Bank, tolerance: float = TOLERANCE, *, sentences: bool = True) -> list[Leak]:
    """Measure, for each ordered pair of edits, on or restored, how much the first acts on the second's concept.

    ``share`` = g(on) ||E(on) D^T|| / g(edit) ||E(edit) D^T|| with the edit's gate g, one Frobenius norm over all token
    positions and all parameters of the edit. For an edit with several concepts the largest norm counts. ``share`` has
    no unit and does not depend on the strength. It is None if the edit changes other parameters too (they act on every
    prompt), if the edit does nothing to its own concept's prompt, or if one of the two names no concept. It holds for
    the concept's exact prompt only: a longer prompt that contains the concept has another embedding; see ``sentences``.
    Raises `EditError` for a model that makes no images.
    """
    model, edits = bank.model, bank.edits
    if not isinstance(model, DiffusionModel):
        raise EditError(f"{titled(model.name)} makes no images, so its leaks cannot be measured: use a diffusion model")
    prompts = list(dict.fromkeys(prompt for edit in edits.values() for prompt in edit.info.concepts))
    shares: dict[tuple[str, str], float | None] = {}
    moved = _in_sentences(model, edits) if sentences else {}
    for concept, edit in edits.items():
        norms = _norms(model, edit, prompts)
        largest = (
            {other: max((norms[p] for p in edits[other].info.concepts), default=0.0) for other in edits}
            if norms
            else {}
        )
        own = largest.get(concept, 0.0)
        known = {other: bool(own and there.info.concepts) for other, there in edits.items() if other != concept}
        shares |= {(concept, other): largest[other] / own if known[other] else None for other in known}

    def verdict(there: float | None, back: float | None) -> Verdict:
        if there is None:
            return "not measurable"
        if there <= tolerance:
            return "spared"
        return "other way unknown" if back is None else "one-sided" if back <= tolerance else "both ways"

    return [
        Leak(a, b, share, _lists(edits[a], edits[b]), verdict(share, shares[b, a]), moved.get((a, b)))
        for (a, b), share in shares.items()
    ]


def tell_leaks(bank: Bank, new: Collection[str] | None = None) -> None:
    """Warn of each edit that promises to retain prompts but acts on another edit's concept, if both are on.

    With ``new``, warn of the pairs, on or restored, that include a concept in ``new``. A model that makes no images
    gets no warning.
    """
    if not isinstance(bank.model, DiffusionModel) or len(bank.edits) < 2:
        return
    on = {edit.concept() for edit in bank.on}
    for leak in leaks(bank, sentences=False):
        pair = {leak.edit, leak.on}
        if leak.leaking and bank.edits[leak.edit].info.promises and (pair <= on if new is None else pair & set(new)):
            log.warning("%s", leak)


@torch.no_grad()
def _in_sentences(model: DiffusionModel, edits: Mapping[str, Edit]) -> dict[tuple[str, str], float]:
    """How much each edit moves sentences with each other concept, relative to those with its own."""
    found: dict[tuple[str, str], float] = {}
    for on, there in edits.items():
        texts = [text for of in there.info.concepts for text in phrasings(of) if model.fits(text)]
        if texts:
            embedded = model.encode(texts).sequence
            norms = {name: _norms(model, edit, texts, embedded) for name, edit in edits.items()}
            found |= {(name, on): sum(each.values()) / len(each) for name, each in norms.items() if each}
    return {(a, b): size / found[a, a] for (a, b), size in found.items() if a != b and found.get((a, a))}


def _lists(edit: Edit, other: Edit) -> bool:
    return bool(other.info.concepts) and set(other.info.concepts) <= set(edit.info.protects)


@torch.no_grad()
def _norms(
    model: DiffusionModel, edit: Edit, prompts: Sequence[str], embedded: Tensor | None = None
) -> dict[str, float]:
    """||E(p) D^T|| by prompt, in float64, times what passes the edit's gate. ``embedded`` (n, tokens, d), if known.

    Empty for an edit that changes more than the keys and values of text.
    """
    text_only = model.layers("text-keys") | model.layers("text-values")
    if not prompts or not set(edit.parameters) <= text_only.keys():
        return {}
    embeddings = (model.encode(prompts).sequence if embedded is None else embedded).cpu().double()
    squares = torch.zeros(len(prompts), dtype=torch.float64)
    for _, shift in edit.deltas():
        squares += F.linear(embeddings, shift.cpu().double()).square().sum((1, 2))
    passed = [1.0] * len(prompts)
    if edit.gate != OPEN:
        passed = prompt_gates(model, [edit], [edit.gate], prompts)[:, 0].abs().tolist()
    return {prompt: norm * gate for prompt, norm, gate in zip(prompts, squares.sqrt().tolist(), passed, strict=True)}
