"""A tracker is a guest of the training: it sees every row, and its trouble is told once and stops nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mu.core.tracking import tracked


class Tracker:
    """A stand-in for a W&B run that fails in the calls that ``broken`` names."""

    def __init__(self, *broken: str):
        self.broken, self.asked = broken, list[Any]()

    def _call(self, name: str, told: Any) -> None:
        self.asked.append(told)
        if name in self.broken:
            raise ConnectionError(f"no {name}")

    def log(self, row: dict[str, float]) -> None:
        self._call("log", row)

    def finish(self) -> None:
        self._call("finish", "finished")


def track(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is recorded of three rows while ``tracker`` listens."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: tracker))
    rows: list[Any] = []
    with tracked("project", "run", {}, rows.append, wanted=True) as log:
        for step in range(3):
            log({"step": step})
    return rows


ROWS = [{"step": 0}, {"step": 1}, {"step": 2}]


def test_every_row_goes_to_both(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker()
    assert track(tracker, monkeypatch) == ROWS
    assert tracker.asked == [*ROWS, "finished"]
    assert not caplog.records


@pytest.mark.parametrize(("broken", "asked"), [("log", ROWS[:1]), ("finish", [*ROWS, "finished"])])
def test_a_tracker_that_fails_is_told_once_and_left(
    broken: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(broken)
    assert track(tracker, monkeypatch) == ROWS
    assert tracker.asked == asked
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"no {broken}" in caplog.text


def test_what_stops_the_training_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the training's own trouble passes, and the tracker is finished all the same."""
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: tracker))
    with pytest.raises(KeyboardInterrupt), tracked("project", "run", {}, None, wanted=True):
        raise KeyboardInterrupt
    assert tracker.asked == ["finished"]
