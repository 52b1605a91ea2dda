"""What a batch of network evaluations is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

UNEXPLAINED = -1
"""In place of token ids: no prompt explains this row."""


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings and what goes with them, one row for each evaluation.

    ``sequence`` (b, n, width). ``tokens`` (b, n): the ids that the first text encoder read, padded; None or `UNEXPLAINED` where
    the embeddings come from no prompt, as soft prompts do. For SDXL also ``pooled`` (b, width) and ``time_ids`` (b, 6).
    ``gate_sequence`` and ``gate_tokens`` are those of the prompt that gates the row, if it is not its own: see `guiding`.
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
        """The same with ``time_ids`` (6,); unchanged for None, as models without size conditioning have it."""
        if time_ids is None or self.pooled is None:
            return self
        return replace(self, time_ids=time_ids.to(self.pooled.device, self.pooled.dtype).expand(len(self), -1))

    def guiding(self, prompts: Conditioning) -> Conditioning:
        """These rows as the unconditional ones of ``prompts``: a gated edit passes for them as for the prompt beside each.

        So it is in Semi-Permeable Membranes (Lyu et al., CVPR 2024): one gate for both halves of classifier-free guidance.
        """
        return replace(self, gate_sequence=prompts.sequence, gate_tokens=prompts.tokens)

    def gating(self) -> Conditioning:
        """The prompts by which the rows are gated."""
        if self.gate_sequence is None:
            return self
        return Conditioning(self.gate_sequence, tokens=self.gate_tokens)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of all ``parts``, in order. Rows without tokens among rows with them become `UNEXPLAINED`."""
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
