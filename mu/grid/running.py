"""Run what a grid has no result of yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mu.core.errors import OutputError, quoted
from mu.core.lock import locked, patient
from mu.grid.engines import Ended, Engine, work_off
from mu.grid.folder import GridFolder
from mu.grid.plan import Cell, Plan
from mu.grid.tuning import tuned_cells


def run(plan: Plan, home: Path, engine: Engine) -> Ended:
    """Run the cells of ``plan`` that have no result yet, failed ones again. Raises `OutputError` if another process
    works in the folder ``home``, or it holds something else than a grid."""
    folder = GridFolder(home)
    check(folder)
    with patient(1.0), locked(home), patient(0.0):  # `mu grid status` may look whether somebody works here
        cells: Sequence[Cell] = plan.cells
        tuned: dict[str, Any] = {}
        if plan.config.tune:
            cells, tuned = tuned_cells(plan, folder, engine)
        folder.write(plan.config.to_yaml(comments=False), cells, tuned)
        return work_off(cells, folder, engine, "cells")


def check(folder: GridFolder) -> None:
    """Raise `OutputError` for a folder of something else: its files would lie among the grid's."""
    if folder.folder.is_dir() and not folder.plan.exists():
        own = {"cells", "runs", "base", "tuned", folder.workers.name, folder.config.name, ".lock"}
        others = sorted(path.name for path in folder.folder.iterdir() if path.name not in own and path.name[:1] != ".")
        if others:
            raise OutputError(
                f"{folder.folder} holds other files, such as {quoted(others[0])}: choose a new folder for the grid"
            )
