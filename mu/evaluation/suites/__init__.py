"""The suites. Each compares a run's edited model with its base by one stated protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from mu.core.errors import ConfigError, DataError, ModelError, OutputError, nearest, quoted, titled
from mu.core.evidence import changed_images, changed_panels, hardware, note_files, note_panels, note_scores
from mu.core.files import write_json
from mu.core.judged import keep_base
from mu.core.lock import locked
from mu.core.records import Prompt, checked
from mu.core.run import RunDirectory, versions
from mu.core.scores import Table
from mu.core.workers import WHOLE, Shard
from mu.diffusion.image_folder import RECIPE, ImageRow
from mu.edits.bank import Bank
from mu.edits.edit import Edit, base_fingerprint
from mu.edits.gates import gate_to_json
from mu.evaluation.answers import Answers, Found, Images, Subject, bases_beside
from mu.evaluation.audit import check_erases
from mu.evaluation.comparing import put_samples
from mu.evaluation.judges import check_judge
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.diffusion.base import check_steps
from mu.models.parameters import EditableModel
from mu.models.vision_language import VisionLanguageModel

log = logging.getLogger("mu")


OTHER_SEEDS = 1_000_000
"""Suite canvas adds it to the seeds, for the reference images of its Fréchet distance."""


class Suite(NamedTuple):
    """Where the suite is, the kind of model that it measures, and the options that it takes.

    ``place`` is a function that returns the table and how it was measured, which the run's evidence notes; or, with
    ``makes_images``, a class like `mu.evaluation.suites.concept.ConceptSuite`: the images that it needs are made here,
    whole or by shards, before its ``score`` is called. If no suite is named, it is the one that is ``made_for`` the
    model, a function that says so, else the ``default`` of its kind. ``judges`` is how many judges it takes, ``seeds``
    are its own.
    """

    place: str
    kind: type
    what: str
    options: frozenset[str] = frozenset()
    default: bool = False
    made_for: str = ""
    makes_images: bool = False
    judges: int = 1
    seeds: tuple[int, ...] = (188, 288, 588, 688)
    further_seeds: int = 0
    """The suite also uses seeds that are higher than the given ones by this number."""


class ImageSuite(Protocol):
    """A measurement of a diffusion model by images of stated prompts and seeds: its class takes `Subject` and seeds.

    Where it takes the option ``images``, the images of ``rows`` may be made elsewhere, and some may be missing: it
    scores `Images.here`, and has no column ``base`` without the base's images.
    """

    rows: Sequence[ImageRow]
    only_base: Sequence[ImageRow]
    """Images of which the base alone makes more, such as a reference at other seeds."""
    steps: int
    guidance: float

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]: ...


_MADE = frozenset({"base_answers", "steps", "guidance", "shard"})
"""The options of every suite that makes images."""
_FOUND = frozenset({"images", "base_images", "allow_missing"})
"""The options of every suite that scores images made elsewhere."""
_LISTED = _MADE | _FOUND | {"prompts", "columns", "size"}
"""The options of every suite of a prompt file."""

SUITES = {
    "canvas": Suite(
        "mu.evaluation.suites.canvas:evaluate",
        DiffusionModel,
        "a diffusion model",
        frozenset({"base_answers"}),
        made_for="mu.evaluation.suites.canvas:seems_embedded",
        further_seeds=OTHER_SEEDS,
    ),
    "worlds": Suite(
        "mu.evaluation.suites.worlds:WorldsSuite", DiffusionModel, "a diffusion model", _MADE, makes_images=True
    ),
    "concept": Suite(
        "mu.evaluation.suites.concept:ConceptSuite",
        DiffusionModel,
        "a diffusion model",
        frozenset({"judge", "clip", "retain", "synonyms", "everyday", "tuning"}) | _MADE | _FOUND,
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
    "unlearncanvas": Suite(
        "mu.evaluation.suites.unlearncanvas:UnlearnCanvasSuite",
        DiffusionModel,
        "a diffusion model",
        frozenset({"judge", "variant", "themes", "objects", "reference", "inception"}) | _MADE | _FOUND,
        makes_images=True,
        judges=2,
        seeds=(188, 288, 588, 688, 888),
    ),
    "celebrities": Suite(
        "mu.evaluation.suites.named:CelebritySuite",
        DiffusionModel,
        "a diffusion model",
        frozenset({"judge", "retain", "prompts", "columns"}) | _MADE | _FOUND,
        makes_images=True,
        seeds=(1, 2, 3, 4, 5),
    ),
    "imagenette": Suite(
        "mu.evaluation.suites.named:ImagenetteSuite",
        DiffusionModel,
        "a diffusion model",
        frozenset({"judge", "prompts", "columns"}) | _MADE | _FOUND,
        makes_images=True,
        seeds=tuple(range(10)),
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
    run: RunDirectory, suite: str, model: EditableModel, edit: Edit | Bank, *, seeds: Sequence[int] | None = None,
    **options: Any,
) -> Table:  # fmt: skip
    """Score the base and the edited model; the table replaces the suite's earlier one in ``scores.json``.

    ``seeds`` are the suite's own by default. ``options`` are those of the suite; None and empty ones count as not
    given. ``base_answers`` is the folder in which suites keep the base model's images, so that several runs can share
    them. ``data`` names the data of suites clip and vlm; the edit's settings are the default. ``shard`` makes only its
    part of the images, and the table is empty.
    Raises `ConfigError` for an unknown suite or an option that the suite does not take, and `ModelError` for a model of
    another kind.
    """
    chosen, seeds, given = check_options(suite, seeds, options)
    if not isinstance(model, chosen.kind):
        raise ModelError(
            f"suite {suite} measures {chosen.what}, and {titled(model.name)} is not one: choose suite "
            f"{suite_for(model)}"
        )
    for name in sorted(given.keys() & _FOUND):
        raise ConfigError(f"{name} is for images made elsewhere, and these are made here: leave it out")
    if given.get("base_answers"):
        _check_answers(run, given["base_answers"])
    bank = edit if isinstance(edit, Bank) else Bank(model, [edit])
    check_erases(bank)
    _check_run(run)
    found = _imported(chosen.place)
    if given.get("shard", WHOLE) != WHOLE:
        _make_shard(run, suite, found, bank, seeds, **given)
        return {}
    given.pop("shard", None)
    with run.alone(), run.logged():
        for folder in _own_folders(run, suite):
            _remake(run, folder)
        panels = changed_panels(run)
        base = base_fingerprint(model)
        if chosen.makes_images:
            table, how = _measured(run, suite, found, bank, seeds, **given)
        elif len(bank.on) > 1:
            raise ConfigError(f"suite {suite} measures one edit, and {len(bank.on)} are on: choose suite concept")
        else:
            table, how = found(run, model, bank.on[0], seeds=seeds, **given)
            keep_base(run, suite, given.get("base_answers"))
        run.write_scores(suite, table)
        compiled = {"compiled": True} if getattr(model, "compiles", False) else {}
        note_scores(run, suite, **hardware(model), base=base, how={"seeds": list(seeds), **compiled, **how})
        note_files(run, *_own_folders(run, suite), run.similarity, run.asked(suite))
        note_panels(run, panels)
    return table


def evaluate_found(
    run: RunDirectory, suite: str, concepts: Sequence[str], images: Path, *, base_images: Path | None = None,
    allow_missing: bool = False, seeds: Sequence[int] | None = None, device: torch.device | str = "cpu",
    **options: Any,
) -> Table:  # fmt: skip
    """Score images that were made elsewhere, under the names that the suite gives them; no model is loaded.

    The results go to ``run``, a folder without an edit. ``images`` holds those of the model whose ``concepts`` were
    erased, ``base_images`` those of its base; without these there is no column ``base``, and the verdict says so.
    Raises `DataError` for missing images, of which ``allow_missing`` scores the others: every protocol's name then says
    how many. Raises `OutputError` for a folder of results that holds a run, or results for other concepts or images.
    """
    chosen, seeds, given = check_options(suite, seeds, options)
    if "images" not in chosen.options:
        able = ", ".join(name for name, each in SUITES.items() if "images" in each.options)
        raise ConfigError(f"suite {suite} cannot score images made elsewhere: choose {able}")
    for name in sorted(given.keys() & (_MADE | {"size"})):
        raise ConfigError(f"{name} is for images made here, and these were made elsewhere: leave it out")
    found = Found(images, base_images, torch.device(device))
    found.check()
    _check_results(run, concepts, images, base_images)
    subject = Subject(tuple(concepts), None, found.device, found.samples)
    planned: ImageSuite = _imported(chosen.place)(subject, seeds, **given)
    rows = found.here(planned.rows)
    missing = found.missing(planned.rows)
    if missing and not (allow_missing and rows):
        raise DataError(_told_missing(missing, len(planned.rows) * len(found.columns), len(rows)))
    found.check_pairs(rows)
    if missing:
        log.warning(
            "%d images are missing, such as %s: %d of %d prompts are scored",
            len(missing),
            missing[0].name,
            len(rows),
            len(planned.rows),
        )
    if others := found.others(planned.rows):
        log.warning("images that enter no number: %d, such as %s", len(others), others[0])
    with run.alone(), run.logged():
        panels = changed_panels(run)
        table, how = planned.score(run, found)
        put_samples(run, found, rows, concepts, suite)
        if missing:
            table = _named(table, f"{len(rows)} of {len(planned.rows)} images")
        if not run.environment.exists():
            write_json(run.environment, {"versions": versions(), "method": "images", "concepts": list(concepts)})
        run.describe({_PLACES: {**_places_before(run), **_places(images, base_images)}})
        run.write_scores(suite, table)
        about = {"images made elsewhere": found.described(rows), "missing images": len(missing)}
        about |= {"other images in the folders": len(others)} if others else {}
        note_scores(run, suite, device=str(found.device), how={"seeds": list(seeds), **about, **how})
        note_panels(run, panels)
    return table


_PLACES = "images made elsewhere"
"""Key of ``environment.json``: the folder of each column, so that two models never share one folder of results."""


def _places(images: Path, base_images: Path | None) -> dict[str, str]:
    found = {"edited": images, "base": base_images}
    return {column: str(folder.resolve()) for column, folder in found.items() if folder}


def _places_before(run: RunDirectory) -> dict[str, str]:
    """What earlier suites noted in ``run``; empty for a new folder."""
    if not run.environment.exists():
        return {}
    places: dict[str, str] = checked(run.environment, run.read_environment().get(_PLACES, {}), dict[str, str], _PLACES)
    return places


def _named(table: Table, departure: str) -> Table:
    """``table`` with ``departure`` in the protocol's name of every score."""
    return {
        column: [replace(score, protocol=f"{score.protocol}, {departure}") for score in scores]
        for column, scores in table.items()
    }


def _told_missing(missing: Sequence[Path], asked: int, there: int) -> str:
    names = ", ".join(path.name for path in missing[:4]) + (", ..." if len(missing) > 4 else "")
    advice = (
        f"or pass --allow-missing to score the {there} prompts that are there" if there else "or name another folder"
    )
    folders = " and ".join(str(folder) for folder in dict.fromkeys(path.parent for path in missing))
    return f"{len(missing)} images of {asked} are missing in {folders}: {names}; make them, {advice}"


def taking(suite: str, options: Iterable[str]) -> Suite:
    """The suite of this name. Raises `ConfigError` if there is none, and if it takes no option of the names given."""
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {quoted(suite)}.{nearest(suite, SUITES)}")
    for name in sorted({*options} - SUITES[suite].options):
        raise ConfigError(f"suite {suite} takes no {name}: leave it out")
    return SUITES[suite]


def check_options(
    suite: str, seeds: Sequence[int] | None, options: dict[str, Any]
) -> tuple[Suite, Sequence[int], dict[str, Any]]:
    """The suite, its seeds, and the options that were given. Raises `ConfigError` as `evaluate` does."""
    given = {name: value for name, value in options.items() if value not in (None, (), [], "")}
    chosen = taking(suite, given)
    if "steps" in given:
        check_steps(given["steps"])
    if "judge" in given:
        judges = [*map(str, given["judge"])] if isinstance(given["judge"], list | tuple) else [str(given["judge"])]
        if len(judges) > chosen.judges:
            raise ConfigError(f"suite {suite} takes {chosen.judges} judge(s), not {len(judges)}: leave some out")
        for judge in judges:
            check_judge(judge)
        given["judge"] = judges if chosen.judges > 1 else judges[0]
    seeds = chosen.seeds if seeds is None else seeds
    for seed in seeds:
        if not 0 <= seed < 2**64 - chosen.further_seeds:
            raise ConfigError(
                f"seed {seed} is not possible with suite {suite}: give one from 0 to {2**64 - 1 - chosen.further_seeds}"
            )
    if len({*seeds}) < len(seeds):
        raise ConfigError(f"a seed is named twice in {', '.join(map(str, seeds))[:60]}: name each once")
    return chosen, seeds, given


def _check_run(run: RunDirectory) -> None:
    """Damaged files fail here, before the work."""
    run.check()
    for read in (run.read_scores, run.read_panels):
        read()


def _check_results(run: RunDirectory, concepts: Sequence[str], images: Path, base_images: Path | None) -> None:
    """Raise `OutputError` if ``run`` cannot hold the results of images made elsewhere."""
    if run.edit.exists() or run.bank.exists():
        raise OutputError(
            f"{run.folder} holds a run, and whether its edit made these images is unknown: choose another folder"
        )
    place = run.folder.resolve()
    for folder in filter(None, (images, base_images)):
        if place.is_relative_to(folder.resolve()):
            raise OutputError(f"{run.folder} lies in the images' folder: choose a folder outside {folder}")
    if place.exists() and not place.is_dir():
        raise OutputError(f"{run.folder} is a file and not a folder: choose another name")
    own = {run.log.name, ".lock"}
    if not run.environment.exists() and any(path.name not in own for path in place.glob("*")):
        raise OutputError(f"{run.folder} holds other files: choose a new folder for the results")
    known = run.origin().concept_names() if run.environment.exists() else list(concepts)
    if known != list(concepts):
        raise OutputError(f"{run.folder} holds results for {', '.join(known)}: choose another folder")
    before = _places_before(run)
    for column, used in _places(images, base_images).items():
        if before.get(column, used) != used:
            raise OutputError(f"{run.folder} holds results of the images in {before[column]}: choose another folder")
    _check_run(run)


def _imported(place: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _measured(
    run: RunDirectory, suite: str, kind: Callable[..., ImageSuite], bank: Bank, seeds: Sequence[int],
    base_answers: Path | None = None, **options: Any,
) -> tuple[Table, dict[str, Any]]:  # fmt: skip
    planned = kind(Subject.of(bank), seeds, **options)
    answers = _answers(run, suite, bank, planned, base_answers)
    answers.make(planned.rows, planned.only_base)
    prompts = [Prompt(case_number=row.name, prompt=row.prompt, seed=row.seed) for row in planned.rows]
    write_json(run.asked(suite), [prompt.model_dump(exclude_defaults=True) for prompt in prompts])
    table, how = planned.score(run, answers)
    keep_base(run, suite, answers.base if base_answers else None)
    return table, {"gates": [gate_to_json(edit.gate) for edit in bank.on], **how}


def _make_shard(
    run: RunDirectory, suite: str, kind: Callable[..., ImageSuite], bank: Bank, seeds: Sequence[int], shard: Shard,
    base_answers: Path | None = None, **options: Any,
) -> None:  # fmt: skip
    """Make one shard's images in a folder of its own. `evaluate` without a shard gathers them and makes the rest."""
    planned = kind(Subject.of(bank), seeds, **options)
    answers = _answers(run, suite, bank, planned, base_answers).of_shard(shard)
    with locked(answers.edited.parent):
        answers.make(shard.of(planned.rows), shard.of(planned.only_base))
    log.info("shard %d/%d is made", shard.k, shard.n)


def _answers(run: RunDirectory, suite: str, bank: Bank, planned: ImageSuite, base_answers: Path | None) -> Answers:
    place = run.answers / suite
    others = bases_beside(run, suite)
    answers = Answers(bank, place / "base", place / "edited", planned.steps, planned.guidance, others=others)
    return answers.sharing(base_answers) if base_answers else answers


def _own_folders(run: RunDirectory, suite: str) -> list[Path]:
    """The folders of the images that ``suite`` judges; another suite's evidence is none of its business."""
    home = run.answers if suite == "canvas" else run.answers / suite
    return [folder for folder in run.answer_folders() if folder.parent == home]


def _check_answers(run: RunDirectory, folder: Path) -> None:
    """Raise `OutputError` if ``folder`` cannot hold answers of the base: it is a file, or another folder of the run."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file and not a folder: choose another place for the base's answers")
    place, own = folder.resolve(), run.folder.resolve()
    if place.is_relative_to(own) and place != (run.answers / "base").resolve():
        raise OutputError(f"{folder} belongs to the run itself: choose a folder outside {run.folder}")
    if (
        folder.is_dir()
        and any(path.suffix in (".png", ".jpg") for path in folder.glob("*"))
        and not (folder / RECIPE).exists()
    ):
        raise OutputError(f"how the images in {folder} were made is unknown: choose another folder")


def _remake(run: RunDirectory, folder: Path) -> None:
    """Delete images that were changed after they were made, so that the suite makes them again."""
    changed = changed_images(run, folder)
    if changed:
        log.warning("%d images in %s were changed after they were made: they are made again", len(changed), folder)
    for path in changed:
        path.unlink()
