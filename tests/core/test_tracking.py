"""A tracker is a guest of the training: it comes where it is asked for, sees every row, and its trouble is told once
and stops nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mu.algorithms.semipermeable_membrane.configs import SemipermeableMembraneConfig
from mu.core.run import RunDirectory
from mu.core.tracking import Tracking, tracked

WANDB = Tracking("wandb", "project", "run")


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


ROWS = [{"step": 0}, {"step": 1}, {"step": 2}]


def recorded(folder: Path, tracking: Tracking | None) -> list[dict[str, float]]:
    """What is in the run's log of three rows, of which the last comes twice."""
    folder.mkdir(exist_ok=True)
    run = RunDirectory(folder)
    with run.recording(tracking, {"lr": 1}) as log:
        for row in [*ROWS, ROWS[-1]]:
            log(row)
    return run.read_metrics()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What W&B was started with; ``wandb["tracker"]`` is what it gives."""
    seen: dict[str, Any] = {"tracker": Tracker()}

    def init(**how: Any) -> Any:
        seen["how"] = how
        return seen["tracker"]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return seen


def test_every_row_goes_to_both(tmp_path: Path, wandb: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert recorded(tmp_path, WANDB)[:3] == ROWS
    assert wandb["tracker"].asked == [*ROWS, ROWS[-1], "finished"]
    assert wandb["how"] == {"project": "project", "name": "run", "config": {"lr": 1}}
    assert not caplog.records


def test_a_resumed_run_sends_what_it_records(tmp_path: Path, wandb: dict[str, Any]) -> None:
    recorded(tmp_path, None)
    run = RunDirectory(tmp_path)
    with run.recording(WANDB) as log:
        for step in (2, 3):
            log({"step": step})
    assert wandb["tracker"].asked == [{"step": 3}, "finished"]


def test_names_that_nothing_gives(tmp_path: Path, wandb: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    recorded(tmp_path / "neon", Tracking("wandb"))
    assert (wandb["how"]["project"], wandb["how"]["name"]) == ("mu", "neon")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    recorded(tmp_path / "star", Tracking("wandb"))
    assert (wandb["how"]["project"], wandb["how"]["name"]) == ("mine", "star")


@pytest.mark.parametrize("tracking", [None, Tracking(), Tracking(None, "project", "run")])
def test_nobody_comes_who_was_not_asked(
    tracking: Tracking | None, tmp_path: Path, wandb: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login of the machine asks for nothing, whether it can be read or not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "key")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password key\n")
    assert recorded(tmp_path / "readable", tracking)[:3] == ROWS
    netrc.write_bytes(b"machine caf\xe9 login user password \x81\n")  # no UTF-8
    assert recorded(tmp_path / "latin 1", tracking)[:3] == ROWS
    netrc.unlink()
    netrc.mkdir()  # reading it fails for anybody
    assert recorded(tmp_path / "unreadable", tracking)[:3] == ROWS
    assert "how" not in wandb


@pytest.mark.parametrize("content", [None, b"machine caf\xe9 login \x81\n"])
def test_a_login_that_cannot_be_read_stops_no_search(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a W&B that reads it on its import: it is not imported, or, where it was asked for, only told to have failed."""
    netrc, home = tmp_path / ".netrc", tmp_path / "packages"
    netrc.mkdir() if content is None else netrc.write_bytes(content)
    home.mkdir()
    (home / "wandb.py").write_text(f"from pathlib import Path\nPath({str(netrc)!r}).read_text(encoding='utf-8')\n")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    named = SemipermeableMembraneConfig.parse({"wandb_project": "mine", "wandb_run": "neon"}).old.tracking()
    assert named.kind is None and recorded(tmp_path / "named", named)[:3] == ROWS and not caplog.records
    assert recorded(tmp_path / "asked", WANDB)[:3] == ROWS
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "W&B failed" in caplog.text  # control


@pytest.mark.parametrize(("broken", "asked"), [("log", ROWS[:1]), ("finish", [*ROWS, ROWS[-1], "finished"])])
def test_a_tracker_that_fails_is_told_once_and_left(
    broken: str, asked: list[Any], tmp_path: Path, wandb: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    wandb["tracker"] = Tracker(broken)
    assert recorded(tmp_path, WANDB)[:3] == ROWS
    assert wandb["tracker"].asked == asked
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"no {broken}" in caplog.text


@pytest.mark.parametrize(("kind", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_one_that_is_not_installed_is_told(
    kind: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # its import fails
    assert recorded(tmp_path, Tracking(kind))[:3] == ROWS
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"pip install {kind}" in caplog.text


def test_what_is_missing_is_told_before_the_first_row_and_also_without_any(
    tmp_path: Path, wandb: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked(WANDB, tmp_path, {}):
        assert not caplog.records  # control: it is there
    assert [record.getMessage() for record in caplog.records] == ["W&B got nothing: no losses were logged"]
    caplog.clear()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracked(WANDB, tmp_path, {}):
        assert "pip install wandb" in caplog.text
    assert len(caplog.records) == 1


def test_tensorboard_gets_each_number_under_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    writer = SimpleNamespace(add_scalar=lambda *told: said.append(told), close=lambda: said.append("closed"))
    made = SimpleNamespace(SummaryWriter=lambda log_dir: said.append(log_dir) or writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", made)
    with RunDirectory(tmp_path).recording(Tracking("tensorboard")) as log:
        log({"step": 4, "loss": 0.5, "lr": 1e-3})
    assert said == [str(tmp_path / "tensorboard"), ("loss", 0.5, 4), ("lr", 1e-3, 4), "closed"]


def test_what_stops_the_training_is_not_swallowed(tmp_path: Path, wandb: dict[str, Any]) -> None:
    """Control: the training's own trouble passes, and the tracker is finished all the same."""
    with pytest.raises(KeyboardInterrupt), tracked(WANDB, tmp_path, {}) as track:
        track(ROWS[0])
        raise KeyboardInterrupt
    assert wandb["tracker"].asked == [ROWS[0], "finished"]
