"""The parts that SPM adds to a diffusion model: a one-dimensional adapter in every layer of the UNet's transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mu.core.errors import ModelError
from mu.edits.edit import EditInfo, described
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Membrane
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
            raise ModelError(f"{base.name!r} has no transformer layers for SPM to adapt: name another model or method")
        self.base = base
        self.edit = LowRankEdit.fresh(layers, rank, alpha or 0.0, generator, info)

    @contextmanager
    def trainable(self) -> Iterator[Membrane]:
        """Put the adapters on the model inside the block; ``membrane.off()`` gives the frozen predictions."""
        membrane = Membrane([self.edit])
        with membrane.installed(self.base):
            yield membrane

    def finished(self) -> LowRankEdit:
        """The edit with the trained LoRA factors, detached, and the fingerprint of the layers it was trained on."""
        info = EditInfo(**{**vars(self.edit.info), **described(self.base, self.edit.parameters)})
        return LowRankEdit.from_tensors(
            {name: tensor.detach().clone() for name, tensor in self.edit.tensors().items()}, info
        )
