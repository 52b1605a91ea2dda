"""SSD on a CLIP: weights that matter much more to the concept than to the rest are made smaller. No training."""

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
"""Of the published comparison, one an epoch."""


class ClipSSDConfig(ClipErasureConfig):
    """All settings of SSD. Without a preset they are those of the published comparison's best, which is its first, epoch."""

    data: BothSets = BothSets()
    """Where pairs come from."""
    forget_loss: Objective = "cosine"
    """Whose squared gradients are the concept's importances: the mean of 1 - cos, or (``ssd_o``) the contrastive loss."""
    selection: float = Field(10.0, gt=0)
    """alpha: a weight is dampened where it matters so many times as much to the concept as to the rest. Lower: more weights."""
    dampening: float = Field(0.1, gt=0)
    """lambda: how much is left of such a weight, in units of F_r / F_f. Lower forgets more."""
    compat: bool = False
    """Dampen by each of 0.1, 0.64, ... 5 up to ``dampening``, one on top of the other, as the released program does by epochs."""
    output_dir: str = "outputs/clip-ssd"
    """The run's folder."""

    @model_validator(mode="after")
    def _has_a_first(self) -> Self:
        if self.compat and self.dampening < CONSTANTS[0]:
            raise ValueError(f"compat begins with {CONSTANTS[0]:g}: dampening must be at least that")
        return self


PRESETS: dict[str, ClipSSDConfig] = {
    "clip": ClipSSDConfig(),
    "canvas-clip": ClipSSDConfig.parse({
        "model": "canvas-clip", "data": CANVAS_SETS, "forget_loss": "contrastive", "selection": 5.0,
    }),
}  # fmt: skip


def dampened(f: Tensor, r: Tensor, selection: float, constants: Sequence[float]) -> Tensor:
    """What each weight is multiplied by, from importances ``f`` (to the concept) and ``r`` (to the rest) of its shape.

    prod over c of min(1, c r / f) where f > selection * r, else 1. ``dampened(8, 0.5, 10, [2])`` is 0.125.
    """
    chosen = f > selection * r
    ratio = torch.where(chosen, r, 1) / torch.where(chosen, f, 1)
    factor = torch.ones_like(f)
    for c in constants:
        factor = factor * torch.where(chosen, (c * ratio).clamp(max=1), 1)
    return factor


class ClipSSD(ClipErasure):
    """Selective synaptic dampening: no training, two passes for importances, one multiplication.

    With F = the mean over batches of the squared gradient of a batch's mean loss, of the forget pairs (L_f) and of the
    retain pairs (contrastive), each number theta with F_f > alpha F_r becomes

        theta min(1, lambda F_r / F_f)

    and scalars stay. The released comparison tries lambda = 0.1 .. 5 in ten "epochs", but multiplies what the epoch before has
    left: its numbers for lambda = 5 are those of the product of all ten factors, at most 1/100 of it from the first alone, and not
    of lambda = 5. Here every lambda starts from the untouched weights; ``compat`` gives the product. To check: with F_r / F_f = 0.05,
    lambda = 5 leaves 0.25 of a weight, ``compat`` 2.4e-11.

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
        """`EditError` where no weight matters so much more to the concept."""
        self.load_model()
        F_f = self.importances("forget", self.forget_pairs(), self.config.forget_loss)
        F_r = self.importances("retain", self.retain_pairs(), "contrastive")
        shifts = {}
        for name, theta in self.parameters().items():
            factor = dampened(F_f[name], F_r[name], self.config.selection, self.constants())
            if theta.numel() > 1 and bool((factor < 1).any()):
                shifts[name] = theta.detach().float() * (factor - 1)
        if not set(shifts) - {TEMPERATURE}:
            raise EditError(f"no weight matters {self.config.selection:g} times as much to the concept: lower selection")
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
            ):  # fmt: skip
                squared = {name: (g / n).square() for name, g in found.items()}
                total = {name: total[name] + g for name, g in squared.items()} if total else squared
                batches += 1
        return {name: F / batches for name, F in total.items()}
