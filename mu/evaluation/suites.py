"""The suites: each measures a run's edit against its base model by one stated protocol."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from mu.core.errors import ConfigError, nearest
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.edits.edit import Edit
from mu.models.diffusion import DiffusionModel

SUITES = {"canvas": "mu.evaluation.canvas:evaluate"}


def evaluate(
    run: RunDirectory, suite: str, model: DiffusionModel, edit: Edit, *, seeds: Sequence[int] = (188, 288, 588, 688),
    base_answers: Path | None = None,
) -> dict[str, list[Score]]:  # fmt: skip
    """Scores of the base and of the edited model, in one table; written to ``scores.json``.

    ``base_answers`` is where the base model's pictures are kept, so that several runs share them.
    """
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}.{nearest(suite, SUITES)}")
    module, _, name = SUITES[suite].partition(":")
    table = getattr(import_module(module), name)(run, model, edit, seeds=seeds, base_answers=base_answers)
    run.write_scores(table)
    return table
