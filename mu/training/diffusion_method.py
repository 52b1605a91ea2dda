"""Settings, loading and training shared by methods that erase concepts by changing weights of a diffusion model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from mu.core import compute, loop
from mu.core.config import BaseConfig, Templates, filled
from mu.core.errors import ConfigError
from mu.core.run import RunDirectory
from mu.models import load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.training.diffusion_config import DiffusionConfig
from mu.training.tuning import RunningGradients, Tuning, tuned
from mu.training.weight_method import Erasure

Step = Callable[[Tuning, int, torch.Generator], Mapping[str, Tensor]]
"""``step(tuning, i, generator)``: the losses of step i, including ``"loss"``. ``generator`` is its only randomness."""

log = logging.getLogger("mu")


class ComputeConfig(BaseConfig):
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """Precision in which the model is loaded and computes (autocast). The search itself uses float32 or finer."""


class TrainConfig(ComputeConfig):
    iterations: int = Field(1000, ge=1)
    """Optimiser steps. More steps erase more, nearby concepts too."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate of Adam."""
    gradients: Literal["zeroed", "summed"] = "zeroed"
    """``summed``: each step uses the sum of all gradients so far, which moves weights several times as far."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; a killed run loses at most this many."""


class ErasureConfig(DiffusionConfig):
    """Settings of methods whose only prompts are templates around the concept."""

    templates: Templates = Field(["{}"], min_length=1)
    """Prompt templates; each has one {} for the concept."""
    train: ComputeConfig = ComputeConfig()
    """The precision of the computation."""

    def prompts(self) -> list[str]:
        """Return each template with each concept."""
        return [_prompt(template, concept) for concept in self.concepts for template in self.templates]


def _prompt(template: str, text: str) -> str:
    return " ".join(filled(template, text).split())


class AnchoredConfig(ErasureConfig):
    """Settings of methods that put an anchor in the concept's place."""

    anchors: list[str] = Field([""], min_length=1)
    """Text that replaces the concept in the prompts: one for all concepts, or one for each. Empty: no text."""

    @model_validator(mode="after")
    def _one_anchor_each(self) -> Self:
        if len(self.anchors) not in (1, len(self.concepts)):
            raise ValueError(
                f"{len(self.anchors)} anchors for {len(self.concepts)} concepts: give one for all, or one for each"
            )
        for concept, anchor in zip(self.concepts, self._each(), strict=True):
            if concept.same(anchor):
                raise ValueError(
                    f"the anchor of {concept!r} is the concept itself and would erase nothing: name another anchor"
                )
        return self

    def _each(self) -> list[str]:
        return self.anchors if len(self.anchors) > 1 else self.anchors * len(self.concepts)

    def pairs(self) -> list[list[tuple[str, str]]]:
        """Return, for each concept, each template with the concept and with its anchor."""
        return [
            [(_prompt(template, concept), _prompt(template, anchor)) for template in self.templates]
            for concept, anchor in zip(self.concepts, self._each(), strict=True)
        ]


class WeightErasure(Erasure):
    """A method with a `DiffusionConfig` whose edit is a `WeightEdit` of a diffusion model."""

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
            raise ConfigError(f"{self.name} edits diffusion models, and {self.model.name!r} is not a diffusion model")
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
        """Run Adam on ``parameters`` and return their deltas; the model itself is left unchanged."""
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
    """Compare settings (None: not set) with a model that is already loaded.

    Raises `ConfigError` for another precision. Warns of another device, which changes no number.
    """
    if precision is not None and compute.precision(precision) != model.precision:
        loaded = str(model.precision).removeprefix("torch.")
        raise ConfigError(f"train.precision is {precision}, but {model.name!r} was loaded in {loaded}: leave one out")
    if devices not in (None, "", "auto"):
        device = compute.pick_device(devices)
        if (device.type, device.index or 0) != (model.device.type, model.device.index or 0):
            log.warning("devices is %s, but %r is already on %s and stays there", devices, model.name, model.device)
