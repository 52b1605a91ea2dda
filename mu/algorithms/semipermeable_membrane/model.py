"""The parts that SPM adds to a diffusion model: a one-dimensional adapter in every layer of the UNet's transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from mu.core.errors import ModelError, titled
from mu.edits.edit import EditInfo, described
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors, Membrane
from mu.models.diffusion import DiffusionModel


class SemipermeableMembraneModel:
    """The frozen model with fresh adapters: all linear and convolution layers inside ``Transformer2DModel``.

    On SD 1.x these are 192 layers and 423,936 parameters at rank 1 (0.05 % of the UNet). The text encoder is never
    changed. An adapter is ``y = f(x) + alpha / r * up(down(x))``: the paper's ``Wx + (v_reg^T x) v_sig`` at rank 1 and
    alpha 1, where v_reg is the row of ``down`` and v_sig the column of ``up``. During the search the gate is 1.
    """

    def __init__(
        self, base: DiffusionModel, rank: int, alpha: float | None, generator: torch.Generator, info: EditInfo
    ):
        layers = base.layers("transformer")
        if not layers:
            raise ModelError(
                f"{titled(base.name)} has no transformer layers for SPM to adapt: name another model or method"
            )
        self.base = base
        self.edit = LowRankEdit(fresh(layers, rank, alpha, generator), info)
        self.membrane = Membrane([self.edit])

    @contextmanager
    def trainable(self) -> Iterator[Membrane]:
        """Put the adapters on the model inside the block; ``membrane.off()`` gives the frozen predictions."""
        with self.membrane.installed(self.base):
            yield self.membrane

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """Inside the block, and inside `trainable`, the adapters act as the finished edit will: with its gate."""
        with self.membrane.off(), self.edit.applied(self.base):
            yield

    def finished(self) -> LowRankEdit:
        """The edit with the trained LoRA factors, detached, and the fingerprint of the layers it was trained on."""
        info = EditInfo(**{**vars(self.edit.info), **described(self.base, self.edit.parameters)})
        return LowRankEdit.from_tensors(
            {name: tensor.detach().clone() for name, tensor in self.edit.tensors().items()}, info
        )


def fresh(
    layers: Mapping[str, nn.Linear | nn.Conv2d], rank: int, alpha: float | None, generator: torch.Generator
) -> dict[str, Factors]:
    """Trainable factors whose delta is zero: ``down`` uniform in +-1/sqrt(fan_in), ``up`` zero.

    ``layers`` are keyed by parameter name. The rank is capped at a layer's smaller dimension; no alpha means alpha = r.
    """
    factors = {}
    for name, layer in layers.items():
        weight = layer.weight
        r, fan_in = min(rank, weight.shape[0], weight.shape[1]), weight[0].numel()
        down = (torch.rand(r, *weight.shape[1:], generator=generator) * 2 - 1) / math.sqrt(fan_in)
        up = torch.zeros(weight.shape[0], r, *[1] * (weight.dim() - 2))
        down, up = (nn.Parameter(factor.to(weight.device)) for factor in (down, up))
        factors[name] = Factors(down, up, float(alpha or r))
    return factors
