"""Which edits of a bank leave each other's concepts alone: what restoring one of them changes elsewhere.

In cross-attention, keys and values are linear in the text's embedding E (tokens, d): an edit of them alone adds E D^T. Where
that is 0 for a prompt, the prompt's images stay exactly as they are, whatever the latents. With edits found one after
another this often holds in one direction only: the new one was kept off the old concepts, the old one never saw the new.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from mu.core.errors import EditError
from mu.edits.bank import Bank
from mu.edits.edit import Edit
from mu.models.diffusion import DiffusionModel

TOLERANCE = 1e-2

log = logging.getLogger("mu")

Verdict = Literal["spared", "one-sided", "both ways", "other way unknown", "not measurable"]


@dataclass(frozen=True)
class Leak:
    """What the edit of ``edit`` does to the prompt ``on``: ``share`` of what it does to its own, None where unknown.

    ``listed``: the edit's file says that it protects ``on``. ``verdict``: ``spared`` up to the tolerance, or that it is not
    and whether the other direction is.
    """

    edit: str
    on: str
    share: float | None
    listed: bool
    verdict: Verdict

    @property
    def leaking(self) -> bool:
        """Restoring ``edit`` changes what ``on`` gives."""
        return self.verdict not in ("spared", "not measurable")

    def __str__(self) -> str:
        return f"{self.verdict}: the edit of {self.edit!r} acts on {self.on!r}: restoring {self.edit!r} changes {self.on!r}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def leaks(bank: Bank, tolerance: float = TOLERANCE) -> list[Leak]:
    """Each ordered pair of different edits, on or restored: how much the first acts on the second's concept.

    ``share`` = ||E(on) D^T|| / ||E(edit) D^T||, all token positions and all parameters of the edit in one Frobenius norm;
    of an edit with several concepts the largest norm. It is without unit and does not depend on the strength. None
    for an edit that changes other parameters too, which act whatever the text, for one that does nothing to its own
    concept's prompt, and where one of the two names no concept. It is true for the concept's very words: another prompt
    with them in it is another embedding.
    Raises `EditError` for a model that makes no images.
    """
    model, edits = bank.model, bank.edits
    if not isinstance(model, DiffusionModel):
        raise EditError(f"{model.name!r} makes no pictures from prompts: what protects what cannot be measured on it")
    prompts = list(dict.fromkeys(prompt for edit in edits.values() for prompt in edit.info.concepts))
    shares: dict[tuple[str, str], float | None] = {}
    for concept, edit in edits.items():
        norms = _norms(model, edit, prompts)
        largest = {other: max((norms[p] for p in edits[other].info.concepts), default=0.0) for other in edits} if norms else {}
        own = largest.get(concept, 0.0)
        known = {other: bool(own and there.info.concepts) for other, there in edits.items() if other != concept}
        shares |= {(concept, other): largest[other] / own if known[other] else None for other in known}

    def verdict(there: float | None, back: float | None) -> Verdict:
        if there is None:
            return "not measurable"
        if there <= tolerance:
            return "spared"
        return "other way unknown" if back is None else "one-sided" if back <= tolerance else "both ways"

    return [Leak(a, b, share, _lists(edits[a], edits[b]), verdict(share, shares[b, a])) for (a, b), share in shares.items()]


def tell_leaks(bank: Bank, new: Collection[str] | None = None) -> None:
    """Warn of each edit that promises to leave prompts alone and acts on another's concept, where both are on.

    With ``new`` of those pairs, on or restored, of which one is ``new``. Nothing is told of a model that makes no images.
    """
    if not isinstance(bank.model, DiffusionModel) or len(bank.edits) < 2:
        return
    on = {edit.concept() for edit in bank.on}
    for leak in leaks(bank):
        pair = {leak.edit, leak.on}
        if leak.leaking and bank.edits[leak.edit].info.promises and (pair <= on if new is None else pair & set(new)):
            log.warning("%s", leak)


def _lists(edit: Edit, other: Edit) -> bool:
    return bool(other.info.concepts) and set(other.info.concepts) <= set(edit.info.protects)


@torch.no_grad()
def _norms(model: DiffusionModel, edit: Edit, prompts: Sequence[str]) -> dict[str, float]:
    """||E(p) D^T|| by prompt, in float64; empty for an edit that text alone does not decide."""
    text_only = model.layers("text-keys") | model.layers("text-values")
    if not prompts or not set(edit.parameters) <= text_only.keys():
        return {}
    embeddings = model.encode(prompts).sequence.double().cpu()
    squares = torch.zeros(len(prompts), dtype=torch.float64)
    for _, shift in edit.deltas():
        squares += F.linear(embeddings, shift.double().cpu()).square().sum((1, 2))
    return dict(zip(prompts, squares.sqrt().tolist(), strict=True))
