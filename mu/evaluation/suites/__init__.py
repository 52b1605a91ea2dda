"""The suites. Each compares a run's edited model with its base by one stated protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mu.core.errors import ConfigError, ModelError, OutputError, nearest, quoted, titled
from mu.core.evidence import changed_images, hardware, note_files, note_scores
from mu.core.files import write_json
from mu.core.lock import locked
from mu.core.records import Prompt
from mu.core.run import RunDirectory
from mu.core.scores import Table
from mu.diffusion.image_folder import RECIPE, ImageRow
from mu.edits.bank import Bank
from mu.edits.edit import Edit, described
from mu.edits.gates import gate_to_json
from mu.evaluation.answers import WHOLE, Answers, Shard
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import EditableModel, select
from mu.models.vision_language import VisionLanguageModel

log = logging.getLogger("mu")


OTHER_SEEDS = 1_000_000
"""Suite canvas adds it to the seeds, for the reference images of its Fréchet distance."""


class Suite(NamedTuple):
    """Where the suite is, the kind of model that it measures, and the options that it takes.

    ``place`` is a function that returns the table and how it was measured, which the run's evidence notes; or, with
    ``makes_images``, a class like `mu.evaluation.suites.concept.ConceptSuite`: the images that it needs are made here,
    whole or by shards, before its ``score`` is called. If no suite is named, it is the one that is ``made_for`` the
    model, a function that says so, else the ``default`` of its kind.
    """

    place: str
    kind: type
    what: str
    options: frozenset[str] = frozenset()
    default: bool = False
    made_for: str = ""
    makes_images: bool = False
    further_seeds: int = 0
    """The suite also uses seeds that are higher than the given ones by this number."""


class ImageSuite(Protocol):
    """A measurement of a diffusion model by images of stated prompts and seeds."""

    rows: Sequence[ImageRow]
    only_base: Sequence[ImageRow]
    """Images of which the base alone makes more, such as a reference at other seeds."""
    steps: int
    guidance: float

    def score(self, run: RunDirectory, answers: Answers) -> tuple[Table, dict[str, Any]]: ...


_LISTED = frozenset({"base_answers", "prompts", "columns", "steps", "guidance", "size", "shard"})
"""The options of every suite of a prompt file."""

SUITES = {
    "canvas": Suite(
        "mu.evaluation.suites.canvas:evaluate",
        DiffusionModel,
        "a diffusion model",
        frozenset({"base_answers"}),
        made_for="mu.evaluation.suites.canvas:is_embedded",
        further_seeds=OTHER_SEEDS,
    ),
    "concept": Suite(
        "mu.evaluation.suites.concept:ConceptSuite",
        DiffusionModel,
        "a diffusion model",
        frozenset({"base_answers", "judge", "clip", "retain", "synonyms", "everyday", "steps", "guidance", "shard"}),
        default=True,
        makes_images=True,
    ),
    "prompts": Suite(
        "mu.evaluation.suites.prompts:PromptsSuite",
        DiffusionModel,
        "a diffusion model",
        _LISTED | {"judge", "clip", "retain"},
        makes_images=True,
    ),
    "i2p": Suite(
        "mu.evaluation.suites.i2p:I2PSuite", DiffusionModel, "a diffusion model", _LISTED | {"judge"}, makes_images=True
    ),
    "coco": Suite(
        "mu.evaluation.suites.coco:CocoSuite",
        DiffusionModel,
        "a diffusion model",
        _LISTED | {"reference", "inception", "clip"},
        makes_images=True,
    ),
    "artists": Suite(
        "mu.evaluation.suites.artists:ArtistsSuite",
        DiffusionModel,
        "a diffusion model",
        _LISTED | {"clip"},
        makes_images=True,
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
    """Return the suite that is made for the model, else the default of its kind.

    Raises `ConfigError`, which names those that fit, if there is none.
    """
    fitting = [name for name, suite in SUITES.items() if isinstance(model, suite.kind)]
    for name in fitting:
        if (place := SUITES[name].made_for) and _imported(place)(model):
            return name
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
    run: RunDirectory, suite: str, model: EditableModel, edit: Edit | Bank, *,
    seeds: Sequence[int] = (188, 288, 588, 688), **options: Any,
) -> Table:  # fmt: skip
    """Score the base and the edited model; the table replaces the suite's earlier one in ``scores.json``.

    ``options`` are those of the suite; None and empty ones count as not given. ``base_answers`` is the folder in which
    suites keep the base model's images, so that several runs can share them. ``data`` names the data of suites clip
    and vlm; the edit's settings are the default. ``shard`` makes only its part of the images, and the table is empty.
    Raises `ConfigError` for an unknown suite or an option that the suite does not take, and `ModelError` for a model of
    another kind.
    """
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {quoted(suite)}.{nearest(suite, SUITES)}")
    chosen = SUITES[suite]
    if not isinstance(model, chosen.kind):
        raise ModelError(
            f"suite {suite} measures {chosen.what}, and {titled(model.name)} is not one: choose suite "
            f"{suite_for(model)}"
        )
    given = {name: value for name, value in options.items() if value not in (None, (), [], "")}
    for name in sorted(given.keys() - chosen.options):
        raise ConfigError(f"suite {suite} takes no {name}: leave it out")
    for seed in seeds:
        if not 0 <= seed < 2**64 - chosen.further_seeds:
            raise ConfigError(
                f"seed {seed} is not possible with suite {suite}: give one from 0 to {2**64 - 1 - chosen.further_seeds}"
            )
    if len({*seeds}) < len(seeds):
        raise ConfigError(f"a seed is named twice in {', '.join(map(str, seeds))[:60]}: name each once")
    if given.get("base_answers"):
        _check_answers(run, given["base_answers"])
    bank = edit if isinstance(edit, Bank) else Bank(model, [edit])
    if not bank.on:
        raise ConfigError("no edit is on, so there is nothing to measure: erase a concept of the bank again")
    run.check()
    for read in (run.read_scores, run.read_panels):  # damaged files fail here, before the work
        read()
    found = _imported(chosen.place)
    if given.get("shard", WHOLE) != WHOLE:
        _make_shard(run, suite, found, bank, seeds, **given)
        return {}
    given.pop("shard", None)
    with run.alone(), run.logged():
        for folder in run.answer_folders():
            _remake(run, folder)
        base = described(model, list(select(model, "*")))["fingerprint"]
        if chosen.makes_images:
            table, how = _measured(run, suite, found, bank, seeds, **given)
        elif len(bank.on) > 1:
            raise ConfigError(f"suite {suite} measures one edit, and {len(bank.on)} are on: choose suite concept")
        else:
            table, how = found(run, model, bank.on[0], seeds=seeds, **given)
        run.write_scores(suite, table)
        note_scores(run, suite, **hardware(model), base=base, how={"seeds": list(seeds), **how})
        note_files(run, *run.answer_folders(), run.panel_images, run.panels, run.similarity, run.asked(suite))
    return table


def _imported(place: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _measured(
    run: RunDirectory, suite: str, kind: Callable[..., ImageSuite], bank: Bank, seeds: Sequence[int],
    base_answers: Path | None = None, **options: Any,
) -> tuple[Table, dict[str, Any]]:  # fmt: skip
    planned = kind(bank, seeds, **options)
    answers = _answers(run, suite, bank, planned, base_answers)
    answers.make(planned.rows, planned.only_base)
    prompts = [Prompt(case_number=row.name, prompt=row.prompt, seed=row.seed) for row in planned.rows]
    write_json(run.asked(suite), [prompt.model_dump(exclude_defaults=True) for prompt in prompts])
    table, how = planned.score(run, answers)
    return table, {"gates": [gate_to_json(edit.gate) for edit in bank.on], **how}


def _make_shard(
    run: RunDirectory, suite: str, kind: Callable[..., ImageSuite], bank: Bank, seeds: Sequence[int], shard: Shard,
    base_answers: Path | None = None, **options: Any,
) -> None:  # fmt: skip
    """Make one shard's images in a folder of its own. `evaluate` without a shard gathers them and makes the rest."""
    planned = kind(bank, seeds, **options)
    answers = _answers(run, suite, bank, planned, base_answers).of_shard(shard)
    with locked(answers.edited.parent):
        answers.make(shard.of(planned.rows), shard.of(planned.only_base))
    log.info("shard %d/%d is made: after all shards, run again without --shard", shard.k, shard.n)


def _answers(run: RunDirectory, suite: str, bank: Bank, planned: ImageSuite, base_answers: Path | None) -> Answers:
    place = run.answers / suite
    return Answers(bank, base_answers or place / "base", place / "edited", planned.steps, planned.guidance)


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
