"""How much of each edit passes for a prompt: fixed strengths, or facilitated transport (Lyu et al., CVPR 2024, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.errors import ConfigError, DataError
from mu.edits.low_rank import Arithmetic
from mu.models.diffusion import DiffusionModel

Metric = Literal["clipcos", "tokenuni", "clipcos_tokenuni", "allone"]


class Gate(Protocol):
    arithmetic: Arithmetic

    def __call__(self, model: DiffusionModel, prompts: Sequence[str], concepts: Sequence[Sequence[str]]) -> Tensor:
        """(b, J) for ``b`` prompts and the concepts of ``J`` edits."""


@dataclass(frozen=True)
class FacilitatedTransport:
    """gamma_j(p) = factor * max over the edit's concepts c of the larger of two similarities of p and c.

    ``clipcos``: cosine of the flattened text embeddings, padding included. ``tokenuni``: the share of the concept's
    tokens that the prompt holds, as sets. ``allone``: always 1. There is no threshold: unrelated prompts keep a part.

    ``arithmetic="paper"`` is linear in gamma (Eq. 9). ``"reference"`` does as the released code, which multiplies gamma
    into both factors and sums the factors of all files: one edit then acts with gamma squared, several with cross terms.
    Compare the two by ``edit.applied`` at a prompt whose gamma is 0.5: the shift differs by a factor of 2.
    """

    factor: float = 1.0
    metric: Metric = "clipcos_tokenuni"
    arithmetic: Arithmetic = "paper"

    @torch.no_grad()
    def __call__(self, model: DiffusionModel, prompts: Sequence[str], concepts: Sequence[Sequence[str]]) -> Tensor:
        if not all(concepts):
            raise DataError("an edit without concepts cannot be gated by the prompt: give fixed strengths")
        flat = [concept for targets in concepts for concept in targets]
        if self.metric == "allone":
            scores = torch.ones(len(prompts), len(flat))
        else:
            scores = torch.zeros(len(prompts), len(flat))
        if "clipcos" in self.metric:
            scores = global_similarity(model, prompts, flat)
        if "tokenuni" in self.metric:
            scores = torch.maximum(scores, local_similarity(model.towers[0][0], prompts, flat))
        per_edit = scores.split([len(targets) for targets in concepts], dim=1)
        return self.factor * torch.cat([columns.amax(1, keepdim=True) for columns in per_edit], dim=1)


@dataclass(frozen=True)
class FixedStrength:
    """The same strength for every prompt."""

    strength: float = 1.0
    arithmetic: Arithmetic = "paper"

    def __call__(self, model: DiffusionModel, prompts: Sequence[str], concepts: Sequence[Sequence[str]]) -> Tensor:
        return torch.full((len(prompts), len(concepts)), self.strength)


def global_similarity(model: DiffusionModel, prompts: Sequence[str], concepts: Sequence[str]) -> Tensor:
    """Cosine (prompts, concepts) of the text embeddings, all positions as one vector."""
    vectors = F.normalize(model.encode([*prompts, *concepts]).sequence.flatten(1).cpu(), dim=1)
    return vectors[: len(prompts)] @ vectors[len(prompts) :].T


def local_similarity(tokenizer: Any, prompts: Sequence[str], concepts: Sequence[str]) -> Tensor:
    """|T(c) & T(p)| / |T(c)| on sets of token ids without the special ones: (prompts, concepts)."""
    special = set(tokenizer.all_special_ids)
    p, c = ([set(tokenizer(text, verbose=False).input_ids) - special for text in texts] for texts in (prompts, concepts))
    for text, ids in zip(concepts, c, strict=True):
        if not ids:
            raise DataError(f"the concept {text!r} has no tokens: an empty concept cannot be gated")
    return torch.tensor([[len(ids & seen) / len(ids) for ids in c] for seen in p])


_KINDS: dict[str, type[FacilitatedTransport] | type[FixedStrength]] = {
    "facilitated_transport": FacilitatedTransport,
    "fixed": FixedStrength,
}


def gate_to_json(gate: FacilitatedTransport | FixedStrength) -> dict[str, Any]:
    kind = next(name for name, cls in _KINDS.items() if isinstance(gate, cls))
    return {"kind": kind, **asdict(gate)}


def gate_from_json(content: Mapping[str, Any]) -> FacilitatedTransport | FixedStrength:
    """An edit without a stored gate passes in full."""
    if not content:
        return FixedStrength()
    options = dict(content)
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigError(f"unknown gate {kind!r}; choose {' or '.join(_KINDS)}")
    return _KINDS[kind](**options)
