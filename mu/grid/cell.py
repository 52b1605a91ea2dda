"""One cell: what `mu erase` and `mu evaluate` do, in one call that never raises for bad input."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mu.algorithms import algorithm
from mu.core.algorithm import Algorithm
from mu.core.files import slug
from mu.core.lock import patient
from mu.core.program import told
from mu.core.run import RunDirectory
from mu.diffusion.image_folder import before_after
from mu.edits.bank import Bank
from mu.edits.files import open_edit
from mu.evaluation.audit import subject
from mu.evaluation.suites import SUITES, evaluate, suite_for
from mu.grid.folder import GridFolder, Record
from mu.grid.plan import FILES, Cell, Measuring, digest
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.models.load_options import loading
from mu.models.parameters import EditableModel
from mu.report import write_report

PATIENCE = 7 * 24 * 3600.0
"""Seconds that a cell waits for another to make the base images that both need."""

log = logging.getLogger("mu")


def run_cell(cell: Cell, home: Path) -> Record:
    """Search and measure what has no result yet; note the outcome in the grid's folder ``home``, and return it.

    A cell that was killed goes on where it was. One that fails, for bad input, too little memory or a defect, is noted
    with the reason; nothing is raised but what ends the process.
    """
    folder, began = GridFolder(home), time.time()
    record = folder.record(cell.name)
    where = f"{platform.node()}, process {os.getpid()}"
    record = record.model_copy(
        update={
            "state": "running",
            "reason": "",
            "traceback": "",
            "where": where,
            "began": began,
            "attempts": record.attempts + 1,
        }
    )
    folder.note(cell.name, record)
    counter = Counter()
    try:
        with patient(PATIENCE):
            measured = _work(cell, folder, record.measured, counter)
        end: dict[str, Any] = {"state": "done", "measured": measured}
    except Exception as error:
        reason = told(error)
        end = {"state": "failed", "reason": reason or f"{type(error).__name__}: {error}"}
        if reason is None:
            end["traceback"] = traceback.format_exc()
    finally:
        counter.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    end |= {"seconds": record.seconds + time.time() - began, "evaluations": counter.count, "memory": most_memory()}
    record = record.model_copy(update=end)
    folder.note(cell.name, record)
    return record


def _work(cell: Cell, folder: GridFolder, before: dict[str, str], counter: Counter) -> dict[str, str]:
    """Search, measure and report. Returns the key of each suite's measurement."""
    run = folder.run(cell.name)
    found = not run.edit.exists()
    work = _search(cell, run, counter)
    if cell.images and (found or not run.prompts.exists()):
        _draw(work, run, cell)
    measured = {} if found else dict(before)
    base: EditableModel | None = None
    for asked in cell.measured or (None,):
        if asked and measured.get(asked.suite) == asked.key and asked.suite in run.read_scores():
            continue
        if base is None:
            base = _base(cell, run)
            counter.watch(base)
        asked = asked or Measuring(suite_for(base))
        evaluate(run, asked.suite, base, subject(run, base), seeds=asked.seeds, **_options(asked, folder.base, cell))
        measured[asked.suite] = asked.key
    write_report(run)
    return measured


def _search(cell: Cell, run: RunDirectory, counter: Counter) -> Algorithm:
    """Find the edit, or go on where the search was, or do nothing if it is found."""
    kind = algorithm(cell.method)
    work = kind(kind.config_class.parse(cell.settings, kind.placed(run.folder, cell.device)))
    if not run.edit.exists():
        work.model = work.load_model()
        counter.watch(work.model)
    work.run(resume=True)
    return work


def _draw(work: Algorithm, run: RunDirectory, cell: Cell) -> None:
    model = work.model if work.model is not None else _base(cell, run)
    if isinstance(model, DiffusionModel):
        before_after(run, model, Bank(model, [open_edit(run.edit)]))


def _base(cell: Cell, run: RunDirectory) -> EditableModel:
    """The base model, loaded as `mu evaluate` loads it: by the edit's own options, in float32."""
    how = loading(cell.model, [open_edit(run.edit).info], clip_skip=None, prediction_type=None)
    return _loaded(cell.model, cell.device, tuple(how.items()))


@lru_cache(maxsize=1)
def _loaded(name: str, device: str, how: tuple[tuple[str, Any], ...]) -> EditableModel:
    return load(name, device=device or None, **dict(how))


def _options(asked: Measuring, base: Path, cell: Cell) -> dict[str, Any]:
    """The suite's options, with the folder of base images that all cells of this model share."""
    given: dict[str, Any] = {
        name: Path(value) if name in FILES and value else value for name, value in asked.options.items()
    }
    if isinstance(given.get("size"), list):
        given["size"] = tuple(given["size"])
    if "base_answers" in SUITES[asked.suite].options:
        of = {key: cell.settings.get(key) for key in ("loading", "pretrained_model")}
        given["base_answers"] = (
            base / f"{slug(Path(cell.model).name) or 'model'}-{digest([cell.model, of])}" / asked.suite
        )
    return given


class Counter:
    """Counts model evaluations: the latents that the networks of watched diffusion models are called with."""

    def __init__(self) -> None:
        self.count = 0
        self._handles: list[Any] = []

    def watch(self, model: Any) -> None:
        """Count from now on. Models of another kind make no images, and are not counted."""
        if isinstance(model, DiffusionModel):
            self._handles.append(model.backbone.register_forward_pre_hook(self._add, with_kwargs=True))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, module: torch.nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.count += len(given[0] if given else named["sample"])


def most_memory() -> float:
    """The most memory that this process had, in GiB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**30 if sys.platform == "darwin" else 2**20), 3)
