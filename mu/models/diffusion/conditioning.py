"""The conditioning of a batch of network evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

UNEXPLAINED = -1
"""Stands for the token ids of a row that comes from no prompt."""


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings and all other conditioning, one row for each evaluation.

    ``sequence`` (b, n, width) are the prompt embeddings. ``tokens`` (b, n) are the padded ids that the first text
    encoder read; None or `UNEXPLAINED` for soft prompts. SDXL also has ``pooled`` (b, width) and ``time_ids`` (b, 6).
    ``gate_sequence`` and ``gate_tokens`` belong to the prompt that gates a row, if that is another one: see `guiding`.
    """

    sequence: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    tokens: Tensor | None = None
    gate_sequence: Tensor | None = None
    gate_tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        parts = (getattr(self, field.name) for field in fields(self))
        changed: list[Any] = [None if part is None else change(part) for part in parts]
        return Conditioning(*changed)

    def __getitem__(self, rows: Any) -> Conditioning:
        return self._each(lambda part: part[rows])

    def repeat(self, times: int) -> Conditioning:
        """(a, b) -> (a, b, a, b, ...)."""
        return self._each(lambda part: part.repeat(times, *[1] * (part.dim() - 1)))

    def at(self, time_ids: Tensor | None) -> Conditioning:
        """A copy with ``time_ids`` (6,). Unchanged for None, which models without size conditioning have."""
        if time_ids is None or self.pooled is None:
            return self
        return replace(self, time_ids=time_ids.to(self.pooled.device, self.pooled.dtype).expand(len(self), -1))

    def guiding(self, prompts: Conditioning) -> Conditioning:
        """Return these rows as the unconditional rows of ``prompts``: row i gets the gate of prompt i.

        Semi-Permeable Membranes (Lyu et al., CVPR 2024) use one gate for both halves of classifier-free guidance.
        """
        return replace(self, gate_sequence=prompts.sequence, gate_tokens=prompts.tokens)

    def gating(self) -> Conditioning:
        """Return the prompts that gate the rows."""
        if self.gate_sequence is None:
            return self
        return Conditioning(self.gate_sequence, tokens=self.gate_tokens)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join the rows of ``parts``. If some parts have tokens, those of the others become `UNEXPLAINED`."""
        if any(part.gate_sequence is not None for part in parts):
            parts = [part if part.gate_sequence is not None else part.guiding(part) for part in parts]
        for name in ("tokens", "gate_tokens"):
            known = next((ids for part in parts if (ids := getattr(part, name)) is not None), None)
            if known is not None:
                parts = [part if getattr(part, name) is not None else part._unexplained(name, known) for part in parts]
        columns = ([getattr(part, field.name) for part in parts] for field in fields(Conditioning))
        joined: list[Any] = [None if any(p is None for p in column) else torch.cat(column) for column in columns]
        return Conditioning(*joined)

    def _unexplained(self, name: str, like: Tensor) -> Conditioning:
        found: dict[str, Any] = {name: like.new_full((len(self), like.shape[1]), UNEXPLAINED)}
        return replace(self, **found)
