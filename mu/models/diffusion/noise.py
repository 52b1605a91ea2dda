"""Noise levels, and the quantities that a network can predict at one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy the latents of a batch are: ``x = alpha x_0 + sigma eps``.

    ``t`` () or (b,) is the timestep for the network. ``alpha`` and ``sigma`` broadcast over latents (b, c, h, w).
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def noised(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """Noisy latents x (b, c, h, w) of the forward process."""
        return self.alpha * x_0 + self.sigma * eps


@dataclass(frozen=True)
class Prediction:
    """A prediction type. ``noise(out, x, level)`` converts the network's output to eps.

    At fixed x, a difference in the output is ``slope(alpha, sigma)`` times as large in eps."""

    noise: Callable[[Tensor, Tensor, NoiseLevel], Tensor]
    slope: Callable[[float, float], float]


PREDICTIONS = {
    "epsilon": Prediction(lambda out, x, at: out, lambda alpha, sigma: 1.0),
    "v_prediction": Prediction(lambda out, x, at: at.alpha * out + at.sigma * x, lambda alpha, sigma: alpha),
    "sample": Prediction(lambda out, x, at: (x - at.alpha * out) / at.sigma, lambda alpha, sigma: alpha / sigma),
}
"""By diffusers' names. A family with another prediction type (a velocity, for example) adds its entry."""
