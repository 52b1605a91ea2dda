"""Loading and training shared by methods that erase concepts by changing weights of a diffusion model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core import compute, loop, parallel
from mu.core.errors import ConfigError, titled
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models import load_diffusion
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.calibration import Calibration, settled
from mu.training.closed_form import anchored, kept_texts, rows
from mu.training.diffusion_config import given_anchors, updates
from mu.training.kept_directions import LONGER, Shortened, shortening
from mu.training.kept_images import KeptImages
from mu.training.tuning import RunningGradients, Tuning, tuned
from mu.training.watch import Watch, relative_rate
from mu.training.weight_method import Erasure

Step = Callable[[Tuning, int, torch.Generator], Mapping[str, Tensor]]
"""``step(tuning, i, generator)``: the losses of step i, including ``"loss"``. ``generator`` is its only randomness."""

log = logging.getLogger("mu")

RETAINED = 3
"""Prompts of what should stay, at each step of a calibrated search: as many at latents of the step, and on the way to
their own images."""


class WeightErasure(Erasure):
    """A method with a `DiffusionConfig` whose edit is a `WeightEdit` of a diffusion model."""

    calibrations: Sequence[Calibration] = ()
    kept_images: Sequence[KeptImages] = ()
    """In a calibrated search that keeps predictions: the images of each concept's surroundings."""
    watch: Watch | None = None
    """In a calibrated search: what its probes decide."""

    def load_model(self) -> DiffusionModel:
        """Return the given model, or load the one that the settings name.

        Raises `ConfigError` for settings that contradict a given model, except ``devices``, which logs a warning.
        """
        config = self.config
        if self.model is None:
            self.model = load_diffusion(
                config.model, device=config.devices, precision=config.train.precision, **config.loading.model_dump()
            )
        elif not isinstance(self.model, DiffusionModel):
            raise ConfigError(
                f"{self.name} edits diffusion models, and {titled(self.model.name)} is not a diffusion model"
            )
        else:
            config.loading.check(self.model)
            set_, train_set = config.model_fields_set, config.train.model_fields_set
            check_placed(
                self.model,
                config.devices if "devices" in set_ else None,
                config.train.precision if "precision" in train_set else None,
            )
        self.model.check_concepts(self.concepts())
        return self.model

    def train(
        self, parameters: Mapping[str, nn.Parameter], step: Step, run: RunDirectory | None, log: loop.Log | None
    ) -> dict[str, Tensor]:
        """Run Adam on ``parameters`` and return their deltas; the model itself is left unchanged.

        A calibrated search starts at its own rate and ends by its probes (`mu.training.watch`). If it trains keys and
        values alone, it shortens steps along what kept prompts use (`mu.training.kept_directions`).
        """
        settings, model, generator = self.config.train, self.model, compute.generator(self.config.seed)
        short = bool(self.calibrations) and self.shortens(parameters)
        with tuned(parameters) as tuning:
            rate = settings.lr
            if self.calibrations:
                rate = relative_rate(tuning.tensors, self.config.calibrate.rate) * (LONGER if short else 1)
            optimizer = adam(parameters.values(), rate, settings.weight_decay)
            if short:
                P = parallel.from_first(lambda: shortening(rows(model, kept_texts(self.calibrations))))
                Shortened(optimizer, tuning.tensors, P.to(tuning.tensors[0]))
            state: dict[str, loop.Stateful] = {"weights": tuning}
            watch = self.watch = Watch(self.calibrations, optimizer, tuning.tensors) if self.calibrations else None
            if watch:
                state["watch"] = watch
            if settings.gradients == "summed":
                state["gradients"] = RunningGradients(optimizer)
            loop.train(
                lambda i: step(tuning, i, generator), optimizer,
                updates(settings.iterations, settings.counting), generator=generator, state=state,
                draws=settings.draws or 1, max_grad_norm=settings.max_grad_norm, stop=watch,
                scaler=torch.amp.GradScaler(model.device.type, enabled=model.precision == torch.float16),
                checkpoint=run.checkpoints / "training.pt" if run else None, checkpoint_every=settings.checkpoint_every,
                title=self.name, log=log,
            )  # fmt: skip
            if watch:
                watch.keep_best()
            return tuning.shifts()

    def shortens(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether all of ``parameters`` read prompt embeddings."""
        return parameters.keys() <= (self.model.parameters("text-keys") | self.model.parameters("text-values")).keys()

    def calibrate(self, model: DiffusionModel, *, retained: bool = False) -> None:
        """With ``calibrate.on``, measure each concept's surroundings; `train` and `finished` then go by the probes.

        Anchors that the user gave are taken. With ``retained``, also make the images that `with_retained` needs.
        """
        if self.config.calibrate.on:
            self.calibrations = Calibration.of_each(model, self.config.concepts, self.config.calibrate)
            if "anchors" not in self.config.idle():  # unless the objective needs none
                anchored(model, self.calibrations, given_anchors(self.config))
            self.kept_images = [KeptImages(model, each.kept) for each in self.calibrations if retained]

    def pairs(self) -> list[list[tuple[str, str]]]:
        """For each concept, the prompts with it and with its anchor: the settings' own, or those of the model."""
        if not self.calibrations:
            return self.config.pairs()
        return [each.pairs() for each in self.calibrations]

    def with_retained(
        self, losses: dict[str, Tensor], tuning: Tuning, x: Tensor, t: Tensor | int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``losses``, in a calibrated search with that of what should stay: ``calibrate.weight`` times ``retained``.

        ``retained`` is the mean squared change of the backbone's output for drawn prompts: at ``x`` (b, c, h, w) of the
        step, which shows the concept, and at latents on the way to images of what should stay. The published methods
        have no such term or another one; SPM's latent anchoring is its model (Lyu et al., Eq. 8). Costs 2 `RETAINED`
        samples without gradient and as many with.
        """
        if not self.calibrations:
            return losses
        concept = int(torch.randint(len(self.calibrations), (1,), generator=generator))
        kept = self.calibrations[concept].kept
        texts = kept[torch.randint(len(kept), (RETAINED,), generator=generator).to(x.device)]
        latents, times, prompts = self.kept_images[concept].drawn(RETAINED, generator)
        here = torch.as_tensor(t).to(times).reshape(1).expand(RETAINED)
        x, t = torch.cat([x[torch.arange(RETAINED) % len(x)], latents]), torch.cat([here, times])
        c = Conditioning.cat([texts, prompts])
        with tuning.frozen():
            frozen = self.model.predict(x, self.model.level(t), c)
        retained = F.mse_loss(self.model.predict(x, self.model.level(t), c), frozen)
        loss = losses["loss"] + self.config.calibrate.weight * retained
        return {**losses, "loss": loss, "retained": retained}

    def finished(self, shifts: Mapping[str, Tensor]) -> WeightEdit:
        """The edit of ``shifts``; a calibrated one at the strength that its probes find best."""
        edit = self.edit(shifts)
        if not self.calibrations:
            return edit
        return settled(edit, self.model, self.calibrations, curve=self.watch.curve if self.watch else ())


def adam(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam, or with a weight decay AdamW; both with the usual betas."""
    if weight_decay:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    return torch.optim.Adam(parameters, lr=lr)


def check_placed(model: DiffusionModel, devices: str | None, precision: str | None) -> None:
    """Compare settings (None: not set) with a model that is already loaded.

    Raises `ConfigError` for another precision. Warns of another device, which changes no number.
    """
    if precision is not None and compute.precision(precision) != model.precision:
        loaded = str(model.precision).removeprefix("torch.")
        raise ConfigError(
            f"train.precision is {precision}, but {titled(model.name)} was loaded in {loaded}: leave one out"
        )
    if devices not in (None, "", "auto"):
        device = compute.pick_device(devices)
        if (device.type, device.index or 0) != (model.device.type, model.device.index or 0):
            log.warning("devices is %s, but %r is already on %s and stays there", devices, model.name, model.device)
