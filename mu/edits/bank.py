"""Several edits on one model: which are on, how much of each passes, and their sum."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from mu.core.errors import EditError, nearest, quoted
from mu.edits.edit import Edit, check_strength, shifted, warn_of_other_base
from mu.edits.gatekeeper import gated, prompt_gates
from mu.edits.gates import FacilitatedTransport, FixedStrength, Gate
from mu.edits.joint import solved_together
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors, Membrane
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import EditableModel, find_parameter

log = logging.getLogger("mu")


class Bank:
    """Edits of one model. Each can be switched on and off; restoring a concept switches its edit off.

    Dense edits add up in the weights. Low-rank edits run in parallel as one membrane, with a gate for each edit. Edits
    that were found in one solve are solved again for those that are on: see `mu.edits.joint`.
    """

    def __init__(self, model: EditableModel, edits: Sequence[Edit] = ()):
        self.model = model
        self.edits: dict[str, Edit] = {}
        self.restored: set[str] = set()
        self.strength: dict[str, float] = {}
        self._solved: tuple[list[Edit], list[Edit]] = ([], [])
        """The edits that were on last, as they were added and as they were solved together."""
        for edit in edits:
            self.add(edit)

    def add(self, edit: Edit, strength: float = 1.0) -> None:
        """Add ``edit``. ``strength`` is its default, used if none is given when the bank is applied.

        Raises `EditError` for an edit that does not fit the model, or a concept that is already in the bank. Warns if
        the edit was found on other weights of the same shapes.
        """
        edit.check(self.model)
        check_strength(strength)
        if edit.concept() in self.edits:
            raise EditError(f"the bank already holds an edit of {quoted(edit.concept())}: leave one of the two out")
        warn_of_other_base(edit, self.model)
        self.edits[edit.concept()], self.strength[edit.concept()] = edit, strength

    def remove(self, concept: str) -> Edit:
        self._known(concept)
        self.restored.discard(concept)
        del self.strength[concept]
        return self.edits.pop(concept)

    def restore(self, concept: str) -> None:
        """Restore ``concept``: its edit stays in the bank, switched off."""
        self._known(concept)
        self.restored.add(concept)

    def erase(self, concept: str) -> None:
        """Switch the edit of a restored concept on again."""
        self._known(concept)
        self.restored.discard(concept)

    def _known(self, concept: str) -> None:
        if concept not in self.edits:
            raise EditError(f"{quoted(concept)} is not in the bank.{nearest(concept, self.edits)}")

    def strengths(self, given: Sequence[float] | None) -> list[float]:
        """One strength for each edit that is on, ``given`` or its own.

        Raises `EditError` for a wrong count or a strength that is not a finite number.
        """
        if given is None:
            return [self.strength[edit.concept()] for edit in self.on]
        if len(given) != len(self.on):
            raise EditError(f"{len(self.on)} edits are on, but {len(given)} strengths were given: give one for each")
        for each in given:
            check_strength(each)
        return [float(each) for each in given]

    @property
    def on(self) -> list[Edit]:
        """The edits that are on, in order. Those of one solve are solved for what is on: as if nothing else was asked.

        The solve is done once for each set of edits.
        """
        edits = [edit for concept, edit in self.edits.items() if concept not in self.restored]
        known, solved = self._solved
        if len(known) != len(edits) or any(a is not b for a, b in zip(known, edits, strict=True)):
            solved = solved_together(edits)
            self._solved = (edits, solved)
        return list(solved)

    @contextmanager
    def applied(
        self, strengths: Sequence[float] | None = None, gate: Gate | None = None, *, fold: bool = False
    ) -> Iterator[Membrane | None]:
        """Apply the edits that are on inside the block, then restore the model bit for bit.

        ``strengths`` has one number for each edit that is on, in order. ``gate`` replaces the gates that the edits'
        files state; dense edits have none. Yields the low-rank edits' membrane, or None if no low-rank edit is on.
        With ``fold``, low-rank edits whose gate is a fixed strength add to the weights too, as dense ones do: they then
        cost nothing while the model runs, and memory for a copy of each weight. Weights in half precision would round
        them away, so edits of those stay in the membrane.

        Raises `EditError` if ``gate`` reads the prompt and all edits are dense, and warns if some are.
        """
        active = [
            (edit, strength) for edit, strength in zip(self.on, self.strengths(strengths), strict=True) if strength
        ]
        low_rank = [(edit, strength) for edit, strength in active if isinstance(edit, LowRankEdit)]
        folded = [
            (edit, strength * passes)
            for edit, strength in (low_rank if fold else [])
            if (passes := self._foldable(edit, gate or edit.gate)) is not None
        ]
        into_weights = {id(edit) for edit, _ in folded}
        low_rank = [pair for pair in low_rank if id(pair[0]) not in into_weights]
        dense = [edit.concept() for edit, _ in active if not isinstance(edit, LowRankEdit)]
        if isinstance(gate, FacilitatedTransport) and dense:
            _tell_dense(dense, alone=not low_rank)
        with ExitStack() as stack:
            stack.enter_context(
                shifted(
                    self.model,
                    sums([*((e, s) for e, s in active if not isinstance(e, LowRankEdit)), *folded]),
                )
            )
            if not low_rank:
                yield None
                return
            edits, sizes = zip(*low_rank, strict=True)
            yield stack.enter_context(gated(self.model, edits, sizes, [gate or edit.gate for edit in edits]))

    def _foldable(self, edit: LowRankEdit, gate: Gate) -> float | None:
        """The fixed strength of ``edit`` if it can be added to the weights, else None."""
        fixed = isinstance(gate, FixedStrength) and gate.arithmetic == "paper"
        full = all(find_parameter(self.model, name).dtype == torch.float32 for name in edit.factors)
        return gate.strength if isinstance(gate, FixedStrength) and fixed and full else None

    def gates(self, prompts: Sequence[str]) -> Tensor:
        """How much of each edit that is on passes for each prompt, (b, J), before strengths; dense edits pass in full.

        Dense edits of a text encoder change what the gates read, so they are applied for it.
        """
        assert isinstance(self.model, DiffusionModel), "gates that read the prompt need a diffusion model"
        strengths = zip(self.on, self.strengths(None), strict=True)
        dense = summed((e, s) for e, s in strengths if not isinstance(e, LowRankEdit))
        text = {name: delta for name, delta in dense.items() if name.startswith("text_encoder")}
        with shifted(self.model, text):
            return prompt_gates(self.model, self.on, [edit.gate for edit in self.on], prompts)

    def merged_strengths(self, strengths: Sequence[float] | None = None) -> list[float]:
        """`strengths`, each times the fixed strength that the edit's gate has: what a file without gates adds."""
        return [
            size * (edit.gate.strength if isinstance(edit.gate, FixedStrength) else 1.0)
            for edit, size in zip(self.on, self.strengths(strengths), strict=True)
        ]

    def deltas(self, strengths: Sequence[float] | None = None) -> dict[str, Tensor]:
        """The dense sum of the edits that are on, ungated: the deltas that a merged checkpoint adds to the base."""
        return summed(zip(self.on, self.strengths(strengths), strict=True))


def _tell_dense(dense: Sequence[str], alone: bool) -> None:
    names = ", ".join(map(quoted, dense))
    if alone:
        raise EditError(f"a gate is for low-rank edits, and the edits of {names} are dense: leave the gate out")
    log.warning("the edits of %s are dense: the gate leaves them out, they act in full on every prompt", names)


def summed(edits: Iterable[tuple[Edit, float]]) -> dict[str, Tensor]:
    """Sum the dense deltas of ``(edit, strength)`` pairs by parameter."""
    return dict(sums(edits))


def sums(edits: Iterable[tuple[Edit, float]]) -> Iterator[tuple[str, Tensor]]:
    """`summed`, one parameter at a time, so that the deltas are never all in memory.

    Low-rank edits of one parameter are one product of their joined factors: one dense delta, and not one for each.
    """
    owners: dict[str, list[tuple[Edit, float]]] = {}
    for edit, strength in edits:
        for name in edit.parameters:
            owners.setdefault(name, []).append((edit, strength))
    for name, parts in owners.items():
        thin = [(edit.factors[name], size) for edit, size in parts if isinstance(edit, LowRankEdit)]
        found = [together(thin).dense()] if len(thin) > 1 else [factors.dense() * size for factors, size in thin]
        found += [edit.delta(name).float() * size for edit, size in parts if not isinstance(edit, LowRankEdit)]
        total, *others = found
        for other in others:
            total = total + other.reshape(total.shape).to(total.device)
        yield name, total


def together(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """The sum of several factors of one layer, each times its strength, as one pair with a scale of 1; float32, on the
    device of the first."""
    like = parts[0][0].down.detach().float()
    down = torch.cat([factors.down.detach().to(like).flatten(1) for factors, _ in parts])
    ups = [factors.up.detach().to(like).flatten(1) * (factors.scale * strength) for factors, strength in parts]
    shape, kernel = parts[0][0].down.shape, parts[0][0].up.shape[2:]
    rank = len(down)
    return Factors(down.reshape(rank, *shape[1:]), torch.cat(ups, dim=1).reshape(-1, rank, *kernel), float(rank))
