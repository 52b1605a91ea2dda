"""What a run leaves behind, and reading it back.

One folder is the interface between the expensive half and the cheap half:

    <folder>/  config.yaml  environment.json  log.txt  metrics.jsonl  edit.safetensors  checkpoints/
               before/  after/  scores.json  attacks.json  report.html
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from mu.core.errors import DataError, OutputError
from mu.core.files import write_json, write_text, writing
from mu.core.scores import Score
from mu.core.tracking import Tracking, tracked

LIBRARIES = ("mu-unlearning", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class RunDirectory:
    """One run's folder. Nothing is created until something is written."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.environment = self.folder / "environment.json"
        self.log = self.folder / "log.txt"
        self.metrics = self.folder / "metrics.jsonl"
        self.edit = self.folder / "edit.safetensors"
        self.checkpoints = self.folder / "checkpoints"
        self.before = self.folder / "before"
        self.after = self.folder / "after"
        self.scores = self.folder / "scores.json"
        self.attacks = self.folder / "attacks.json"
        self.report = self.folder / "report.html"

    def begin(self, config: str, description: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
        """Claim the folder: write what reruns this run. A finished or begun run is never overwritten silently."""
        if self.config.exists() and not (resume or overwrite):
            finished = self.edit.exists() or self.report.exists()
            state = "a finished run" if finished else "an unfinished run"
            what = "choose another folder or pass --overwrite" if finished else "pass --resume to go on, or --overwrite"
            raise OutputError(f"{self.folder} already holds {state}: {what}")
        if resume and self.config.exists():
            self.require(config)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite and not resume:
                shown = (
                    self.folder / "prompts.json",
                    self.folder / "panels.json",
                    *self.before.glob("*.png"),
                    *self.after.glob("*.png"),
                )
                tracked_before = (self.folder / "tensorboard").glob("events.*")
                made = (
                    self.metrics,
                    self.edit,
                    self.scores,
                    self.attacks,
                    self.report,
                    *self.checkpoints.glob("*"),
                    *tracked_before,
                )
                for stale in (*made, *shown):
                    stale.unlink(missing_ok=True)
            write_text(self.config, config)
            write_json(self.environment, {"versions": versions(), "platform": platform.platform(), **description})

    def withdraw(self) -> None:
        """Take back what `begin` claimed, where the work ended before anything was made: the folder is free again."""
        if not (self.edit.exists() or any(self.checkpoints.glob("*"))):
            for path in (self.config, self.environment, self.log, self.metrics):
                path.unlink(missing_ok=True)

    def require(self, config: str) -> None:
        """Raise `OutputError` where the folder holds a run with other settings than ``config``."""
        if self.config.exists() and self.config.read_text(encoding="utf-8") != config:
            raise OutputError(f"{self.folder} was begun with other settings: rerun with its config.yaml, or pass --overwrite")

    @contextmanager
    def recording(self, tracking: Tracking | None = None, config: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """``log(mapping)`` appends one line to ``metrics.jsonl``, and sends it to the tracker that is asked for, which is told the
        settings ``config``; warnings and infos of ``mu`` go to ``log.txt``."""
        handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("mu")
        logger.addHandler(handler)
        seen = {row["step"] for row in self.read_metrics()}
        try:
            torn = self.metrics.exists() and not self.metrics.read_bytes().endswith(b"\n")
            with (
                self.metrics.open("a", encoding="utf-8") as lines,
                tracked(tracking or Tracking(), self.folder, config or {}) as track,
            ):
                lines.write("\n" if torn else "")  # a killed run may leave half a line

                def record(row: Mapping[str, float]) -> None:
                    if row["step"] not in seen:  # a resumed run repeats the steps after its last checkpoint
                        lines.write(json.dumps(row) + "\n")
                        lines.flush()
                        track(row)

                yield record
        finally:
            logger.removeHandler(handler)
            handler.close()

    def read_metrics(self) -> list[dict[str, float]]:
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # a killed run may leave half a line
                rows.append(json.loads(line))
        return rows

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Add ``facts`` to ``environment.json``."""
        write_json(self.environment, {**self.read_environment(), **facts})

    def read_environment(self) -> dict[str, Any]:
        return _read_json(self.environment)

    def write_scores(self, table: Mapping[str, list[Score]]) -> None:
        """``table`` maps a column (``base``, ``edited``) to its scores."""
        write_json(self.scores, {column: [score.to_json() for score in scores] for column, scores in table.items()})

    def read_scores(self) -> dict[str, list[Score]]:
        if not self.scores.exists():
            return {}
        return {column: [Score.from_json(s) for s in scores] for column, scores in _read_json(self.scores).items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is {path.parent} a run's folder?") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no names and values, but a {type(content).__name__}")
    return content
