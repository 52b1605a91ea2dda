"""What methods have in common that erase concepts by shifting weights of a diffusion model: settings, loading, training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from mu.core import compute, loop
from mu.core.config import BaseConfig, Templates
from mu.core.errors import ConfigError
from mu.core.run import RunDirectory
from mu.models import load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.training.diffusion_config import DiffusionConfig
from mu.training.tuning import RunningGradients, Tuning, tuned
from mu.training.weight_method import Erasure

Step = Callable[[Tuning, int, torch.Generator], Mapping[str, Tensor]]
"""``step(tuning, i, generator)``: the losses of step i, ``"loss"`` among them; all its random numbers come from ``generator``."""

log = logging.getLogger("mu")


class ComputeConfig(BaseConfig):
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """What the model is loaded and computes in (autocast). What is searched for stays float32 or finer."""


class TrainConfig(ComputeConfig):
    iterations: int = Field(1000, ge=1)
    """Optimiser steps. More erase more, and more of what is near."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate of Adam."""
    gradients: Literal["zeroed", "summed"] = "zeroed"
    """``summed``: each step sees the sum of all gradients so far, as in programs that never zero them; it moves several times as far."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; also the most that a killed run loses."""


class ErasureConfig(DiffusionConfig):
    """Settings of methods whose prompts are templates around the concept, and nothing more."""

    templates: Templates = Field(["{}"], min_length=1)
    """Prompts around the concept, each with one {}."""
    train: ComputeConfig = ComputeConfig()
    """The computation."""

    def prompts(self) -> list[str]:
        """Each template with each concept."""
        return [_filled(template, concept) for concept in self.concepts for template in self.templates]


def _filled(template: str, text: str) -> str:
    return " ".join(template.replace("{}", text).split())


class AnchoredConfig(ErasureConfig):
    """Settings of methods that put something in the concept's place."""

    anchors: list[str] = Field([""], min_length=1)
    """What stands there in the concept's place: one text for all concepts, or one for each. Empty: nothing does."""

    @model_validator(mode="after")
    def _one_anchor_each(self) -> Self:
        if len(self.anchors) not in (1, len(self.concepts)):
            raise ValueError(
                f"{len(self.anchors)} anchors for {len(self.concepts)} concepts: give one for all, or one for each"
            )
        for concept, anchor in zip(self.concepts, self._each(), strict=True):
            if concept.same(anchor):
                raise ValueError(f"the anchor of {concept!r} is the concept itself: training would erase nothing, name another")
        return self

    def _each(self) -> list[str]:
        return self.anchors if len(self.anchors) > 1 else self.anchors * len(self.concepts)

    def pairs(self) -> list[list[tuple[str, str]]]:
        """For each concept: each template with the concept and with its anchor."""
        return [
            [(_filled(template, concept), _filled(template, anchor)) for template in self.templates]
            for concept, anchor in zip(self.concepts, self._each(), strict=True)
        ]


class WeightErasure(Erasure):
    """A method with a `DiffusionConfig` whose edit is a `WeightEdit` of a diffusion model."""

    def load_model(self) -> DiffusionModel:
        """The model that the settings name, or the one given; settings that contradict that one are refused, or told."""
        config = self.config
        if self.model is None:
            self.model = load_diffusion(
                config.model, device=config.devices, precision=config.train.precision, **config.loading.model_dump()
            )
        elif not isinstance(self.model, DiffusionModel):
            raise ConfigError(f"{self.name} edits diffusion models, and {self.model.name!r} is none")
        else:
            config.loading.check(self.model)
            set_, train_set = config.model_fields_set, config.train.model_fields_set
            check_placed(
                self.model,
                config.devices if "devices" in set_ else None,
                config.train.precision if "precision" in train_set else None,
            )
        return self.model

    def train(
        self, parameters: Mapping[str, nn.Parameter], step: Step, run: RunDirectory | None, log: loop.Log | None
    ) -> dict[str, Tensor]:
        """How far Adam moves ``parameters`` in the steps of ``train``; the model is left as it was found."""
        settings, model, generator = self.config.train, self.model, compute.generator(self.config.seed)
        with tuned(parameters) as tuning:
            optimizer = torch.optim.Adam(parameters.values(), lr=settings.lr)
            state: dict[str, loop.Stateful] = {"weights": tuning}
            if settings.gradients == "summed":
                state["gradients"] = RunningGradients(optimizer)
            loop.train(
                lambda i: step(tuning, i, generator), optimizer, settings.iterations, generator=generator, state=state,
                scaler=torch.amp.GradScaler(model.device.type, enabled=model.precision == torch.float16),
                checkpoint=run.checkpoints / "training.pt" if run else None, checkpoint_every=settings.checkpoint_every,
                title=self.name, log=log,
            )  # fmt: skip
            return tuning.shifts()


def check_placed(model: DiffusionModel, devices: str | None, precision: str | None) -> None:
    """Settings (None: not set) against a model that was loaded already: refused, or where it changes no number told."""
    if precision is not None and compute.precision(precision) != model.precision:
        loaded = str(model.precision).removeprefix("torch.")
        raise ConfigError(f"train.precision is {precision}, and {model.name!r} was loaded in {loaded}: leave one out")
    if devices not in (None, "", "auto"):
        device = compute.pick_device(devices)
        if (device.type, device.index or 0) != (model.device.type, model.device.index or 0):
            log.warning("devices is %s, and %r is on %s: it stays there", devices, model.name, model.device)
