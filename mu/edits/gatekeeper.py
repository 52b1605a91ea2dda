"""Gates of low-rank edits on a model: each row of a batch gets the gate of its prompt, whoever runs the network.

A hook before the backbone reads the prompt embeddings of every call. If `DiffusionModel.predict` made the call, the
conditioning holds the token ids. If other code did, such as the stock pipeline, the ids come from the text encoder call
that returned these embeddings while the edits were on. Other embeddings come from no prompt (soft prompts): ``clipcos``
is then computed from the embeddings themselves, and ``tokenuni`` is 0.

Both halves of classifier-free guidance get the gate of the prompt that is guided to. `mu.diffusion` pairs them with
`Conditioning.guiding`. In other calls the halves are recognised by their latents, which are equal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.compute import full
from mu.core.concept import numbers
from mu.core.errors import DataError, EditError, quoted, titled
from mu.edits.edit import Edit
from mu.edits.gates import FacilitatedTransport, FixedStrength, Gate, Metric
from mu.edits.membrane import HasFactors, Membrane
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.models.diffusion.conditioning import UNEXPLAINED
from mu.models.parameters import EditableModel

REMEMBERED = 16
"""Number of text encoder calls whose token ids are kept."""
AT_ONCE = 64
"""Prompts that are encoded at once to find floors."""
SAME = 2**-7
"""Largest difference, relative to the largest absolute value, between embeddings that count as equal."""


class GatedEdit(HasFactors, Protocol):
    @property
    def info(self) -> Any: ...
    @property
    def parameters(self) -> list[str]: ...
    def concept(self) -> str: ...


@contextmanager
def gated(
    model: EditableModel, edits: Sequence[GatedEdit], strengths: Sequence[float], gates: Sequence[Gate]
) -> Iterator[Membrane]:
    """Apply ``edits`` inside the block as one membrane, each at its strength times its gate.

    Raises `EditError` for gates of different arithmetic, and for a gate that reads the prompt if the model takes no
    prompts or the edit changes what the gate reads.
    """
    ways = {gate.arithmetic for gate in gates}
    if len(ways) > 1:
        raise EditError("edits with the paper's and the reference's arithmetic cannot be on together: pass one gate")
    backbone = f"{model.backbone_name}." if isinstance(model, DiffusionModel) else ""
    membrane = Membrane(edits, ways.pop(), gated=backbone)
    membrane.gates = torch.tensor(
        [s * gate.strength if isinstance(gate, FixedStrength) else s for s, gate in zip(strengths, gates, strict=True)]
    )
    with membrane.installed(model), ExitStack() as stack:
        if any(isinstance(gate, FacilitatedTransport) for gate in gates):
            keeper = Gatekeeper(
                _readable(model, edits, gates), [edit.info.concepts for edit in edits], gates, strengths
            )
            stack.enter_context(keeper.watching(membrane))
        yield membrane


def _readable(model: EditableModel, edits: Sequence[GatedEdit], gates: Sequence[Gate]) -> DiffusionModel:
    """Return ``model`` if prompts can gate ``edits`` on it, else raise `EditError`."""
    if not isinstance(model, DiffusionModel):
        raise EditError(
            f"a gate that reads the prompt needs a diffusion model, not {titled(model.name)}: pass a fixed strength"
        )
    backbone = f"{model.backbone_name}."
    for edit, gate in zip(edits, gates, strict=True):
        others = [name for name in edit.parameters if not name.startswith(backbone)]
        if others and isinstance(gate, FacilitatedTransport):
            raise EditError(
                f"the edit of {quoted(edit.concept())} changes {others[0]}, which its own gate depends on: "
                "pass a fixed strength (--gate none)"
            )
    return model


class Gatekeeper:
    """Compute the gates of J edits for a conditioning, (b, J), strengths multiplied in.

    The concepts are encoded once, on construction. Raises `DataError` if an edit gated by the prompt names no concept
    or a concept without tokens.
    """

    def __init__(
        self,
        model: DiffusionModel,
        concepts: Sequence[Sequence[str]],
        gates: Sequence[Gate],
        strengths: Sequence[float],
    ):
        self.model, device = model, model.device
        fixed = [gate.strength if isinstance(gate, FixedStrength) else 0.0 for gate in gates]
        factor = [gate.factor if isinstance(gate, FacilitatedTransport) else 0.0 for gate in gates]
        floor = [gate.floor if isinstance(gate, FacilitatedTransport) else 0.0 for gate in gates]
        self.floor = torch.tensor(floor, device=device)
        self.fixed, self.factor = (
            torch.tensor(each, device=device) * torch.tensor(strengths, device=device) for each in (fixed, factor)
        )
        reading = [(j, gate) for j, gate in enumerate(gates) if isinstance(gate, FacilitatedTransport)]
        if not all(concepts[j] for j, _ in reading):
            raise DataError("an edit without concepts cannot be gated by the prompt: pass a fixed strength")
        columns = [
            (j, gate, form)
            for j, gate in reading
            for concept in concepts[j]
            for form in (numbers(concept) if gate.floor else (concept,))
        ]
        self.edit = torch.tensor([j for j, _, _ in columns], device=device, dtype=torch.long)
        """Index of the edit that each of the C concepts belongs to, (C,). Gates with a floor read both `numbers`."""
        self.metrics = {
            metric: torch.tensor([metric in gate.metric for _, gate, _ in columns], device=device)
            for metric in ("clipcos", "tokenuni", "allone")
        }
        self._encode([concept for _, _, concept in columns])
        self._last: tuple[tuple[Any, ...], Tensor] | None = None
        """Key of the last call (all that its gates follow from) and its gates."""
        self._spoken: deque[tuple[Tensor, Tensor]] = deque(maxlen=REMEMBERED)
        """Token ids (m, n) and the first text encoder's prompt embeddings (m, n, width), newest last."""

    @torch.no_grad()
    def _encode(self, concepts: Sequence[str]) -> None:
        """Store unit vectors (C, n width) and distinct token ids (C, k); the padding is not a token id."""
        if not concepts:
            return
        found, special = self.model.encode(concepts), self.model.text[0].special
        self.special = torch.tensor(sorted(special), device=self.model.device)
        assert found.tokens is not None, "encoded from prompts"
        self.vectors = F.normalize(found.sequence.flatten(1), dim=1)
        words = [sorted(set(ids) - special) for ids in found.tokens.tolist()]
        for concept, ids in zip(concepts, words, strict=True):
            if not ids:
                raise DataError(
                    f"the concept {quoted(concept)} has no tokens, so it cannot be gated: pass a fixed strength"
                )
        self.counts = torch.tensor([len(ids) for ids in words], device=self.model.device)
        rows = [torch.tensor(ids) for ids in words]
        self.words = torch.nn.utils.rnn.pad_sequence(rows, True, UNEXPLAINED - 1).to(self.model.device)

    def __call__(self, conditioning: Conditioning) -> Tensor:
        """The gates (b, J), with gradients to the embeddings if gradients are enabled."""
        conditioning, b = conditioning.gating(), len(conditioning)
        if not len(self.edit):
            return self.fixed.repeat(b, 1)
        likeness = {
            "clipcos": lambda: F.normalize(full(conditioning.sequence).flatten(1), dim=1) @ self.vectors.T,
            "tokenuni": lambda: self._shared(conditioning),
            "allone": lambda: self.factor.new_ones(b, len(self.edit)),
        }
        scores = self.factor.new_full((b, len(self.edit)), -torch.inf)
        for metric, columns in self.metrics.items():
            if columns.any():
                scores = torch.where(columns, torch.maximum(scores, likeness[metric]()), scores)
        best = scores.new_zeros(b, len(self.fixed)).scatter_reduce(
            1, self.edit.expand(b, -1), scores, "amax", include_self=False
        )
        floor = self.floor * self._explained(conditioning)
        return self.fixed + self.factor * torch.where(floor > 0, torch.relu(best - floor) / (1 - floor), best)

    @staticmethod
    def _explained(conditioning: Conditioning) -> Tensor | float:
        """(b, 1): 1 for rows of known prompts, else 0. Others may name the concept all the same: no floor for them."""
        tokens = conditioning.tokens
        return 0.0 if tokens is None else (tokens != UNEXPLAINED).any(1, keepdim=True).float()

    def _shared(self, conditioning: Conditioning) -> Tensor:
        """|T(c) & T(p)| / |T(c)| on sets of token ids, (b, C); 0 for a row that comes from no prompt."""
        if conditioning.tokens is None:
            return self.factor.new_zeros(len(conditioning), len(self.counts))
        held = (conditioning.tokens[:, None, None, :] == self.words[None, :, :, None]).any(-1)
        return held.sum(-1) / self.counts

    @contextmanager
    def watching(self, membrane: Membrane) -> Iterator[None]:
        """Set ``membrane.gates`` from the prompts before each call of the backbone inside the block."""

        def before_backbone(_: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
            given = self.model.given
            conditioning = given or Conditioning(self.model.conditioning_of(args, options))
            pairs, key = self._halves(args[0] if args else options["sample"], given), _key(conditioning)
            key = key and (*key, pairs, given is None)
            if key is None or self._last is None or not _same(key, self._last[0]):
                if given is None:
                    conditioning = replace(conditioning, tokens=self._token_ids(conditioning.sequence))
                if pairs:
                    conditioning = Conditioning.cat(
                        [conditioning[:pairs].guiding(conditioning[pairs:]), conditioning[pairs:]]
                    )
                membrane.gates = gates = self(conditioning)
                # Gradients need new gates each time; so do embeddings without a version.
                self._last = None if key is None else (key, gates)

        def after_text(_: Any, args: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> None:
            ids = options.get("input_ids", args[0] if args else None)
            if self.model.text[0].soft:
                return
            try:
                states = self.model.prompt_embedding(0, output)
            except (AttributeError, TypeError, IndexError):  # this call returned no hidden states
                return
            if ids is not None:
                self._spoken.append((ids, states.detach()))

        handles = [
            self.model.backbone.register_forward_pre_hook(before_backbone, with_kwargs=True),
            self.model.text[0].module.register_forward_hook(after_text, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _halves(self, x: Tensor, given: Conditioning | None) -> int:
        """Return the rows of the unconditional half if a call with latents ``x`` holds both halves of guidance, else 0.

        Both halves have the same latents. Two prompts may also be compared at the same latents, so the pipeline must
        say that it guides. In calls of `DiffusionModel.predict` the first half must have empty prompts.
        """
        half, odd = divmod(len(x), 2)
        if odd or not half or (given is not None and given.gate_sequence is not None):
            return 0
        guides = self._empty(given[:half]) if given is not None else self._pipeline_guides()
        return half if guides and torch.equal(x[:half], x[half:]) else 0

    def _pipeline_guides(self) -> bool:
        try:
            return bool(self.model.pipeline.do_classifier_free_guidance)
        except AttributeError:  # it was not called yet
            return False

    def _empty(self, conditioning: Conditioning) -> bool:
        return conditioning.tokens is not None and bool(torch.isin(conditioning.tokens, self.special).all())

    def _token_ids(self, states: Tensor) -> Tensor:
        """Token ids (b, n) of ``states``; `UNEXPLAINED` for rows that no remembered text encoder call returned."""
        n = states.shape[1]
        tokens = torch.full((len(states), n), UNEXPLAINED, device=states.device)
        for row, state in enumerate(states.detach()):
            for ids, known in reversed(self._spoken):
                if known.shape[1] != n:
                    continue
                difference = (known.float() - state[None, :, : known.shape[2]].float()).abs().amax((1, 2))
                if float(difference.min()) <= SAME * float(state.abs().max()):
                    tokens[row] = ids[int(difference.argmin())]
                    break
        return tokens


def _key(conditioning: Conditioning) -> tuple[Any, ...] | None:
    """All that gates follow from; None if they are computed anew each time (gradients, tensors without a version)."""
    parts = (conditioning.sequence, conditioning.tokens, conditioning.gate_sequence, conditioning.gate_tokens)
    if any(part is not None and (part.requires_grad or part.is_inference()) for part in parts):
        return None
    return (*parts, *(None if part is None else part._version for part in parts))


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Tensors by identity, numbers by value."""
    return all(x is y if isinstance(x, Tensor | None) else x == y for x, y in zip(a, b, strict=True))


HIGHEST_FLOOR = 0.99
"""Prompts that are more similar to a concept than this pass some of the edit in any case."""


@torch.no_grad()
def closed_to(
    prompts: Sequence[str],
    gates: Sequence[FacilitatedTransport],
    model: DiffusionModel,
    concepts: Sequence[Sequence[str]],
) -> list[FacilitatedTransport]:
    """``gates`` of edits of ``concepts``, with floors: ``prompts`` that name no concept of an edit get none of it.

    A prompt names a concept if it has all tokens of one of its `numbers`. No floor falls, or rises above
    `HIGHEST_FLOOR`. Each prompt is encoded once.
    """
    forms = [[form for concept in each for form in numbers(concept)] for each in concepts]

    def keeper(metrics: Sequence[Metric]) -> Gatekeeper:
        return Gatekeeper(model, forms, [FacilitatedTransport(metric=m) for m in metrics], [1.0] * len(gates))

    likeness, shared = keeper([gate.metric for gate in gates]), keeper(["tokenuni"] * len(gates))
    highest = torch.zeros(len(gates), device=model.device)
    for k in range(0, len(prompts), AT_ONCE):
        conditioning = model.encode(prompts[k : k + AT_ONCE])
        unnamed = torch.where(shared(conditioning) < 1, likeness(conditioning), 0)
        highest = torch.maximum(highest, unnamed.amax(0))
    return [
        replace(gate, floor=max(gate.floor, min(found, HIGHEST_FLOOR)))
        for gate, found in zip(gates, highest.tolist(), strict=True)
    ]


def prompt_gates(model: DiffusionModel, edits: Sequence[Edit], gates: Sequence[Gate], prompts: Sequence[str]) -> Tensor:
    """How much of each of J edits passes for each of b prompts, (b, J)."""
    keeper = Gatekeeper(model, [edit.info.concepts for edit in edits], gates, [1.0] * len(edits))
    return keeper(model.encode(prompts)).cpu()
