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
    """

    sequence: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    tokens: Tensor | None = None

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

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of all ``parts``, in order. Rows without tokens among rows with them become `UNEXPLAINED`."""
        known = next((part.tokens for part in parts if part.tokens is not None), None)
        if known is not None:
            parts = [part if part.tokens is not None else part._unexplained(known) for part in parts]
        columns = ([getattr(part, field.name) for part in parts] for field in fields(Conditioning))
        joined: list[Any] = [None if any(p is None for p in column) else torch.cat(column) for column in columns]
        return Conditioning(*joined)

    def _unexplained(self, like: Tensor) -> Conditioning:
        return replace(self, tokens=like.new_full((len(self), like.shape[1]), UNEXPLAINED))
