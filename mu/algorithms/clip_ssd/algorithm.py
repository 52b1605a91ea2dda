"""SSD on a CLIP: shrink weights that are much more important to the concept than to the retain pairs. No training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mu.algorithms.clip_ssd.configs import CONSTANTS, ClipSSDConfig, ClipSSDMethod
from mu.core.errors import EditError
from mu.core.loop import Log
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models.contrastive import Captioned, Objective, batch_gradients
from mu.training.clip_method import TEMPERATURE, ClipErasure
from mu.training.tuning import tuned


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


class ClipSSD(ClipSSDMethod, ClipErasure):
    """The dampening of SSD.

    The importance F is the mean over batches of the squared gradient of a batch's mean loss: F_f of the forget pairs
    (L_f), also of a shorter last batch, F_r of whole batches of the retain pairs (contrastive). Each element theta with
    F_f > alpha F_r becomes

        theta min(1, lambda F_r / F_f)

    and scalars stay unchanged. The released comparison tries lambda = 0.1 .. 5 in ten "epochs", but each epoch
    multiplies the weights that the one before left. Its numbers for lambda = 5 are therefore those of the product of
    all ten factors, of which the first alone is at most 1/100. Here every lambda starts from the base weights;
    ``compat`` gives the product. To check: with F_r / F_f = 0.05, lambda = 5 leaves 0.25 of a weight, ``compat``
    2.4e-11.
    """

    config: ClipSSDConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        """Dampen the selected weights. Raises `EditError` if no weight is selected."""
        self.load_model()
        F_f = self.importances("forget", self.forget_pairs(), self.config.forget_loss, partial=True)
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
        return [c for c in CONSTANTS if c <= last * (1 + 1e-6)] if self.config.compat else [last]

    def importances(
        self, title: str, pairs: Sequence[Captioned], objective: Objective, *, partial: bool = False
    ) -> dict[str, Tensor]:
        """The mean squared gradient of each tensor. Every batch counts the same, with ``partial`` a shorter last one
        too."""
        B, parameters, batches = self.config.batch_size, self.parameters(), 0
        total: dict[str, Tensor] = {}
        with tuned(parameters), progress_bar(f"{title} importances", len(pairs)) as advance:
            for found, n in batch_gradients(
                self.model,
                pairs,
                parameters,
                objective,
                block=B,
                chunk=B,
                partial=partial,
                progress=lambda done, _: advance(done, ""),
            ):
                squared = {name: (g / n).square() for name, g in found.items()}
                total = {name: total[name] + g for name, g in squared.items()} if total else squared
                batches += 1
        return {name: F / batches for name, F in total.items()}
