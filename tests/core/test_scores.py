"""Which way is better."""

from __future__ import annotations

import pytest

from mu.core.scores import Score, loss, target


@pytest.mark.parametrize(
    ("direction", "worst_to_best"),
    [
        ("higher", [0.1, 0.5, 0.9]),
        ("lower", [0.9, 0.5, 0.1]),
        ("towards 0.5", [1.0, 0.2, 0.6]),
        ("towards -2", [4.0, 0.0, -2.5]),
    ],
)
def test_the_loss_orders_by_direction(direction: str, worst_to_best: list[float]) -> None:
    losses = [loss(direction, value) for value in worst_to_best]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3


def test_the_best_value_is_read_off_the_direction() -> None:
    assert [target(direction) for direction in ("higher", "lower", "towards 0.5")] == [None, None, 0.5]


@pytest.mark.parametrize("direction", ["", "up", "towards", "towards half", "towards nan", "0.5"])
def test_what_is_no_direction_is_refused(direction: str) -> None:
    with pytest.raises(ValueError, match="a direction is"):
        Score("UA", 0.5, 1, direction, "x/1")
