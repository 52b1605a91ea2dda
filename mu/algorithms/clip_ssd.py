"""SSD on a CLIP: shrink weights that are much more important to the concept than to the retain pairs. No training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from mu.core.errors import EditError
from mu.core.loop import Log
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.data.clip_sets import BothSets
from mu.edits.weights import WeightEdit
from mu.models.contrastive import Captioned, Objective, batch_gradients
from mu.training.clip_method import CANVAS_SETS, TEMPERATURE, ClipErasure, ClipErasureConfig
from mu.training.tuning import tuned

CONSTANTS = np.linspace(0.1, 5, 10)
"""The constants of the published comparison, one per epoch."""


class ClipSSDConfig(ClipErasureConfig):
    """All settings of SSD. Defaults: those of the first epoch of the published comparison, which is its best."""

    data: BothSets = BothSets()
    """Source of the pairs."""
    forget_loss: Objective = "cosine"
    """Loss whose squared gradients are the concept's importances: mean of 1 - cos, or (``ssd_o``) the contrastive
    loss."""
    selection: float = Field(10.0, gt=0)
    """alpha: dampen a weight if its importance to the concept is more than this many times its importance to the retain
    pairs. A lower value dampens more weights."""
    dampening: float = Field(0.1, gt=0)
    """lambda: the factor that is left of a dampened weight, in units of F_r / F_f. A lower value forgets more."""
    compat: bool = False
    """Dampen by each of 0.1, 0.64, ... 5 up to ``dampening`` in turn, as the released program does over its epochs. The
    factors multiply."""
    output_dir: str = "outputs/clip-ssd"
    """The run folder."""

    @model_validator(mode="after")
    def _has_a_first(self) -> Self:
        if self.compat and self.dampening < CONSTANTS[0]:
            raise ValueError(f"compat begins with {CONSTANTS[0]:g}: set dampening to at least that")
        return self


PRESETS: dict[str, ClipSSDConfig] = {
    "clip": ClipSSDConfig(),
    "canvas-clip": ClipSSDConfig.parse(
        {
            "model": "canvas-clip",
            "data": CANVAS_SETS,
            "forget_loss": "contrastive",
            "selection": 5.0,
        }
    ),
}


def dampened(f: Tensor, r: Tensor, selection: float, constants: Sequence[float]) -> Tensor:
    """Factor of each weight, from importances ``f`` (to the concept) and ``r`` (to the retain pairs) of its shape.

    The product over c of min(1, c r / f) if f > selection * r, else 1. ``dampened(8, 0.5, 10, [2])`` is 0.125.
    """
    chosen = f > selection * r
    ratio = torch.where(chosen, r, 1) / torch.where(chosen, f, 1)
    factor = torch.ones_like(f)
    for c in constants:
        factor = factor * torch.where(chosen, (c * ratio).clamp(max=1), 1)
    return factor


class ClipSSD(ClipErasure):
    """Selective synaptic dampening: no training, two passes for importances, one multiplication.

    The importance F is the mean over batches of the squared gradient of a batch's mean loss: F_f of the forget pairs
    (L_f), F_r of the retain pairs (contrastive). Each element theta with F_f > alpha F_r becomes

        theta min(1, lambda F_r / F_f)

    and scalars stay unchanged. The released comparison tries lambda = 0.1 .. 5 in ten "epochs", but each epoch
    multiplies the weights that the one before left. Its numbers for lambda = 5 are therefore those of the product of
    all ten factors, of which the first alone is at most 1/100. Here every lambda starts from the base weights;
    ``compat`` gives the product. To check: with F_r / F_f = 0.05, lambda = 5 leaves 0.25 of a weight, ``compat``
    2.4e-11.

    @inproceedings{foster2024fast,
      title     = {Fast Machine Unlearning without Retraining through Selective Synaptic Dampening},
      author    = {Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra},
      booktitle = {AAAI Conference on Artificial Intelligence},
      year      = {2024}
    }
    """

    name = "clip-ssd"
    config_class = ClipSSDConfig
    presets = PRESETS
    config: ClipSSDConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        """Dampen the selected weights. Raises `EditError` if no weight is selected."""
        self.load_model()
        F_f = self.importances("forget", self.forget_pairs(), self.config.forget_loss)
        F_r = self.importances("retain", self.retain_pairs(), "contrastive")
        shifts = {}
        for name, theta in self.parameters().items():
            factor = dampened(F_f[name], F_r[name], self.config.selection, self.constants())
            if theta.numel() > 1 and bool((factor < 1).any()):
                shifts[name] = theta.detach().float() * (factor - 1)
        if not set(shifts) - {TEMPERATURE}:
            raise EditError(
                f"no weight is {self.config.selection:g} times as important to the concept: lower selection"
            )
        return self.edit(shifts)

    def constants(self) -> list[float]:
        last = self.config.dampening
        return [c for c in CONSTANTS.tolist() if c <= last * (1 + 1e-6)] if self.config.compat else [last]

    def importances(self, title: str, pairs: Sequence[Captioned], objective: Objective) -> dict[str, Tensor]:
        B, parameters, batches = self.config.batch_size, self.parameters(), 0
        total: dict[str, Tensor] = {}
        with tuned(parameters), progress_bar(f"{title} importances", len(pairs)) as advance:
            for found, n in batch_gradients(
                self.model, pairs, parameters, objective, block=B, chunk=B, progress=lambda done, _: advance(done, "")
            ):
                squared = {name: (g / n).square() for name, g in found.items()}
                total = {name: total[name] + g for name, g in squared.items()} if total else squared
                batches += 1
        return {name: F / batches for name, F in total.items()}
