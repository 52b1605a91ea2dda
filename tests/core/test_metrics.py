"""The registry of metrics: names, directions, and that the suites take theirs from it."""

from __future__ import annotations

import pytest

from mu.core.metrics import METRICS, SHARE, metric_of, scored
from mu.core.scores import target


def test_every_metric_is_told_in_full_and_once() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.unit and metric.title and metric.meaning, metric.name
        aim = target(metric.direction)
        assert aim is None or (metric.unit == SHARE and 0 < aim < 1), metric.name
        assert not metric.head or metric.about, f"{metric.name} stands at the head, and nothing says what it is about"


@pytest.mark.parametrize(
    ("name", "found", "direction"),
    [
        ("UA", "UA", "higher"),
        ("FA@1", "FA@1", "lower"),
        ("identity@1", "*@1", "higher"),
        ("style@5 retained", "*@5 retained", "higher"),
        ("imagenet@1", "imagenet@1", "higher"),
        ("MIA", "MIA", "towards 0.5"),
        ("retained", "retained", "higher"),
    ],
)
def test_a_name_leads_to_its_metric(name: str, found: str, direction: str) -> None:
    metric = metric_of(name)
    assert metric and (metric.name, metric.direction) == (found, direction)
    assert scored(name, 0.5, 3, "x/1").direction == direction


def test_what_is_not_registered_is_no_suites_metric() -> None:
    assert metric_of("fresh") is None
    with pytest.raises(KeyError, match="METRICS"):
        scored("fresh", 0.5, 3, "x/1")
