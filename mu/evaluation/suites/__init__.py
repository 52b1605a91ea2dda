"""The suites. Each compares a run's edited model with its base by one stated protocol."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mu.core.errors import ConfigError, ModelError, OutputError, nearest, quoted, titled
from mu.core.evidence import changed_images, hardware, note_files, note_scores
from mu.core.run import RunDirectory
from mu.core.scores import Table
from mu.diffusion.image_folder import RECIPE
from mu.edits.edit import Edit, described
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import EditableModel, select
from mu.models.vision_language import VisionLanguageModel

log = logging.getLogger("mu")


OTHER_SEEDS = 1_000_000
"""Suite canvas adds it to the seeds, for the reference images of its Fréchet distance."""


class Suite(NamedTuple):
    """The suite's function, the kind of model that it measures, and the options that it takes.

    The function returns the table and how it was measured, which the run's evidence notes.

    ``default`` marks the suite used for this kind of model if none is named.
    """

    place: str
    kind: type
    what: str
    options: frozenset[str] = frozenset()
    default: bool = False
    further_seeds: int = 0
    """The suite also uses seeds that are higher than the given ones by this number."""


SUITES = {
    "canvas": Suite(
        "mu.evaluation.suites.canvas:evaluate",
        DiffusionModel,
        "a diffusion model",
        frozenset({"base_answers"}),
        default=True,
        further_seeds=OTHER_SEEDS,
    ),
    "clip": Suite("mu.evaluation.suites.clip:evaluate", ClipModel, "a CLIP", frozenset({"data"}), default=True),
    "vlm": Suite(
        "mu.evaluation.suites.vlm:evaluate",
        VisionLanguageModel,
        "a vision-language model",
        frozenset({"data"}),
        default=True,
    ),
}


def suite_for(model: EditableModel) -> str:
    """Return the default suite for this kind of model. Without one, raises `ConfigError` and names those that fit."""
    fitting = [name for name, suite in SUITES.items() if isinstance(model, suite.kind)]
    defaults = [name for name in fitting if SUITES[name].default]
    if len(defaults) != 1:
        known = (
            f"pass --suite {' or '.join(fitting)}"
            if fitting
            else f"suites measure {', '.join(s.what for s in SUITES.values())}"
        )
        raise ConfigError(f"no suite is the default for a model like {titled(model.name)}: {known}")
    return defaults[0]


def evaluate(
    run: RunDirectory, suite: str, model: EditableModel, edit: Edit, *, seeds: Sequence[int] = (188, 288, 588, 688),
    base_answers: Path | None = None, data: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Score the base and the edited model; the table replaces the suite's earlier one in ``scores.json``.

    ``base_answers`` is the folder in which suite canvas keeps the base model's images, so that several runs can share
    them. ``data`` names the data of the other suites; the edit's settings are the default. Raises `ConfigError` for an
    unknown suite or an option that the suite does not take, and `ModelError` for a model of another kind.
    """
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {quoted(suite)}.{nearest(suite, SUITES)}")
    chosen = SUITES[suite]
    if not isinstance(model, chosen.kind):
        raise ModelError(
            f"suite {suite} measures {chosen.what}, and {titled(model.name)} is not one: choose suite "
            f"{suite_for(model)}"
        )
    given: dict[str, Any] = {name: value for name, value in (("base_answers", base_answers), ("data", data)) if value}
    for name in sorted(given.keys() - chosen.options):
        raise ConfigError(f"suite {suite} takes no {name}: leave it out")
    for seed in seeds:
        if not 0 <= seed < 2**64 - chosen.further_seeds:
            raise ConfigError(
                f"seed {seed} is not possible with suite {suite}: give one from 0 to {2**64 - 1 - chosen.further_seeds}"
            )
    if len({*seeds}) < len(seeds):
        raise ConfigError(f"a seed is named twice in {', '.join(map(str, seeds))[:60]}: name each once")
    if base_answers:
        _check_answers(run, base_answers)
    edit.check(model)
    run.check()
    for read in (run.read_scores, run.read_panels):  # damaged files fail here, before the work
        read()
    module, _, function = chosen.place.partition(":")
    with run.alone(), run.logged():
        for folder in (run.answers / "base", run.answers / "edited"):
            _remake(run, folder)
        base = described(model, list(select(model, "*")))["fingerprint"]
        table, how = getattr(import_module(module), function)(run, model, edit, seeds=seeds, **given)
        run.write_scores(suite, table)
        note_scores(run, suite, **hardware(model), base=base, how={"seeds": list(seeds), **how})
        note_files(run, run.answers / "base", run.answers / "edited", run.panels, run.similarity)
    return table


def _check_answers(run: RunDirectory, folder: Path) -> None:
    """Raise `OutputError` if ``folder`` cannot hold answers of the base: it is a file, or another folder of the run."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file and not a folder: choose another place for the base's answers")
    place, own = folder.resolve(), run.folder.resolve()
    if place.is_relative_to(own) and place != (run.answers / "base").resolve():
        raise OutputError(f"{folder} belongs to the run itself: choose a folder outside {run.folder}")
    if folder.is_dir() and any(folder.glob("*.png")) and not (folder / RECIPE).exists():
        raise OutputError(f"how the images in {folder} were made is unknown: choose another folder")


def _remake(run: RunDirectory, folder: Path) -> None:
    """Delete images that were changed after they were made, so that the suite makes them again."""
    changed = changed_images(run, folder)
    if changed:
        log.warning("%d images in %s were changed after they were made: they are made again", len(changed), folder)
    for path in changed:
        path.unlink()
