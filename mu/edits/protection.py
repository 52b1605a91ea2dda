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
from mu.edits.joint import JointEdit, solved_together
from mu.edits.low_rank import LowRankEdit, content
from mu.models.diffusion import DiffusionModel

TOLERANCE = 1e-2
MANY = 24
"""The largest number of edits whose sentences are measured too: ten for each pair of edits."""
TOLD = 10
"""The largest number of leaks that are told one by one."""
AT_ONCE = 512
"""Factors whose products with all embeddings are in memory at once."""

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
    Sentences are measured for up to `MANY` edits. Raises `EditError` for a model that makes no images.
    """
    model = bank.model
    if not isinstance(model, DiffusionModel):
        raise EditError(f"{titled(model.name)} makes no images, so its leaks cannot be measured: use a diffusion model")
    edits = dict(zip(bank.edits, solved_together([*bank.edits.values()]), strict=True))
    prompts = list(dict.fromkeys(prompt for edit in edits.values() for prompt in edit.info.concepts))
    shares: dict[tuple[str, str], float | None] = {}
    moved = _in_sentences(model, edits) if sentences and len(edits) <= MANY else {}
    effects = _norms(model, edits, prompts)
    for concept, norms in effects.items():
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

    def together(pair: set[str]) -> bool:  # then each was solved for with the other known
        groups = [edit.solve.group if isinstance(edit := bank.edits[name], JointEdit) else name for name in pair]
        return len(set(groups)) == 1

    told = [
        leak
        for leak in leaks(bank, sentences=False)
        if leak.leaking
        and bank.edits[leak.edit].info.promises
        and not together(pair := {leak.edit, leak.on})
        and (pair <= on if new is None else pair & set(new))
    ]
    for leak in told[:TOLD]:
        log.warning("%s", leak)
    if len(told) > TOLD:
        log.warning("%d more edits act on each other's concepts: `mu bank check` lists them", len(told) - TOLD)


@torch.no_grad()
def _in_sentences(model: DiffusionModel, edits: Mapping[str, Edit]) -> dict[tuple[str, str], float]:
    """How much each edit moves sentences with each other concept, relative to those with its own."""
    found: dict[tuple[str, str], float] = {}
    for on, there in edits.items():
        texts = [text for of in there.info.concepts for text in phrasings(of) if model.fits(text)]
        if texts:
            embedded = model.encode(texts).sequence
            norms = _norms(model, edits, texts, embedded)
            found |= {(name, on): sum(each.values()) / len(each) for name, each in norms.items() if each}
    return {(a, b): size / found[a, a] for (a, b), size in found.items() if a != b and found.get((a, a))}


def _lists(edit: Edit, other: Edit) -> bool:
    return bool(other.info.concepts) and set(other.info.concepts) <= set(edit.info.protects)


@torch.no_grad()
def _norms(
    model: DiffusionModel, edits: Mapping[str, Edit], prompts: Sequence[str], embedded: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """||E(p) D^T|| of each edit by prompt p, in float64, times what passes the edit's gate.

    ``embedded`` (n, tokens, d) are the prompts' embeddings, if known. Empty for an edit that changes more than the keys
    and values of text. No dense delta of a low-rank edit is made: for D = U V, E D^T = (E V^T) U^T, whose square is
    that of E V^T in the metric U^T U, and all V of all edits go into one product.
    """
    text_only = model.layers("text-keys") | model.layers("text-values")
    known = {name: edit for name, edit in edits.items() if prompts and set(edit.parameters) <= text_only.keys()}
    if not known:
        return {name: {} for name in edits}
    embeddings = (model.encode(prompts).sequence if embedded is None else embedded).cpu().double()
    thin = {name: edit for name, edit in known.items() if isinstance(edit, LowRankEdit)}
    squares = _thin_squares(thin, embeddings)
    for name, edit in known.items():
        if name not in thin:
            squares[name] = _dense_squares(edit, embeddings)
    passed = dict.fromkeys(known, [1.0] * len(prompts))
    if gated := {name: edit for name, edit in known.items() if edit.gate != OPEN}:
        gates = prompt_gates(model, [*gated.values()], [edit.gate for edit in gated.values()], prompts).abs()
        passed |= dict(zip(gated, gates.T.tolist(), strict=True))
    return {
        name: {
            prompt: norm * gate
            for prompt, norm, gate in zip(prompts, squares[name].sqrt().tolist(), passed[name], strict=True)
        }
        if name in known
        else {}
        for name in edits
    }


def _thin_squares(edits: Mapping[str, LowRankEdit], embeddings: Tensor) -> dict[str, Tensor]:
    """||E D^T||^2 of each edit, (n,), for embeddings (n, tokens, d)."""
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for name, edit in edits.items():
        metrics: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        for factors in edit.factors.values():  # layers that share V add up in one metric
            V, U = factors.down.detach().cpu().flatten(1), factors.up.detach().cpu().flatten(1).double()
            key, gram = content(V), factors.scale**2 * U.T @ U
            V, before = metrics.get(key, (V, torch.zeros_like(gram)))
            metrics[key] = (V, before + gram)
        pairs += [(name, V, gram) for V, gram in metrics.values()]
    squares = {name: torch.zeros(len(embeddings), dtype=torch.float64) for name in edits}
    for start in range(0, len(pairs), AT_ONCE):
        some = pairs[start : start + AT_ONCE]
        moved = F.linear(embeddings, torch.cat([V for _, V, _ in some]).double())
        for (name, _, gram), part in zip(some, moved.split([len(V) for _, V, _ in some], dim=-1), strict=True):
            weighed = part * gram if gram.numel() == 1 else part @ gram
            squares[name] += (weighed * part).sum((1, 2))
    return {name: square.clamp(min=0) for name, square in squares.items()}


def _dense_squares(edit: Edit, embeddings: Tensor) -> Tensor:
    """`_thin_squares` of a dense edit: through D^T D if there are more tokens than numbers in one."""
    rows, width = embeddings.shape[0] * embeddings.shape[1], embeddings.shape[2]
    deltas = (delta.cpu().double() for _, delta in edit.deltas())
    if rows <= 2 * width:
        return sum((F.linear(embeddings, delta).square().sum((1, 2)) for delta in deltas), torch.zeros(len(embeddings)))
    gram = torch.zeros(width, width, dtype=torch.float64)
    for delta in deltas:
        gram += delta.T @ delta
    return ((embeddings @ gram) * embeddings).sum((1, 2)).clamp(min=0)
