"""Low-rank edits: a pair of thin factors for each layer that they change, with a gate that reads the prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from mu.core.errors import EditError, SelectionError, titled
from mu.edits.edit import Edit, EditInfo
from mu.edits.gatekeeper import gated
from mu.edits.gates import Gate
from mu.edits.membrane import Factors, Membrane
from mu.models.parameters import EditableModel, find_parameter

_SHARED = "shared_down"
"""Prefix of a ``down`` that several layers share, saved once as ``shared_down.0``.

``<layer>.shared_down`` holds its number.
"""


class LowRankEdit(Edit):
    """An edit of LoRA factors, by parameter name: ``unet....to_q.weight``."""

    kind: ClassVar[str] = "low_rank"

    def __init__(self, factors: Mapping[str, Factors], info: EditInfo):
        if not factors:
            raise SelectionError("an edit must change at least one layer")
        self.factors = dict(factors)
        self.info = info

    @property
    def gate(self) -> Gate:
        return self.info.gate

    @property
    def parameters(self) -> list[str]:
        return list(self.factors)

    def trainable(self) -> list[Tensor]:
        return [tensor for factors in self.factors.values() for tensor in (factors.down, factors.up)]

    def delta(self, parameter: str) -> Tensor:
        return self.factors[parameter].dense()

    def tensors(self) -> dict[str, Tensor]:
        named = {}
        owners = Counter(content(factors.down) for factors in self.factors.values())
        number = {content: k for k, content in enumerate(content for content, count in owners.items() if count > 1)}
        for name, factors in self.factors.items():
            layer = name.removesuffix(".weight")
            k = number.get(content(factors.down))
            if k is None:
                named[f"{layer}.lora_down.weight"] = factors.down.detach()
            else:
                named.setdefault(f"{_SHARED}.{k}", factors.down.detach())
                named[f"{layer}.{_SHARED}"] = torch.tensor(k)
            named[f"{layer}.lora_up.weight"] = factors.up.detach()
            named[f"{layer}.alpha"] = torch.tensor(factors.alpha, dtype=torch.float64)
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], info: EditInfo) -> LowRankEdit:
        """The inverse of `tensors`. A missing alpha means alpha = r. Raises `EditError` if one factor is missing."""
        factors = {}
        for key, tensor in tensors.items():
            layer, down = key.removesuffix(".lora_down.weight"), tensor
            if layer == key:
                layer = key.removesuffix(f".{_SHARED}")
                if layer == key:
                    continue
                if (place := f"{_SHARED}.{tensor.tolist()}") not in tensors:
                    raise EditError(f"the shared factor of {layer} is missing, so the file is damaged: copy it again")
                down = tensors[place].clone()
            up = tensors.get(f"{layer}.lora_up.weight")
            if up is None:
                raise EditError(f"{layer} has a lora_down but no lora_up, so the file is damaged: copy it again")
            alpha = torch.as_tensor(tensors.get(f"{layer}.alpha", 0.0))
            if alpha.numel() != 1:
                raise EditError(f"the alpha of {layer} is not one number, so the file is damaged: copy it again")
            rank = down.shape[0] if down.dim() else 0
            factors[f"{layer}.weight"] = Factors(down, up, float(alpha) or float(rank))
        return cls(factors, info)

    def scaled(self, strength: float) -> Self:
        return type(self)({name: replace(f, up=f.up * strength) for name, f in self.factors.items()}, self.info)

    @contextmanager
    def put_on(self, model: EditableModel, strength: float) -> Iterator[Membrane | None]:
        with gated(model, [self], [strength], [self.gate]) as membrane:
            yield membrane

    def check(self, model: EditableModel) -> None:
        for name, factors in self.factors.items():
            there = tuple(find_parameter(model, name).shape)
            here = (factors.up.shape[0], *factors.down.shape[1:])
            if there[:2] != here[:2] or math.prod(there) != math.prod(here):
                raise EditError(
                    f"{name} is {there} in {titled(model.name)} but {here} in the edit: use a model of the "
                    "edit's architecture"
                )


def content(tensor: Tensor) -> tuple[Any, ...]:
    """What two equal tensors have in common, as a key."""
    return tensor.dtype, tensor.shape, tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
