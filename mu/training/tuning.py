"""Train parameters of a model in place, and return their deltas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mu.core.compute import full


class Tensors:
    """Tensors in training, as state for the checkpoints of `mu.core.loop.train`."""

    def __init__(self, tensors: Iterable[Tensor]):
        self.tensors = list(tensors)

    def state_dict(self) -> list[Tensor]:
        return [tensor.detach() for tensor in self.tensors]

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        for tensor, kept in zip(self.tensors, state, strict=True):
            tensor.copy_(kept)


class Tuning(Tensors):
    """Parameters in training (see `tuned`), and their original values, which are never written to.

    Training uses float32 even if the model is in half precision, which would round steps of 1e-5 away; a model in
    float64 is trained in float64.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        super().__init__(parameters.values())
        self.parameters = dict(parameters)
        self._originals = {name: parameter.data for name, parameter in parameters.items()}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the block, the model has its original weights and gradients are off."""
        trained = {name: parameter.data for name, parameter in self.parameters.items()}
        self._put(self._originals)
        try:
            with torch.no_grad():
                yield
        finally:
            self._put(trained)

    def shifts(self) -> dict[str, Tensor]:
        """Return the delta of each parameter, in float32."""
        return {name: p.detach() - full(self._originals[name]) for name, p in self.parameters.items()}

    def restore(self) -> None:
        """Put the original tensors back into the parameters."""
        self._put(self._originals)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = values[name]


@contextmanager
def tuned(parameters: Mapping[str, nn.Parameter]) -> Iterator[Tuning]:
    """Make ``parameters`` (from `mu.models.parameters.select`) trainable inside the block.

    Afterwards, even after an exception, they hold their original tensors and flags, and no gradients.
    """
    tuning = Tuning(parameters)
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            parameter.requires_grad_(True)
        yield tuning
    finally:
        tuning.restore()
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(flags[name])


class RunningGradients:
    """Make each step of ``optimizer`` use the sum of all gradients since the first step.

    Programs that never zero their gradients do this. Their published learning rates and step counts assume it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.weights: list[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.sums: list[Tensor | None] = [None] * len(self.weights)
        optimizer.register_step_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        for k, weight in enumerate(self.weights):
            if weight.grad is not None:
                before = self.sums[k]
                self.sums[k] = weight.grad.clone() if before is None else before + weight.grad
            weight.grad = self.sums[k]

    def state_dict(self) -> list[Tensor | None]:
        return list(self.sums)

    def load_state_dict(self, state: list[Tensor | None]) -> None:
        self.sums = [None if kept is None else kept.to(w.device) for w, kept in zip(self.weights, state, strict=True)]
