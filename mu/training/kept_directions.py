"""Training of keys and values in coordinates in which prompts of what should stay are short.

Prompt embeddings have much in common. A gradient for one prompt points mostly along directions that all prompts use,
and a step along them changes the images of all. With S = mean k k^T over the rows k of prompts that should stay, and

    P = (I + S / (lamb c))^(-1/2),  c = tr(S) / width,

a weight W = W_0 + V P is trained by its V: the optimiser sees the gradient times P, and its step times P is added to W.
Directions that kept prompts do not use stay as they are, and those that they use become short. The objective is the
same; the optimiser comes to other minima of it. Closed forms such as UCE aim by P^2. No paper of a trained method has
this, so it belongs to calibrated searches alone; a weight decay acts before P, as the clipping of gradients does. To
check: with P = I and LONGER = 1, the log of a search tells how much farther what should stay moves until as little of
the concept is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LAMB = 1e-2
"""The mean square in a direction below which it counts as hardly used, as a share of the mean over all directions."""
LONGER = 10.0
"""Learning rate in these coordinates over that in the usual ones: the steps are short where prompts are long."""


def shortening(rows: Tensor) -> Tensor:
    """P (width, width) for ``rows`` (n, width) whose sums are means, in their precision."""
    S = rows.T @ rows
    values, vectors = torch.linalg.eigh(S)
    lamb = LAMB * S.diagonal().mean()
    return (vectors * (lamb / (lamb + values.clamp(min=0))).sqrt()) @ vectors.T


class Shortened:
    """Make each step of ``optimizer`` train ``weights`` (out, width) in the coordinates of P (width, width)."""

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], P: Tensor):
        self.weights, self.P = list(weights), P
        self.before: list[Tensor] = []
        optimizer.register_step_pre_hook(self._shorten)
        optimizer.register_step_post_hook(self._put)

    def _shorten(self, *_: Any) -> None:
        self.before = [weight.detach().clone() for weight in self.weights]
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad = weight.grad @ self.P.to(weight.grad)

    @torch.no_grad()
    def _put(self, *_: Any) -> None:
        for weight, before in zip(self.weights, self.before, strict=True):
            weight.copy_(before + (weight - before) @ self.P.to(weight))
        self.before = []
