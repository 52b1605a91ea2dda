"""Low-rank edits: thin factors beside frozen layers, with a gate that may differ for each sample of a batch.

J edits on one layer are one concatenated factor pair and one vector of gates:

    y = f(x) + U (g * (D x)),   D = [D_1; ...; D_J],   U = [U_1, ..., U_J],   g_j = gate_j * alpha_j / r_j

so K edits cost two thin matrix products for each layer, and different prompts share a batch (g is then (b, R)).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core.errors import EditError, SelectionError
from mu.edits.edit import Edit, EditInfo
from mu.models.parameters import EditableModel, find_module, find_parameter

Arithmetic = Literal["paper", "reference"]
_SHARED = "shared_down"
"""A ``down`` that several layers have in common is kept once, as ``shared_down.0``; ``<layer>.shared_down`` is its number."""


@dataclass
class Factors:
    """``down`` (r, in[, kh, kw]) and ``up`` (out, r[, 1, 1]) of one layer; the shift is ``alpha / r * up @ down``."""

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if min(self.down.dim(), self.up.dim()) < 2 or self.up.shape[1] != len(self.down) or not len(self.down):
            raise EditError(
                f"factors {tuple(self.down.shape)} and {tuple(self.up.shape)} do not fit each other: the file is damaged"
            )

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def dense(self, shape: Sequence[int] | None = None) -> Tensor:
        """The shift as a dense tensor in float32, in ``shape`` where a 1x1 convolution stands for a linear layer."""
        down, up = self.down.detach().float(), self.up.detach().float().flatten(1)
        shift = self.scale * torch.einsum("or,r...->o...", up, down)
        return shift if shape is None else shift.reshape(tuple(shape))


class LowRankEdit(Edit):
    """Factors by parameter name, ``unet....to_q.weight``."""

    def __init__(self, factors: Mapping[str, Factors], info: EditInfo):
        if not factors:
            raise SelectionError("an edit must change at least one layer")
        self.factors = dict(factors)
        self.info = info

    @classmethod
    def fresh(
        cls, modules: Mapping[str, nn.Linear | nn.Conv2d], rank: int, alpha: float, generator: torch.Generator, info: EditInfo
    ) -> LowRankEdit:
        """An edit that is zero and can be trained: ``down`` uniform in +-1/sqrt(fan_in), ``up`` zero.

        ``modules`` go by parameter name; the rank is cut to what a layer can hold.
        """
        factors = {}
        for name, layer in modules.items():
            weight = layer.weight
            r, fan_in = min(rank, weight.shape[0], weight.shape[1]), weight[0].numel()
            down = (torch.rand(r, *weight.shape[1:], generator=generator) * 2 - 1) / math.sqrt(fan_in)
            up = torch.zeros(weight.shape[0], r, *[1] * (weight.dim() - 2))
            down, up = (nn.Parameter(factor.to(weight.device)) for factor in (down, up))
            factors[name] = Factors(down, up, float(alpha or r))
        return cls(factors, info)

    @property
    def parameters(self) -> list[str]:
        return list(self.factors)

    def trainable(self) -> list[Tensor]:
        return [tensor for factors in self.factors.values() for tensor in (factors.down, factors.up)]

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        for name, factors in self.factors.items():
            yield name, factors.dense()

    def tensors(self) -> dict[str, Tensor]:
        named = {}
        owners = Counter(_content(factors.down) for factors in self.factors.values())
        number = {content: k for k, content in enumerate(content for content, count in owners.items() if count > 1)}
        for name, factors in self.factors.items():
            layer = name.removesuffix(".weight")
            k = number.get(_content(factors.down))
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
        """The inverse of `tensors`; a missing alpha means alpha = r. Raises `EditError` for a half pair."""
        factors = {}
        for key, tensor in tensors.items():
            layer, down = key.removesuffix(".lora_down.weight"), tensor
            if layer == key:
                layer = key.removesuffix(f".{_SHARED}")
                if layer == key:
                    continue
                if (place := f"{_SHARED}.{tensor.tolist()}") not in tensors:
                    raise EditError(f"{layer} shares a factor that is not there: the file is damaged")
                down = tensors[place].clone()
            up = tensors.get(f"{layer}.lora_up.weight")
            if up is None:
                raise EditError(f"{layer} has a lora_down and no lora_up: the file is damaged")
            alpha = float(tensors.get(f"{layer}.alpha", 0.0))
            factors[f"{layer}.weight"] = Factors(down, up, alpha or float(len(down)))
        return cls(factors, info)

    def check(self, model: EditableModel) -> None:
        for name, factors in self.factors.items():
            there = tuple(find_parameter(model, name).shape)
            here = (factors.up.shape[0], *factors.down.shape[1:])
            if there[:2] != here[:2] or math.prod(there) != math.prod(here):
                raise EditError(f"{name} is {there} in {model.name!r} and {here} in the edit: another architecture")


def _content(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


class Membrane:
    """Low-rank edits installed on a model by forward hooks; ``gates`` decides how much of each passes.

    ``gates`` is None (off: the low-rank branch is not computed), (J,) or (b, J). A batch that is k times as long as the
    gates (the halves of classifier-free guidance) repeats them k times.
    """

    def __init__(self, edits: Sequence[LowRankEdit], arithmetic: Arithmetic = "paper"):
        self.edits, self.arithmetic = list(edits), arithmetic
        self._gates: Tensor | None = torch.ones(len(edits))
        self._weights: dict[tuple, Tensor] = {}

    @property
    def gates(self) -> Tensor | None:
        return self._gates

    @gates.setter
    def gates(self, gates: Tensor | None) -> None:
        if gates is not None and gates.shape[-1] != len(self.edits):
            raise EditError(f"{len(self.edits)} edits are on, but {gates.shape[-1]} strengths were given")
        self._gates = gates if gates is not None and bool(gates.any()) else None
        self._weights.clear()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The frozen model inside the block."""
        gates, self._gates = self._gates, None
        try:
            yield
        finally:
            self._gates = gates

    @contextmanager
    def installed(self, model: EditableModel) -> Iterator[Membrane]:
        names = dict.fromkeys(name for edit in self.edits for name in edit.factors)
        handles = []
        try:
            for name in names:
                layer = _Layer(self, name, find_parameter(model, name))
                handles.append(find_module(model, name).register_forward_hook(layer))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def weights(self, layout: tuple[tuple[int, int, float], ...], like: Tensor) -> Tensor:
        """g (R,) or (b, R) for a layer whose rows are ``layout``: (edit, rank, scale) each; shared by equal layers."""
        key = (layout, like.device, like.dtype)
        if key not in self._weights:
            assert self._gates is not None, "a membrane that is off has no weights"
            gates = self._gates.to(like)
            parts = [gates[..., j : j + 1].repeat_interleave(rank, -1) * scale for j, rank, scale in layout]
            self._weights[key] = torch.cat(parts, dim=-1)
        return self._weights[key]


class _Layer:
    """The hook of one layer: all edits that reach it, as one factor pair."""

    def __init__(self, membrane: Membrane, name: str, weight: Tensor):
        reach = [(j, edit.factors[name]) for j, edit in enumerate(membrane.edits) if name in edit.factors]
        self.membrane = membrane
        self.layout = tuple((j, factors.rank, factors.scale) for j, factors in reach)

        def side(tensors: list[Tensor], dim: int, shape: list[tuple[int, ...]]) -> Tensor:
            # The very tensor where the shape is right, so that trained factors stay the optimiser's own.
            pairs = zip(tensors, shape, strict=True)
            shaped = [(t if t.shape == s else t.reshape(s)).to(weight.device, torch.float32) for t, s in pairs]
            return shaped[0] if len(shaped) == 1 else torch.cat(shaped, dim)

        self.down = side([f.down for _, f in reach], 0, [(f.rank, *weight.shape[1:]) for _, f in reach])
        up_tail = (1,) * (weight.dim() - 2)
        self.up = side([f.up for _, f in reach], 1, [(weight.shape[0], f.rank, *up_tail) for _, f in reach])

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if self.membrane._gates is None:
            return None
        x = args[0]
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.dtype)
        if isinstance(module, nn.Conv2d):
            h = F.conv2d(x, self.down, None, module.stride, module.padding)
            shift = F.conv2d(self._gated(h, channel=1), self.up)
        else:
            shift = F.linear(self._gated(F.linear(x, self.down), channel=-1), self.up)
        return out + shift.to(out.dtype)

    def _gated(self, h: Tensor, channel: int) -> Tensor:
        g = self.membrane.weights(self.layout, h)
        if g.dim() == 2:
            if len(h) % len(g):
                raise EditError(f"gates for {len(g)} samples do not fit a batch of {len(h)}")
            g = g.repeat(len(h) // len(g), 1)
        shape = [len(g) if g.dim() == 2 else 1, *[1] * (h.dim() - 1)]
        shape[channel] = g.shape[-1]
        g = g.reshape(shape)
        if self.membrane.arithmetic == "paper":
            return h * g
        # The released code sums gamma_j * tensor over up and down alike: (sum_i gamma_i U_i)(sum_j gamma_j D_j) x.
        ranks = {rank for _, rank, _ in self.layout}
        if len(ranks) > 1:
            raise EditError("the reference's arithmetic sums factors, so all edits must have one rank")
        first = self.layout[0][2]
        gamma = g / torch.tensor([s for _, r, s in self.layout for _ in range(r)], device=g.device, dtype=g.dtype).reshape(
            [g.shape[channel] if d == channel % h.dim() else 1 for d in range(h.dim())]
        )
        mixed = sum((h * gamma).split(ranks.pop(), dim=channel))
        return torch.cat([mixed] * len(self.layout), dim=channel) * gamma * first
