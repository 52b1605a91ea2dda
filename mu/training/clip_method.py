"""Loading and training shared by methods that erase concepts by training all weights of a CLIP.

SLUG (arXiv 2407.11867) is compared with these methods. They train as its released code does: AdamW, a cosine schedule
without warmup, and one whole pass over each set in every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mu.core import compute, loop
from mu.core.errors import ConfigError, DataError, titled
from mu.core.run import RunDirectory
from mu.data.clip_sets import forget_pairs, retain_pairs
from mu.data.pairs import Captioned
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.clip import ClipModel
from mu.models.contrastive import losses
from mu.models.parameters import select
from mu.training.clip_config import TrainConfig
from mu.training.tuning import tuned
from mu.training.weight_method import Erasure

SetName = Literal["forget", "retain"]

TEMPERATURE = "logit_scale"
"""Trained with the towers, whose gradients depend on it. Not in the edit: no feature or ranking depends on it."""
LARGEST_TEMPERATURE = math.log(100)


class Step(NamedTuple):
    """The ``batch``-th step on one set in an epoch."""

    of: SetName
    epoch: int
    batch: int


def plan(batches: Mapping[SetName, int], epochs: int) -> list[Step]:
    """Return every step of a training: in each epoch one whole pass over each set, in the given order."""
    return [Step(name, epoch, k) for epoch in range(epochs) for name, n in batches.items() for k in range(n)]


def forget_batches(pairs: Sequence[Captioned], size: int) -> int:
    """Number of batches that hold all pairs, in the order of the set; the last one may be small."""
    return -(-len(pairs) // size)


def retain_order(n: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """Indices (batches, size) of one epoch: n pairs shuffled, the last batch filled up from the start.

    Raises `DataError` for n < size.
    """
    if n < size:
        raise DataError(f"{n} retain pairs do not fill a batch of {size}: give more pairs or a smaller batch_size")
    order = np.random.default_rng((seed, epoch)).permutation(n)
    return np.resize(order, (-(-n // size), size))


def half_cosine(done: int, total: int) -> float:
    """1 at the start, 0 from ``total`` on."""
    return 0.5 * (1 + math.cos(math.pi * min(done / total, 1)))


def new_optimizer(parameters: Mapping[str, nn.Parameter], settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW with CLIP's settings; tensors with fewer than two dimensions have no weight decay.

    The released code exempts the same tensors, by name.
    """
    groups = [
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": settings.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6)


class ClipErasure(Erasure):
    """A method with a `ClipErasureConfig` whose edit is a `WeightEdit` of both towers and projections of a CLIP."""

    def load_model(self) -> ClipModel:
        """Return the given model, or load the one that the settings name. Raises `ConfigError` if it is not a CLIP."""
        if self.model is None:
            self.model = load(self.config.model, device=self.config.devices)
        if not isinstance(self.model, ClipModel):
            raise ConfigError(f"{self.name} trains both towers of a CLIP, and {titled(self.model.name)} is not a CLIP")
        self.model.check_concepts(self.concepts())
        return self.model

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the model, including the temperature."""
        return {TEMPERATURE: self.model.model.logit_scale, **select(self.model, "*")}

    def forget_pairs(self) -> list[Captioned]:
        return [pair for c in self.config.concepts for pair in forget_pairs(self.config.data, c, self.config.seed)]

    def retain_pairs(self) -> Sequence[Captioned]:
        return retain_pairs(self.config.data, self.config.seed)

    def train(
        self,
        sets: Mapping[SetName, Sequence[Captioned]],
        run: RunDirectory | None,
        log: loop.Log | None,
        *,
        schedule_pairs: int | None = None,
        mask: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Train on ``sets`` and return the deltas: up on L_f ("forget"), down on the contrastive loss ("retain").

        The rate falls over the steps that the retain pairs take in all epochs (without any: ``schedule_pairs`` pairs).
        As in the released code, each set counts its own steps: a forget set smaller than the retain set ends with a
        rate above 0. ``mask`` (0 or 1) multiplies only the gradients: weight decay changes all weights.
        """
        config, settings, B = self.config, self.config.train, self.config.batch_size
        orders = (
            [retain_order(len(sets["retain"]), B, config.seed, e) for e in range(settings.epochs)]
            if "retain" in sets
            else []
        )
        batches = {
            name: len(orders[0]) if name == "retain" else forget_batches(pairs, B) for name, pairs in sets.items()
        }
        steps = plan(batches, settings.epochs)
        total = settings.epochs * (len(orders[0]) if orders else -(-(schedule_pairs or len(sets["forget"])) // B))
        parameters = self.parameters()

        def rate(i: int) -> float:
            of, epoch, k = steps[min(i, len(steps) - 1)]
            return half_cosine(batches[of] * epoch + k, total)

        def step(i: int) -> dict[str, Tensor]:
            of, epoch, k = steps[i]
            if of == "retain":
                loss = losses(self.model, [sets[of][int(j)] for j in orders[epoch][k]], "contrastive", B).mean()
                return {"loss": loss, of: loss}
            batch = sets[of][k * B : (k + 1) * B]
            loss = losses(self.model, batch, config.forget_loss, len(batch)).mean()
            return {"loss": -loss, of: loss}

        def clamp(_: int) -> None:
            parameters[TEMPERATURE].data.clamp_(0, LARGEST_TEMPERATURE)

        with tuned(parameters) as tuning:
            optimizer = new_optimizer(parameters, settings)
            if mask is not None:
                optimizer.register_step_pre_hook(_masking(parameters, mask))
            loop.train(
                step, optimizer, len(steps), generator=compute.generator(config.seed), state={"weights": tuning},
                schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, rate), after_step=clamp,
                checkpoint=run.checkpoints / "training.pt" if run else None, checkpoint_every=settings.checkpoint_every,
                title=self.name, log=log,
            )  # fmt: skip
            return tuning.shifts()

    def edit(self, shifts: Mapping[str, Tensor], concepts: Sequence[str] | None = None, **facts: Any) -> WeightEdit:
        """Make the edit, without the temperature's delta."""
        kept = {name: shift.cpu() for name, shift in shifts.items() if name != TEMPERATURE}
        return super().edit(kept, concepts, **facts)


def _masking(parameters: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor]) -> Callable[..., None]:
    def apply(*_: Any) -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.mul_(mask[name])

    return apply
