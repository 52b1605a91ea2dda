"""What `Algorithm.run` leaves, by a method that takes time and finds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mu.core import algorithm
from mu.core.algorithm import Algorithm
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, DataError, OutputError


class Config(BaseConfig):
    output_dir: str = ""


@dataclass
class Found:
    text: str = "edit"

    def save(self, path: Path | str) -> None:
        Path(path).write_text(self.text)


class Method(Algorithm):
    """Works for ``takes`` seconds of a clock of its own, leaves a checkpoint, and may be stopped there."""

    name = "method"
    config_class = Config
    clock = 100.0
    takes, stop = 10.0, None

    def load_model(self) -> Any:
        return None

    def read_edit(self, path: Path) -> Found:
        return Found(path.read_text())

    def find_edit(self, run: Any = None, log: Any = None) -> Found:
        type(self).clock += self.takes
        if not isinstance(self.stop, DataError):
            run.checkpoints.mkdir(exist_ok=True)
            (run.checkpoints / "training.pt").write_text("state")
        if self.stop:
            raise self.stop
        return Found()


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(algorithm.time, "monotonic", lambda: Method.clock)

    def made(takes: float, stop: BaseException | None = None) -> Method:
        work = Method({"output_dir": str(tmp_path / "run")})
        work.takes, work.stop = takes, stop  # type: ignore[assignment]
        return work

    return made


def test_seconds_count_all_parts_of_an_interrupted_run(method: Any) -> None:
    for takes in (10.0, 5.0):
        with pytest.raises(KeyboardInterrupt):
            method(takes, KeyboardInterrupt()).run(resume=True)
    edit, run = method(2.0).run(resume=True)
    assert edit.text == "edit" and run.read_environment()["seconds"] == 17.0
    assert method(2.0).run(resume=True).run.read_environment()["seconds"] == 17.0  # it was finished
    assert method(2.0).run(overwrite=True).run.read_environment()["seconds"] == 2.0  # control: a new run begins anew


def test_a_run_that_made_nothing_leaves_nothing(method: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        method(1.0, DataError("no pictures")).run()
    assert not any(path.is_file() for path in (tmp_path / "run").rglob("*"))


def test_what_was_just_written_is_not_read_back(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a finished run's edit is read, and nothing is searched."""
    read: list[Path] = []
    monkeypatch.setattr(Method, "read_edit", lambda self, path: read.append(path) or Found("read"))
    found = method(1.0).run()
    assert (found.edit.text, read) == ("edit", [])
    clock = Method.clock
    again = method(1.0).run(resume=True)
    assert (again.edit.text, read, Method.clock) == ("read", [found.run.edit], clock)


def test_settings_without_overrides_are_taken_as_they_are() -> None:
    config = Config(output_dir="x")
    assert Method(config).config is config
    other = Method(config, output_dir="y").config
    assert other is not config and config.output_dir == "x"


def test_an_unknown_tracker_is_refused_before_anything_is_written(method: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wandb'"):
        method(1.0).run(track="wanb")
    assert not (tmp_path / "run").exists()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_overwrite_puts_the_earlier_run_back(method: Any, tmp_path: Path) -> None:
    method(1.0).run()
    folder = tmp_path / "run"
    for name in ("scores.json", "before/0_0.png", "answers/base/recipe.json", "slug_x.json", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "checkpoints" / "training.pt").unlink()
    before = tree(folder)
    for stop in (DataError("no such model"), RuntimeError("a defect")):
        refused = method(1.0, stop)
        refused.find_edit = lambda run, log, stop=stop: _raise(stop)
        with pytest.raises(type(stop)):
            refused.run(overwrite=True)
        assert tree(folder) == before
    method(1.0).run(overwrite=True)  # control: a run that is not refused replaces all but the user's own
    assert tree(folder).keys() == {
        "config.yaml",
        "environment.json",
        "edit.safetensors",
        "log.txt",
        "metrics.jsonl",
        "notes.txt",
        "checkpoints/training.pt",
    }


def _raise(error: Exception) -> Any:
    raise error


def test_an_interrupted_overwrite_goes_on_and_a_later_refusal_keeps_the_finished_run(
    method: Any, tmp_path: Path
) -> None:
    method(1.0).run()
    folder = tmp_path / "run"
    (folder / "edit.safetensors").write_text("the first")
    (folder / "checkpoints" / "training.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        method(1.0, KeyboardInterrupt()).run(overwrite=True)
    assert not (folder / "edit.safetensors").exists()
    with pytest.raises(DataError):
        method(1.0, DataError("refused")).run(overwrite=True)
    assert (folder / "edit.safetensors").read_text() == "the first"
    with pytest.raises(KeyboardInterrupt):
        method(1.0, KeyboardInterrupt()).run(overwrite=True)
    method(1.0).run(resume=True)
    assert (folder / "edit.safetensors").read_text() == "edit" and not (folder / ".earlier").exists()


def test_an_output_that_is_a_file_is_one_line(method: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("kept")
    with pytest.raises(OutputError, match="is a file and not a folder"):
        method(1.0).run(overwrite=True)
    assert (tmp_path / "run").read_text() == "kept"
