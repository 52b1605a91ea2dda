"""The direction term of CiE and SepCE and its optimisation (Eq. 27 and 28 of the paper, SRS-ME).

    r(c; theta) = eps(x_t, t, c; theta) - eps(x_t, t, anchor; theta)                       Eq. 27
    L_cor       = mean( r(c; theta0 + D) * r(c; theta0) )                                  Eq. 28
    L           = L_cor + lambda R,   R = 1/M sum_l ||D_l||_1

L_cor starts at mean(r^2) and has no lower bound: early stopping is part of the method. SepCE's calibrated search, whose
probe decides when to stop, trains mean(r^2) / 2 in its place (``train.objective: distance``). Both have the same
gradient at D = 0. To check: with ``correlation`` in its place, `EditInfo.found` has a larger ``strange``.

eps is the backbone's output, as the paper has it. Of a v-prediction model the output is v: there r in eps would be
alpha_t times r in v, so the noisiest levels, where an image's layout is decided, would hardly count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mu.algorithms.separable_concept_erasure.configs import (
    ConceptIrrelevantErasureConfig,
    SeparableConceptErasureConfig,
)
from mu.algorithms.separable_concept_erasure.data_handler import SeparableConceptErasureDataHandler, image_seed
from mu.algorithms.separable_concept_erasure.model import Shift
from mu.core import compute, parallel
from mu.core.loop import Log, train
from mu.edits.edit import Edit
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.calibration import Calibration
from mu.training.diffusion_config import updates
from mu.training.tuning import RunningGradients, Tensors
from mu.training.watch import Watch, relative_rate

FIRST_STOP = 11
"""Index of the first step after which training may stop: at least 12 updates (section 1.4)."""


@dataclass
class States:
    """Noised images of a concept with the frozen model's predictions for them; every field has b rows."""

    x: Tensor
    t: Tensor
    c: Conditioning
    anchor: Conditioning
    e_a: Tensor
    """eps(x_t, t, anchor; theta0)"""
    r: Tensor
    """r(c; theta0)"""

    @staticmethod
    def cat(parts: Sequence[States]) -> States:
        columns: list[Any] = []
        for field in fields(States):
            column = [getattr(part, field.name) for part in parts]
            columns.append(Conditioning.cat(column) if isinstance(column[0], Conditioning) else torch.cat(column))
        return States(*columns)


class NoisedImages:
    """`States` of one concept. The k-th depends only on the seed and k: a resumed run, and every other concept, gets
    the same noise and timestep."""

    def __init__(
        self,
        config: ConceptIrrelevantErasureConfig,
        model: DiffusionModel,
        data: SeparableConceptErasureDataHandler,
        concept: str,
        *,
        held_out: bool = False,
    ):
        self.model, self.seed, self.stored = model, config.seed, config.data.stored_targets
        self.prompts = [(data.encoded(c), data.encoded(a)) for c, a in data.prompts(concept, held_out)]
        self.images = data.images(concept)
        self.period = len(self.prompts) if config.data.folder else config.data.images
        """Number of images after which the prompts repeat; an image from a folder has no prompt of its own."""
        self._kept: dict[int, States] = {}

    @torch.no_grad()
    def batch(self, i: int, size: int) -> States:
        """The states of step ``i``, from the frozen model. It costs two evaluations, or none for stored states."""
        ks = range(i * size, (i + 1) * size)
        if not self.stored:
            return self.predicted(ks)
        ks_stored = [k % self.stored for k in ks]
        if new := [k for k in dict.fromkeys(ks_stored) if k not in self._kept]:
            found = self.predicted(new)
            for row, k in enumerate(new):
                one = slice(row, row + 1)
                self._kept[k] = States(*(getattr(found, field.name)[one] for field in fields(States)))
        return States.cat([self._kept[k] for k in ks_stored])

    def predicted(self, ks: Sequence[int]) -> States:
        x, t = (torch.stack(column) for column in zip(*map(self._noised, ks), strict=True))
        T = len(self.prompts)
        c, anchor = (Conditioning.cat([self.prompts[k % self.period % T][side] for k in ks]) for side in (0, 1))
        e_a, e_c = self.model.predict(torch.cat([x, x]), torch.cat([t, t]), Conditioning.cat([anchor, c])).chunk(2)
        return States(x, t, c, anchor, e_a, e_c - e_a)  # Eq. 27 at theta0

    def _noised(self, k: int) -> tuple[Tensor, Tensor]:
        """x_t (c, h, w) and t: the forward process from the k-th image, t uniform over all timesteps."""
        generator = compute.generator(image_seed(self.seed + 1, k))
        (x_0,) = self.images[k]
        t = torch.randint(len(self.model.alphas_cumprod), (), generator=generator).to(self.model.device)
        noise = torch.randn(x_0.shape, generator=generator).to(self.model.device)
        return self.model.level(t).noised(x_0[None], noise[None])[0], t


def direction(r: Tensor, r_0: Tensor) -> Tensor:
    """L_cor, Eq. 28: the mean of the product over all elements, neither a cosine nor squared."""
    return (r * r_0).mean()


class Momentum:
    """The statistic that decides when to stop: m = L at first, then alpha m + (1 - alpha) L."""

    def __init__(self, alpha: float):
        self.alpha = alpha
        self.value: Tensor | None = None

    def add(self, L: Tensor) -> None:
        L = L.detach()
        self.value = L if self.value is None else self.alpha * self.value + (1 - self.alpha) * L

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class SeparableConceptErasureTrainer:
    """Trains one delta against the direction term of ``concepts``: one for SepCE, any number for CiE.

    With ``anchor_moves`` (CiE), r uses the trained model's prediction for the anchor. Without it (SepCE), r uses the
    frozen model's: the delta is null on the anchor's prompt, so the two are equal, and one evaluation with gradient is
    saved (section 6.4). If anchors are not protected (``template_anchor``), r is thus relative to the frozen
    prediction. UNet calls per step: 2 samples without gradient (none with stored targets), and with gradient 1 (SepCE)
    or 2 (CiE).
    """

    HELD_OUT_STATES = 32
    HELD_OUT_EVERY = 10

    def __init__(
        self,
        config: ConceptIrrelevantErasureConfig,
        model: DiffusionModel,
        data: SeparableConceptErasureDataHandler,
        shift: Shift,
        concepts: Sequence[str],
        *,
        anchor_moves: bool,
    ):
        self.config, self.model, self.shift, self.anchor_moves = config, model, shift, anchor_moves
        self.images = [NoisedImages(config, model, data, concept) for concept in concepts]
        self.momentum = Momentum(config.train.momentum)
        self.held_out: list[NoisedImages] = []
        if config.train.stop == "held_out":
            self.held_out = [NoisedImages(config, model, data, concept, held_out=True) for concept in concepts]
        self.curve: Sequence[Mapping[str, float]] = ()
        """The probe's readings during a calibrated search."""
        self._seen: list[States] = []
        self._drawn: list[Tensor] = []
        self.done = 0
        self.sentences, self.towards_anchor = 0.0, False
        if isinstance(config, SeparableConceptErasureConfig):
            self.sentences, self.towards_anchor = config.protect.sentences, config.train.objective == "distance"

    def train(
        self,
        title: str,
        *,
        checkpoint: Path | None = None,
        log: Log | None = None,
        stop: Callable[[int], bool] | None = None,
        calibrations: Sequence[Calibration] = (),
    ) -> None:
        """Optimise the delta in place; it must be installed.

        ``stop`` replaces the stopping rule of the settings, and so do ``calibrations``, one for each concept.
        """
        settings, weights = self.config.train, self.shift.weights
        calibrate = self.config.calibrate
        rate = relative_rate(self.shift.scale(), calibrate.rate) if calibrate.on else settings.lr
        optimizer = torch.optim.Adam(weights, lr=rate, eps=settings.adam_eps)
        state: dict[str, Any] = {"weights": Tensors(weights), "momentum": self.momentum}
        watch = Watch(calibrations, optimizer, weights, self.shift.as_used) if calibrations else None
        if watch:
            state["watch"] = stop = watch
        if settings.gradients == "summed":
            state["gradients"] = RunningGradients(optimizer)
        scaler = torch.amp.GradScaler(self.model.device.type, enabled=self.model.precision == torch.float16)
        train(
            self.step,
            optimizer,
            updates(settings.iterations, settings.counting),
            generator=compute.generator(self.config.seed),
            draws=settings.draws or 1,
            state=state,
            scaler=scaler,
            after_step=self.note,
            stop=stop or self.stop,
            checkpoint=checkpoint,
            checkpoint_every=settings.checkpoint_every,
            title=title,
            log=log,
        )
        if watch:
            watch.keep_best()
            self.curve = watch.curve

    def step(self, i: int) -> dict[str, Tensor]:
        """The losses of one step, with gradients to the delta."""
        size, lambda_ = self.config.train.batch_size, self.config.train.regulariser
        with self.shift.frozen():
            states = [images.batch(i, size) for images in self.images]
        r = [self.r(each) for each in states]
        L_cor = balanced([direction(own, each.r) for own, each in zip(r, states, strict=True)])
        L = balanced([direction(own, own) / 2 for own in r]) if self.towards_anchor else L_cor
        with torch.set_grad_enabled(lambda_ > 0):  # without lambda it is only for the log
            R = self.shift.norm()
        self._drawn.append(L_cor.detach())
        losses = {"loss": L + lambda_ * R, "correlation": L_cor, "norm": R}
        if (moved := self.shift.moved()) is not None:
            losses |= {"loss": losses["loss"] + self.sentences * moved, "sentences": moved}
        return losses

    def note(self, i: int) -> None:
        """Take the mean correlation of the draws of update ``i`` into the statistic."""
        self.momentum.add(parallel.mean(torch.stack(self._drawn).mean()))
        self._drawn.clear()
        self.done = i + 1

    def r(self, states: States) -> Tensor:
        """r(c; theta0 + D), Eq. 27."""
        if not self.anchor_moves:
            return self.model.predict(states.x, states.t, states.c) - states.e_a
        both = Conditioning.cat([states.anchor, states.c])
        e_a, e_c = self.model.predict(torch.cat([states.x] * 2), torch.cat([states.t] * 2), both).chunk(2)
        return e_c - e_a

    def stop(self, i: int) -> bool:
        """Whether to stop after the update of step ``i``."""
        settings = self.config.train
        if i < FIRST_STOP or settings.stop == "steps":
            return False
        gone = self.momentum.value is not None and bool(self.momentum.value < settings.threshold)
        if settings.stop == "correlation" or not gone:
            return gone
        return i % self.HELD_OUT_EVERY == 0 and self.held_out_left() < settings.left

    def held_out_left(self) -> float:
        """L_cor of the held-out templates as a share of the frozen model's, mean(r^2), on fixed noised images.

        The mean over concepts.
        """
        with self.shift.frozen():
            self._seen = self._seen or [images.predicted(range(self.HELD_OUT_STATES)) for images in self.held_out]
        with torch.no_grad():
            found = torch.stack(
                [direction(self.r(states), states.r) / states.r.square().mean() for states in self._seen]
            )
        return float(found.mean())


class Effect:
    """The drop of a concept's correlation by its delta: mean(r_0^2) - L_cor, on fixed noised images."""

    def __init__(
        self, trainer: SeparableConceptErasureTrainer, count: int = SeparableConceptErasureTrainer.HELD_OUT_STATES
    ):
        (images,) = trainer.images
        self.trainer, self.states = trainer, images.predicted(range(count))

    @torch.no_grad()
    def now(self) -> float:
        """The effect of the edits that are on the model."""
        return float(self.states.r.square().mean() - direction(self.trainer.r(self.states), self.states.r))

    def of(self, edit: Edit) -> float:
        with edit.applied(self.trainer.model):
            return self.now()


def balanced(losses: Sequence[Tensor]) -> Tensor:
    """The sum of eta_i L_i; of one loss, itself."""
    if len(losses) == 1:
        return losses[0]
    return torch.stack([eta * each for eta, each in zip(scales(losses), losses, strict=True)]).sum()


def scales(losses: Sequence[Tensor]) -> list[Tensor]:
    """Constants eta_i = |max_k L_k| / |L_i| that balance several concepts in one delta (section 2.6)."""
    values = torch.stack([loss.detach() for loss in losses])
    return list(values.max().abs() / values.abs().clamp_min(torch.finfo(values.dtype).tiny))
