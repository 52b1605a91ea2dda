"""Low-rank factors on a model: thin factors parallel to frozen layers, with a gate that may differ for each sample.

J edits on one layer are one concatenated factor pair and one vector of gates:

    y = f(x) + U (g * (D x)),   D = [D_1; ...; D_J],   U = [U_1, ..., U_J],   g_j = gate_j * alpha_j / r_j

So any number of edits costs two thin matrix products per layer, and different prompts share a batch (g is then (b, R)).
Without gradients, in float32, the second product of a linear layer adds to f(x) in place, which passes over the output
once: a hook that came before and keeps the output sees it change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core.errors import EditError
from mu.edits.gates import Arithmetic
from mu.models.parameters import EditableModel, find_module, find_parameter


@dataclass
class Factors:
    """``down`` (r, in[, kh, kw]) and ``up`` (out, r[, 1, 1]) of one layer; the delta is ``alpha / r * up @ down``."""

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if min(self.down.dim(), self.up.dim()) < 2 or self.up.shape[1] != len(self.down) or not len(self.down):
            raise EditError(
                f"factors {tuple(self.down.shape)} and {tuple(self.up.shape)} do not fit each other, "
                "so the file is damaged: copy it again"
            )

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def bound(self) -> float:
        """No number of the delta is larger than this; it may be beyond float32."""
        down, up = (float(factor.detach().abs().max()) if factor.numel() else 0.0 for factor in (self.down, self.up))
        return abs(self.alpha) * down * up

    def dense(self, shape: Sequence[int] | None = None) -> Tensor:
        """The dense delta in float32, reshaped to ``shape`` (a 1x1 convolution can replace a linear layer)."""
        down, up = self.down.detach().float(), self.up.detach().float().flatten(1)
        shift = self.scale * torch.einsum("or,r...->o...", up, down)
        return shift if shape is None else shift.reshape(tuple(shape))


class HasFactors(Protocol):
    @property
    def factors(self) -> Mapping[str, Factors]:
        """The factors of each layer, by the full name of its weight."""


Layout = tuple[tuple[int, int, float], ...]
"""Of a layer: one (edit, rank, scale) for each edit that changes it."""


class Membrane:
    """Low-rank edits installed on a model by forward hooks; ``gates`` sets how much of each edit passes.

    ``gates`` is None (off: the low-rank branch is not computed), (J,) or (b, J). If the batch is k times as long as the
    gates (as with the halves of classifier-free guidance), they repeat k times. Layers whose names do not begin with
    ``gated`` keep the gates that were set before the first call: a text encoder runs before its prompt is known.
    """

    def __init__(self, edits: Sequence[HasFactors], arithmetic: Arithmetic = "paper", gated: str = ""):
        self.edits, self.arithmetic, self.gated = list(edits), arithmetic, gated
        self._gates: Tensor | None = torch.ones(len(edits))
        self._fixed: Tensor | None = None
        self._off = False
        self._weights: dict[tuple, Tensor] = {}
        self._layouts: dict[Layout, Layout] = {}

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
        """Run the frozen model, without the edits, inside the block."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    @contextmanager
    def installed(self, model: EditableModel) -> Iterator[Membrane]:
        names = dict.fromkeys(name for edit in self.edits for name in edit.factors)
        handles, self._fixed = [], self._gates
        try:
            for name in names:
                layer = _Layer(self, name, find_parameter(model, name))
                handles.append(find_module(model, name).register_forward_hook(layer))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def gates_of(self, name: str) -> Tensor | None:
        """The gates, (J,) or (b, J), of the layer ``name``; None if no edit passes there now."""
        if self._off:
            return None
        return self._gates if name.startswith(self.gated) else self._fixed

    def shared(self, layout: Layout) -> Layout:
        """The layout that equals ``layout`` and that all layers of the membrane hold, so that they share their g."""
        return self._layouts.setdefault(layout, layout)

    def weights(self, layout: Layout, gates: Tensor, like: Tensor) -> Tensor:
        """g (R,), or (b, R) for the b samples of ``like``, of a layer whose `shared` layout is ``layout``."""
        key = (id(layout), id(gates), len(like), like.device, like.dtype)
        if key in self._weights:
            return self._weights[key]
        gates = gates.to(like)
        parts = [gates[..., j : j + 1].repeat_interleave(rank, -1) * scale for j, rank, scale in layout]
        found = torch.cat(parts, dim=-1)
        if found.dim() == 2:
            if len(like) % len(found):
                raise EditError(
                    f"gates for {len(found)} samples do not fit a batch of {len(like)}: set gates for this batch"
                )
            found = found.repeat(len(like) // len(found), 1)
        if not torch.is_inference_mode_enabled():  # such a tensor could not be used in a later backward pass
            self._weights[key] = found
        return found


class _Layer:
    """The hook of one layer: all edits that change it, as one factor pair."""

    def __init__(self, membrane: Membrane, name: str, weight: Tensor):
        reach = [(j, edit.factors[name]) for j, edit in enumerate(membrane.edits) if name in edit.factors]
        self.membrane, self.name = membrane, name
        self.layout = membrane.shared(tuple((j, factors.rank, factors.scale) for j, factors in reach))

        def side(tensors: list[Tensor], dim: int, shape: list[tuple[int, ...]]) -> Tensor:
            # Return the same tensor if its shape fits, so that the optimiser's parameters are the ones in use.
            pairs = zip(tensors, shape, strict=True)
            dtype = torch.promote_types(weight.dtype, torch.float32)
            shaped = [(t if t.shape == s else t.reshape(s)).to(weight.device, dtype) for t, s in pairs]
            return shaped[0] if len(shaped) == 1 else torch.cat(shaped, dim)

        self.down = side([f.down for _, f in reach], 0, [(f.rank, *weight.shape[1:]) for _, f in reach])
        up_tail = (1,) * (weight.dim() - 2)
        self.up = side([f.up for _, f in reach], 1, [(weight.shape[0], f.rank, *up_tail) for _, f in reach])

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        gates = self.membrane.gates_of(self.name)
        if gates is None:
            return None
        x = args[0]
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.dtype)
        if isinstance(module, nn.Conv2d):
            h = F.conv2d(x, self.down, None, module.stride, module.padding)
            return out + F.conv2d(self._gated(h, gates, channel=1), self.up).to(out.dtype)
        h = self._gated(F.linear(x, self.down), gates, channel=-1)
        if not torch.is_grad_enabled() and out.is_contiguous() and out.dtype == h.dtype == self.up.dtype:
            out.view(-1, out.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), self.up.T)
            return out
        return out + F.linear(h, self.up).to(out.dtype)

    def _gated(self, h: Tensor, gates: Tensor, channel: int) -> Tensor:
        """Multiply each row of D x, ``h``, by its gate; ``channel`` is the dimension of the rows."""
        g = self.membrane.weights(self.layout, gates, h)
        if self.membrane.arithmetic == "paper":
            return h * _along(g, h, channel)
        return self._as_released(h, _along(g / self._scales(g), h, channel), channel)

    def _scales(self, like: Tensor) -> Tensor:
        """alpha / r of each row, (R,)."""
        return like.new_tensor([scale for _, rank, scale in self.layout for _ in range(rank)])

    def _as_released(self, h: Tensor, gamma: Tensor, channel: int) -> Tensor:
        """Compute (sum_i gamma_i U_i)(sum_j gamma_j D_j) x: the released code sums both factors over all edits."""
        ranks = {rank for _, rank, _ in self.layout}
        if len(ranks) > 1:
            raise EditError(
                "the reference's arithmetic sums factors: apply edits of one rank, or the paper's arithmetic"
            )
        mixed = sum((h * gamma).split(ranks.pop(), dim=channel))
        return torch.cat([mixed] * len(self.layout), dim=channel) * gamma * self.layout[0][2]


def _along(g: Tensor, h: Tensor, channel: int) -> Tensor:
    """Reshape ``g``, (R,) or (b, R), to multiply ``h`` (b, ...) along ``channel``."""
    shape = [len(g) if g.dim() == 2 else 1, *[1] * (h.dim() - 1)]
    shape[channel] = g.shape[-1]
    return g.reshape(shape)
