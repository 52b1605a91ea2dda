"""What a search does by the readings of its probes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from mu.core.errors import ConfigError
from mu.training.calibration import Calibration
from mu.training.calibration_config import CalibrateConfig
from mu.training.probe import Reading
from mu.training.watch import HARDEST, MEMORY, PATIENCE, Watch, relative_rate

ON = CalibrateConfig(on=True)


class Scripted:
    """A calibration whose probe gives the next of ``readings``."""

    def __init__(self, readings: list[Reading]):
        self.settings, self.probe, self._readings = ON, self, iter(readings)
        self.gone, self.cost = Calibration.gone.__get__(self), Calibration.cost.__get__(self)

    def read(self) -> Reading:
        return next(self._readings)


def reading(left: float, shown: float, moved: float = 0.0) -> Reading:
    return Reading(left, shown, moved, moved, 0.0)


def watched(readings: list[Reading]) -> Iterator[tuple[int, Watch, nn.Parameter]]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    watch = Watch([Scripted(readings)], optimizer, [weight])  # type: ignore[list-item]
    for k in range(len(readings)):
        weight.data.fill_(k)
        for i in range(k * ON.every, (k + 1) * ON.every - 1):
            assert not watch(i)
        stopped = watch((k + 1) * ON.every - 1)
        assert weight.item() == k, "training goes on from where it was, not from the average"
        yield k, watch, weight
        if stopped:
            return


def test_training_ends_when_nothing_better_follows_and_keeps_the_best():
    readings = [reading(0.8, 1), reading(0.0, 0, 0.02), *[reading(-0.5, 0, 0.3)] * 5]
    *_, (last, watch, weight) = watched(readings)
    assert last == 1 + PATIENCE
    watch.keep_best()
    assert weight.item() == pytest.approx(1 - MEMORY**ON.every, abs=1e-6), "the average of steps at 0 and then at 1"


def test_a_reading_is_of_the_edit_as_it_is_used():
    weight, on, seen = nn.Parameter(torch.zeros(1)), [], []

    @contextmanager
    def as_used() -> Iterator[None]:
        on.append(True)
        yield
        on.pop()

    probe = Scripted([reading(0.8, 1.0)] * 2)
    read = probe.read
    probe.read = lambda: (seen.append(list(on)), read())[1]  # type: ignore[method-assign]
    for way in ((as_used,), ()):
        watch = Watch([probe], torch.optim.Adam([weight]), [weight], *way)  # type: ignore[list-item]
        for i in range(ON.every):
            watch(i)
    assert seen == [[True], []] and not on


def test_an_average_scatters_less_than_the_steps():
    weight = nn.Parameter(torch.zeros(1))
    watch = Watch([Scripted([])], torch.optim.Adam([weight]), [weight])  # type: ignore[list-item]
    steps, averages = torch.randn(400, generator=torch.Generator().manual_seed(0)), []
    watch.settings = CalibrateConfig(every=1000)
    for i, step in enumerate(steps):
        weight.data.fill_(step)
        watch(i)
        averages.append(watch.average[0].item())
    assert torch.tensor(averages[100:]).std() < 0.3 * steps[100:].std()


def test_the_rate_rises_only_while_the_concept_does_not_give_way():
    stuck = [watch._rate for _, watch, _ in watched([reading(1, 1)] * 30)]
    assert stuck[-1] == pytest.approx(HARDEST * 1e-3) and stuck == sorted(stuck)
    falling = [watch._rate for _, watch, _ in watched([reading(1 - 0.1 * k, 1) for k in range(1, 8)])]
    assert set(falling) == {1e-3}, "control"


def test_a_watch_goes_on_where_it_was():
    readings = [reading(0.9, 1), reading(0.0, 0, 0.02), reading(0.0, 0, 0.5), reading(0.0, 0, 0.5)]
    *_, (_, watch, _) = watched(readings)
    kept = watch.state_dict()
    other = Watch(watch.calibrations, watch.optimizer, [nn.Parameter(torch.zeros(1))])
    assert other.state_dict() != kept, "control"
    other.load_state_dict(kept)
    assert other.state_dict() == kept
    other.keep_best()
    assert other.weights[0].item() == kept["best"][0].item() > 0


def test_readings_without_the_gate_are_not_gone_on_with():
    """A state of an earlier version does not say how its probe read; what has no gate reads as it did."""

    def new(*way: Any) -> Watch:
        return Watch([Scripted([])], torch.optim.Adam([weight]), [weight], *way)  # type: ignore[list-item]

    weight = nn.Parameter(torch.zeros(1))
    old = {name: value for name, value in new().state_dict().items() if name != "gated"}
    new().load_state_dict(old)  # control
    gated = new(contextmanager(lambda: iter([None])))
    gated.load_state_dict(gated.state_dict())  # control
    for state in (old, new().state_dict()):
        with pytest.raises(ConfigError, match="gate"):
            gated.load_state_dict(state)


def test_a_relative_rate_follows_the_size_of_the_weights():
    weights = [torch.full((3, 4), 2.0), torch.full((5,), -2.0)]
    assert relative_rate(weights, 0.1) == pytest.approx(0.2)
    assert relative_rate([10 * w for w in weights], 0.1) == pytest.approx(2.0)
