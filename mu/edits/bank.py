"""Many edits on one model: which are on, how they pass, and what they come to together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor

from mu.core.errors import EditError, nearest
from mu.edits.edit import Edit, shifted, warn_of_other_base
from mu.edits.gates import FacilitatedTransport, FixedStrength, gate_from_json
from mu.edits.low_rank import LowRankEdit, Membrane
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import EditableModel


class Bank:
    """Edits of one model. Each can be put on and taken off again: restoring a concept is leaving its edit out.

    Dense edits add up in the weights; low-rank edits run beside them as one membrane with a gate for each.
    """

    def __init__(self, model: EditableModel, edits: Sequence[Edit] = ()):
        self.model = model
        self.edits: dict[str, Edit] = {}
        self.restored: set[str] = set()
        self.strength: dict[str, float] = {}
        for edit in edits:
            self.add(edit)

    def add(self, edit: Edit, strength: float = 1.0) -> None:
        """``strength`` is the edit's own, where none is given when it is put on.

        Raises `EditError` for an edit that does not fit the model, or a concept that is in the bank already. An edit
        that was found on other weights of the same shapes is taken with a warning.
        """
        edit.check(self.model)
        if edit.concept() in self.edits:
            raise EditError(f"there is an edit of {edit.concept()!r} already: leave one of the two out")
        warn_of_other_base(edit, self.model)
        self.edits[edit.concept()], self.strength[edit.concept()] = edit, strength

    def remove(self, concept: str) -> Edit:
        self._known(concept)
        self.restored.discard(concept)
        del self.strength[concept]
        return self.edits.pop(concept)

    def restore(self, concept: str) -> None:
        """Give ``concept`` back: its edit stays in the bank and is off."""
        self._known(concept)
        self.restored.add(concept)

    def erase(self, concept: str) -> None:
        """Put a restored concept's edit on again."""
        self._known(concept)
        self.restored.discard(concept)

    def _known(self, concept: str) -> None:
        if concept not in self.edits:
            raise EditError(f"{concept!r} is not in the bank.{nearest(concept, self.edits)}")

    def strengths(self, given: Sequence[float] | None) -> list[float]:
        """One for each edit that is on; by default its own. `EditError` for another count, and for what is no finite number."""
        if given is not None and len(given) != len(self.on):
            raise EditError(f"{len(self.on)} edits are on, but {len(given)} strengths were given")
        for each in given or ():
            if not math.isfinite(each):
                raise EditError(f"an edit's strength must be a number, not {each}")
        return [self.strength[edit.concept()] for edit in self.on] if given is None else [float(each) for each in given]

    @property
    def on(self) -> list[Edit]:
        return [edit for concept, edit in self.edits.items() if concept not in self.restored]

    @contextmanager
    def applied(
        self, strengths: Sequence[float] | None = None, gate: FacilitatedTransport | FixedStrength | None = None
    ) -> Iterator[Membrane | None]:
        """Put the edits that are on on the model; after the block the model is as it was, bit for bit.

        ``strengths`` has one number for each edit that is on, in order. ``gate`` replaces what the edits' files say; a
        gate that reads the prompt is told it by the model before each batch. Yields the membrane, None without
        low-rank edits.
        """
        strengths = self.strengths(strengths)
        active = [(edit, strength) for edit, strength in zip(self.on, strengths, strict=True) if strength != 0]
        low_rank = [(edit, strength) for edit, strength in active if isinstance(edit, LowRankEdit)]
        with ExitStack() as stack:
            stack.enter_context(shifted(self.model, summed((e, s) for e, s in active if not isinstance(e, LowRankEdit))))
            membrane = stack.enter_context(self._membrane(low_rank, gate)) if low_rank else None
            yield membrane

    @contextmanager
    def _membrane(
        self, edits: list[tuple[LowRankEdit, float]], gate: FacilitatedTransport | FixedStrength | None
    ) -> Iterator[Membrane]:
        gates = [gate or gate_from_json(edit.info.gate) for edit, _ in edits]
        ways = {g.arithmetic for g in gates}
        if len(ways) > 1:
            raise EditError("edits with the paper's and with the reference's arithmetic cannot be on together: pass one gate")
        strengths = torch.tensor([strength for _, strength in edits])
        membrane = Membrane([edit for edit, _ in edits], ways.pop())
        constant = torch.tensor([g.strength if isinstance(g, FixedStrength) else 1.0 for g in gates])
        membrane.gates = strengths * constant

        def listen(prompts: list[str]) -> None:
            membrane.gates = self._gates(prompts, [edit for edit, _ in edits], gates) * strengths

        with membrane.installed(self.model), ExitStack() as stack:
            if hasattr(self.model, "listening") and any(isinstance(g, FacilitatedTransport) for g in gates):
                stack.enter_context(self.model.listening(listen))
            yield membrane

    def gates(self, prompts: Sequence[str]) -> Tensor:
        """How much of each edit that is on passes for each prompt: (b, J); dense edits always pass in full."""
        gates = [gate_from_json(edit.info.gate) if isinstance(edit, LowRankEdit) else FixedStrength() for edit in self.on]
        return self._gates(prompts, self.on, gates)

    def _gates(
        self, prompts: Sequence[str], edits: Sequence[Edit], gates: Sequence[FacilitatedTransport | FixedStrength]
    ) -> Tensor:
        model = cast(DiffusionModel, self.model)  # only its edits have gates that look at the model
        values = torch.empty(len(prompts), len(edits))
        for each in dict.fromkeys(gates):
            columns = [j for j, gate in enumerate(gates) if gate == each]
            values[:, columns] = each(model, prompts, [edits[j].info.concepts for j in columns])
        return values

    def deltas(self, strengths: Sequence[float] | None = None) -> dict[str, Tensor]:
        """The dense sum of the edits that are on, ungated: what a merged checkpoint adds to the base."""
        return summed(zip(self.on, self.strengths(strengths), strict=True))


def summed(edits: Iterable[tuple[Edit, float]]) -> dict[str, Tensor]:
    """Dense shifts of ``(edit, strength)`` pairs added up by parameter."""
    total: dict[str, Tensor] = {}
    for edit, strength in edits:
        for name, shift in edit.deltas():
            shift = shift.float() * strength
            if name in total:
                shift = total[name] + shift.reshape(total[name].shape).to(total[name].device)
            total[name] = shift
    return total
