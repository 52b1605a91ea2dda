"""A small search that several processes share.

This file is also the program of processes of which one fails, and imports little: ``python -m tests.core.regression 5``.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from mu.core.compute import generator
from mu.core.errors import ConfigError
from mu.core.loop import train
from mu.core.program import guarded


class Regression:
    """Noisy regression of four numbers, of which the last gets a gradient only in odd draws."""

    def __init__(self) -> None:
        self.weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1))]
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.numbers = generator(0)
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> list[Tensor]:
        return [weight.detach() for weight in self.weights]

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        for weight, kept in zip(self.weights, state, strict=True):
            weight.copy_(kept)

    def step(self, i: int) -> dict[str, Tensor]:
        loss = (self.weights[0] - torch.randn(3, generator=self.numbers)).pow(2).mean()
        odd = (self.weights[1] - i).pow(2).sum()
        return {"loss": loss + odd, "odd": odd} if i % 2 else {"loss": loss}

    def run(self, draws: int, fail: int | None = None, **options: Any) -> Tensor:
        def step(i: int) -> dict[str, Tensor]:
            if i == fail:
                raise ConfigError("this draw cannot be made")
            return self.step(i)

        train(
            step, torch.optim.AdamW([*self.weights, self.unused], lr=0.1, weight_decay=0.1), 12,
            generator=self.numbers, draws=draws, state={"weights": self}, log=lambda row: self.rows.append(dict(row)),
            log_every=4, **options,
        )  # fmt: skip
        return torch.cat([weight.detach() for weight in (*self.weights, self.unused)])


def main(fail: str) -> int:
    """The program of each process; the code it ends with. Draw ``fail`` cannot be made."""
    code = guarded(lambda: Regression().run(2, fail=int(fail)))
    assert not torch.distributed.is_initialized(), "an open group may abort the process at its end"
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
