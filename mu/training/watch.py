"""What a training loop does by its probes' readings: how hard it presses, which weights it keeps, when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mu.core.errors import ConfigError
from mu.training.calibration import Calibration, readings, worst
from mu.training.probe import Reading
from mu.training.tuning import Tensors

PACE = 0.08
"""What must go between two readings, as a share of the concept. If less goes, the learning rate rises. The average of
the weights begins at those of the frozen model, so early readings lag, and the rate mostly rises at once."""
HARDEST = 4
"""The largest multiple of the first learning rate."""
PATIENCE = 2
"""Readings without a better state after the concept was found gone."""
MEMORY = 0.95
"""What each step keeps of the average of the weights."""


class Watch:
    """Reads the probe between training steps; its call after step ``i`` says whether to stop.

    What is read and kept are not the weights of one step but their running average over about twenty: the steps of
    methods that draw one prompt each scatter. Factors of a low-rank edit are averaged each on their own. Of several
    concepts in one edit, the worst reading counts. ``as_used`` is what else is on during a reading: an edit in training
    has no gate, and a gate keeps most of what should stay.
    """

    def __init__(
        self,
        calibrations: Sequence[Calibration],
        optimizer: torch.optim.Optimizer,
        weights: Sequence[Tensor],
        as_used: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.calibrations, self.optimizer, self.weights = list(calibrations), optimizer, list(weights)
        self.settings, self.as_used = calibrations[0].settings, as_used
        self.gated = as_used is not nullcontext
        self.first = optimizer.param_groups[0]["lr"]
        self.curve: list[dict[str, float]] = []
        self.best: list[Tensor] = []
        self.lowest: float | None = None
        self.waited, self.gone = 0, False
        self.average = [weight.detach().clone() for weight in self.weights]

    def __call__(self, i: int) -> bool:
        for average, weight in zip(self.average, self.weights, strict=True):
            average.lerp_(weight.detach(), 1 - MEMORY)
        if (i + 1) % self.settings.every:
            return False
        with self._averaged(), self.as_used():
            reading = worst(readings(self.calibrations))
        cost = self.calibrations[0].cost(reading)
        self.waited += 1
        if self.lowest is None or cost < self.lowest:
            self.lowest, self.best, self.waited = cost, [average.clone() for average in self.average], 0
        self._adapt(reading)
        self.curve.append({"step": i + 1, "lr": self._rate, **reading._asdict()})
        self.gone = self.gone or self.calibrations[0].gone(reading)
        return self.gone and self.waited >= PATIENCE

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside the block, the tensors in training hold their average."""
        now = [weight.detach().clone() for weight in self.weights]
        Tensors(self.weights).load_state_dict(self.average)
        try:
            yield
        finally:
            Tensors(self.weights).load_state_dict(now)

    @property
    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _adapt(self, reading: Reading) -> None:
        """Raise the learning rate by half if less than `PACE` went since the last reading."""
        before = self.curve[-1]["left"] if self.curve else 1.0
        slow = before - reading.left < PACE and reading.left > self.settings.left
        rate = min(self._rate * (1.5 if slow else 1.0), HARDEST * self.first)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def keep_best(self) -> None:
        """Put the best weights that were read back into the tensors in training."""
        if self.best:
            Tensors(self.weights).load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        return {
            "curve": list(self.curve),
            "best": list(self.best),
            "lowest": self.lowest,
            "first": self.first,
            "waited": self.waited,
            "gone": self.gone,
            "gated": self.gated,
            "average": list(self.average),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `ConfigError` for a state that does not say that its readings were of the edit ``as_used``."""
        if self.gated and not state.get("gated"):
            raise ConfigError("it does not say that its probe read the edit with its gate, as probes do now")
        self.curve, self.first = list(state["curve"]), state["first"]
        self.waited, self.gone = state["waited"], state["gone"]
        Tensors(self.average).load_state_dict(state["average"])
        self.best = [tensor.to(weight) for tensor, weight in zip(state["best"], self.weights, strict=False)]
        self.lowest = state["lowest"]


def relative_rate(weights: Sequence[Tensor], rate: float) -> float:
    """``rate`` times the root mean square of the elements of ``weights``."""
    count = sum(weight.numel() for weight in weights)
    return rate * float(sum(weight.detach().cpu().double().square().sum() for weight in weights) / count) ** 0.5
