"""Finished edits of SepCE beside each other: their sum, and older edits that protect or spare newer concepts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from mu.algorithms.separable_concept_erasure.model import text_layers
from mu.algorithms.separable_concept_erasure.null_space import NullSpace, token_rows
from mu.core.errors import EditError, quoted
from mu.edits.edit import Edit, EditInfo
from mu.edits.gates import OPEN, FacilitatedTransport
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.models.diffusion import DiffusionModel


def summed(edits: Sequence[LowRankEdit], info: EditInfo) -> LowRankEdit:
    """The sum of the ``edits``, with their LoRA factors concatenated.

    It protects the prompts that all of them protect, and spares those that all of them spare or protect.
    """
    factors = {}
    for name in edits[0].factors:
        parts = [edit.factors[name] for edit in edits]
        down, up = torch.cat([part.down for part in parts]), torch.cat([part.up * part.scale for part in parts], dim=1)
        factors[name] = Factors(down, up, float(len(down)))
    protects = tuple(prompt for prompt in edits[0].info.protects if all(prompt in edit.info.protects for edit in edits))
    left_alone = [{*edit.info.protects, *edit.info.spares} for edit in edits]
    spares = tuple(p for p in edits[0].info.spares if p not in protects and all(p in each for each in left_alone))
    return LowRankEdit(
        factors,
        replace(
            info,
            protects=protects,
            spares=spares,
            **{name: getattr(edits[0].info, name) for name in ("base", "fingerprint", "loading")},
        ),
    )


def is_separable(edit: Edit, model: DiffusionModel) -> TypeGuard[LowRankEdit]:
    """Whether ``edit`` is like a `SeparableShift`: it changes only cross-attention keys and values, and protects ""."""
    known = isinstance(edit, LowRankEdit) and set(edit.factors) <= set(text_layers(model))
    gate = edit.info.gate
    if isinstance(gate, FacilitatedTransport):
        gate = replace(gate, floor=0.0)
    return known and "" in edit.info.protects and gate in (OPEN, FacilitatedTransport())


@torch.no_grad()
def also_protecting(edit: LowRankEdit, model: DiffusionModel, prompts: Sequence[str]) -> LowRankEdit:
    """``edit`` made null on ``prompts`` too, in addition to everything that it protected before (section 2.9).

    An edit found before a later concept was known acts on that concept: to take the old edit off would change the new
    concept's images. D (I - B B^T), with B the row space of the new rows inside the old null space, corrects that
    exactly. The effect of the edit along B is lost, so evaluate again how well it erases. Raises `EditError` for an
    edit that separable erasure did not make.
    """
    if not is_separable(edit, model):
        raise EditError(
            f"the edit of {quoted(edit.concept())} protects no prompts, it is not from separable erasure: erase "
            "with sepce"
        )
    # The old null space again, with the edit's own rows: if prompts are spared, other rows may have bounded it.
    space = NullSpace.of(token_rows(model, edit.info.protects))
    if edit.info.spares:
        space = space.without(token_rows(model, edit.info.spares), float(edit.info.config["protect"]["null_tol"]))
    _, s, inside = torch.linalg.svd(torch.cat([space.directions, _row_space(edit, 1e-6)]), full_matrices=False)
    inside = inside[s > 1e-6 * s[0]]
    _, s, B = torch.linalg.svd(token_rows(model, prompts) @ inside.T, full_matrices=False)
    B = B[s > 1e-6 * s[0]] @ inside
    spares = tuple(prompt for prompt in edit.info.spares if prompt not in prompts)
    return LowRankEdit(
        _times(edit, torch.eye(B.shape[1], dtype=B.dtype) - B.T @ B),
        replace(edit.info, protects=tuple(dict.fromkeys([*edit.info.protects, *prompts])), spares=spares),
    )


@torch.no_grad()
def sparing(
    edit: LowRankEdit, model: DiffusionModel, prompts: Sequence[str], sentences: Sequence[str], weights: Iterable[float]
) -> Iterator[tuple[float, LowRankEdit]]:
    """For each of ``weights``: ``edit`` with less effect on ``sentences``, nearly the same on its own ``prompts``.

    D' minimises E||D' e - D e||^2 over the token rows e of ``prompts``, plus the weight times E||D' s||^2 over those of
    ``sentences``, inside the row space of D: D' = D C (C + weight K)^-1, with C and K the second moments there. What D
    protects exactly stays protected. Texts are encoded once.
    """
    own = _row_space(edit, 1e-9)
    C, K = (rows.T @ rows / len(rows) for rows in (token_rows(model, texts) @ own.T for texts in (prompts, sentences)))
    floor = 1e-9 * torch.trace(C) * torch.eye(len(C), dtype=C.dtype)
    for weight in weights:
        change = own.T @ torch.linalg.solve(C + weight * K + floor, C).T @ own
        yield weight, LowRankEdit(_times(edit, change), edit.info)


def _row_space(edit: LowRankEdit, tol: float) -> Tensor:
    """Orthonormal directions (r, d), float64, of the rows of all deltas, without those below ``tol`` of the strongest.

    Deltas that share one basis count it once.
    """
    downs = [factors.down.cpu().double() for factors in edit.factors.values()]
    distinct = [downs[0], *(down for down in downs[1:] if not torch.equal(down, downs[0]))]
    _, s, directions = torch.linalg.svd(torch.cat(distinct), full_matrices=False)
    return directions[s > tol * s[0]]


def _times(edit: LowRankEdit, change: Tensor) -> dict[str, Factors]:
    """The factors of D ``change`` (d, d) for every delta D."""
    return {
        name: Factors((old.down.cpu().double() @ change).to(old.down), old.up, old.alpha)
        for name, old in edit.factors.items()
    }
