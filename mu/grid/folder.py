"""The folder of a grid.

<folder>/
  grid.yaml  plan.json          the plan as it was last run, and its cells
  runs/<cell>/                  an ordinary run, as `mu erase` and `mu evaluate` write it
  cells/<cell>.json             what is known of the cell: state, reason, cost, what was measured
  base/                         the base models' images, which all cells share
  tuned/<method>-<hash>/        with ``tune``: the search for a method's settings; see `mu.grid.tuning`
  workers.txt                   what the worker processes print
  report.html  table.*          of the grid; see `mu.grid.page`
  .lock                         of the process that works here
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from mu.core.errors import DataError, OutputError
from mu.core.files import write_json, write_text
from mu.core.lock import LOCK, locked
from mu.core.records import read_record
from mu.core.run import RunDirectory
from mu.grid.plan import Cell

State = Literal["waiting", "running", "done", "failed"]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


class Record(BaseModel):
    """What is known of one cell."""

    state: State = "waiting"
    reason: str = ""
    """Why it failed, in one line."""
    traceback: str = ""
    """Of a failure that is a defect."""
    where: str = ""
    """The machine and process that works, or worked, on it."""
    began: float = 0.0
    """When its last attempt began, in seconds since 1970."""
    seconds: Seconds = 0.0
    """Seconds of all attempts together, except those that were killed."""
    attempts: int = 0
    evaluations: int = 0
    """Model evaluations of search and measurement of the last attempt: one for each latent of a batch."""
    memory: float = 0.0
    """The most memory of its process so far, in GiB."""
    measured: dict[str, str] = {}
    """The key of each suite's measurement."""


class GridFolder:
    """The places of a grid, and what is known of its cells."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.config = self.folder / "grid.yaml"
        self.plan = self.folder / "plan.json"
        self.base = self.folder / "base"
        self.tuned = self.folder / "tuned"
        self.workers = self.folder / "workers.txt"
        self.report = self.folder / "report.html"

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / name)

    def record(self, name: str) -> Record:
        """What is known of the cell ``name``."""
        path = self._record(name)
        return read_record(path, Record) if path.exists() else Record()

    def note(self, name: str, record: Record) -> None:
        write_json(self._record(name), record.model_dump(exclude_defaults=True))

    def _record(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.json"

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell has its edit and every measurement that its plan asks for."""
        record, run = self.record(cell.name), self.run(cell.name)
        keys = {one.suite: one.key for one in cell.measured}
        known = all(record.measured.get(suite) == key for suite, key in keys.items())
        return record.state == "done" and known and run.edit.is_file() and run.scores.is_file()

    def write(self, config: str, cells: Sequence[Cell], tuned: Mapping[str, Any] | None = None) -> None:
        """Write the plan. Cells of an earlier plan stay in the folder and leave the tables."""
        write_text(self.config, config)
        write_json(self.plan, {"cells": [cell.to_json() for cell in cells], "tuned": tuned or {}})

    def cells(self) -> list[Cell]:
        """The cells of the plan that was last run. Raises `DataError` for a folder that is no grid's."""
        return [Cell.read(each) for each in self._plan()["cells"]]

    def tuning(self) -> dict[str, Any]:
        """What the settings were tuned on; empty if they were not."""
        return dict(self._plan()["tuned"])

    def _plan(self) -> dict[str, Any]:
        if not self.plan.is_file():
            state = "is not a grid's folder" if self.folder.exists() else "does not exist"
            raise DataError(f"{self.folder} {state}: name the folder that `mu grid run` wrote")
        content: dict[str, Any] = read_record(self.plan, dict[str, Any])
        if {"cells", "tuned"} - content.keys():
            raise DataError(f"{self.plan} is damaged: run `mu grid run` again, which keeps all results")
        return content

    def is_running(self) -> bool:
        """Whether a process works on the grid now."""
        if not (self.folder / LOCK).exists():
            return False
        try:
            with locked(self.folder):
                return False
        except OutputError:
            return True

    def states(self) -> dict[str, tuple[State, Record]]:
        """The state of each cell of the plan. What a killed process left as running waits for the next run."""
        records = {cell.name: self.record(cell.name) for cell in self.cells()}
        alive = any(record.state == "running" for record in records.values()) and self.is_running()
        states: dict[str, tuple[State, Record]] = {}
        for cell in self.cells():
            record = records[cell.name]
            state: State = record.state
            if state == "done" and not self.is_done(cell):
                state = "waiting"
            if state == "running" and not alive:
                state = "waiting"
            states[cell.name] = state, record
        return states
