"""``mu evaluate``: measure a run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mu.cli.options import (
    AUTO,
    ClipSkip,
    Compile,
    Device,
    Json,
    Overwrite,
    Precision,
    PredictionType,
    check_places,
    compiling,
    height_width,
    named,
    whole_numbers,
)
from mu.core.errors import ConfigError

if TYPE_CHECKING:
    from mu.core.run import RunDirectory
    from mu.core.scores import Table
    from mu.models.load_options import FoundOn


log = logging.getLogger("mu")


def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder.")] = None,
    edit: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|RUN|BANK", help="Measure this edit or bank; repeat for edits that act together."),
    ] = None,
    edited: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER",
            help="Measure these edited weights beside --model: a folder, hub id, file or LoRA, as in `mu import`.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Score images of an edited model that were made elsewhere, under the names that the suite gives them.",
        ),
    ] = None,
    base_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --images: the base model's images.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --images: score those that are there if some are missing.")
    ] = False,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="What --edit or --edited erases, if their files do not say, or what --images erased."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --edit, --edited or --images: the folder of the evidence.")
    ] = None,
    overwrite: Overwrite = False,
    suite: Annotated[
        str | None,
        typer.Option(
            help="What to measure, by a stated protocol: canvas, worlds, concept, prompts, i2p, coco, artists, "
            "unlearncanvas, celebrities, imagenette, clip, vlm. Default: the suite for the model."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="What looks at the images: clip:MODEL (any concept), classifier:FOLDER, canvas, resnet50, nudenet, "
            "unlearncanvas:FILE, q16:FILE. Repeat it for unlearncanvas, which has two. Default: the suite's own."
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A concept that must stay; repeat for several. Default: the nearest ones."),
    ] = None,
    synonym: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Another text or spelling of the erased concept; repeat for several."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The list of the suites prompts, i2p, coco and artists, or the papers' own of celebrities and "
            "imagenette: .csv, .json, .jsonl or .txt. Its seeds, guidance scales and sizes are obeyed.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="[FIELD=]NAME", help="The list's column of the prompts, or of a FIELD; repeat for more."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width of all images of the list. Default: its own.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Real images, with which the suites coco and unlearncanvas compare."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="How unlearncanvas averages: published, seed-images, no-seed-images, retained-only, saeuron. "
            "Default: published."
        ),
    ] = None,
    themes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="unlearncanvas: only these themes, comma-separated.")
    ] = None,
    objects: Annotated[
        str | None, typer.Option(metavar="NAMES", help="unlearncanvas: only these objects, comma-separated.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="torch-fidelity's Inception weights. Default: downloaded.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model. Default: the run's own.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the images, comma-separated. Default: the suite's own.")
    ] = None,
    base_answers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder that keeps the base model's images, so that several runs share them."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Data for clip and vlm. Default: the run's settings. Repeat for several: canvas, celeba:FOLDER, "
            "imagenet:FOLDER, classes:FOLDER (a folder of images for each class); clip: also forget:SOURCE, "
            "val:SOURCE, mia:released; vlm: also FILE.csv (image, question, answer)."
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The CLIP of the CLIP score and the features. Default: the judge's."),
    ] = None,
    everyday: Annotated[
        int | None, typer.Option(min=0, max=200, help="Number of everyday prompts. Default: all 200.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default: the protocol's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the protocol's.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N|auto",
            help="Make only every N-th image, from the K-th on: machines share the work. Then score without it. auto: "
            "a process for each GPU of this machine, or for each device of --device 0,1, makes its share; then score.",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = "float32",
    compile: Compile = False,
    clip_skip: ClipSkip = None,
    prediction_type: PredictionType = None,
    json: Json = False,
) -> None:
    """Measure what a run erased and what it retained. Updates scores.json and the report.

    Example: mu evaluate outputs/neon --base-answers outputs/answers
    Example: mu evaluate outputs/nudity --suite i2p --prompts i2p.csv --judge nudenet:mace
    Example: mu evaluate outputs/van-gogh --judge clip:openai/clip-vit-large-patch14 --retain Monet --retain "pop art"
    Example: mu evaluate --model base.safetensors --edited esd.pt --concept "Van Gogh" --out outputs/audit
    Example: mu evaluate --images results/Van_Gogh --suite unlearncanvas --concept "Van Gogh" --out outputs/esd
    """
    places = edit or []
    _check_asked(run, places, edited, images, concept, out)
    _check_images(
        images is not None, needs_suite=suite is None,
        for_images={"--base-images": base_images, "--allow-missing": allow_missing},
        for_models={
            "--model": model, "--precision": precision != "float32", "--compile": compile, "--clip-skip": clip_skip,
            "--prediction-type": prediction_type, "--shard auto": shard == AUTO,
        },
    )  # fmt: skip
    if overwrite and (run or images is not None):
        raise ConfigError("--overwrite is for --edit and --edited: a suite's scores are always replaced")
    from mu.core.concept import distinct
    from mu.core.files import check_regular
    from mu.core.program import show_log
    from mu.core.run import RunDirectory
    from mu.core.workers import devices_of

    show_log()
    numbers = None if seeds is None else whole_numbers(seeds, "--seeds")
    pixels = height_width(size) if size else None
    devices = devices_of(device) if shard == AUTO else []
    if run:
        RunDirectory(run).require_edit()
    if prompts:
        check_regular(prompts, "the prompt file")
    check_places(model, places, edited=edited)
    from mu.core.compute import pick_device
    from mu.core.workers import Shard
    from mu.evaluation.audit import begin, subject
    from mu.evaluation.parts import Loading, other_parts
    from mu.evaluation.suites import evaluate as measured
    from mu.evaluation.suites import evaluate_found, suite_for
    from mu.models import load
    from mu.models.formats.other_weights import check_weights
    from mu.models.load_options import loading

    if edited is not None:
        check_weights(edited)
    part = Shard.parse(shard) if shard and shard != AUTO else None
    options: dict[str, Any] = {
        "base_answers": base_answers, "data": data, "judge": judge, "retain": retain, "synonyms": synonym, "clip": clip,
        "everyday": everyday, "steps": steps, "guidance": guidance, "shard": part, "prompts": prompts,
        "columns": column, "size": pixels, "reference": reference, "inception": inception, "variant": variant,
        "themes": named(themes, "--themes"), "objects": named(objects, "--objects"),
    }  # fmt: skip
    if images is not None:
        assert out is not None and suite is not None
        table = evaluate_found(
            RunDirectory(out), suite, distinct(concept or []), images, base_images=base_images,
            allow_missing=allow_missing, seeds=numbers, device=pick_device(device), **options,
        )  # fmt: skip
        _tell(RunDirectory(out), table, concept or [], json)
        return
    chosen = RunDirectory(run) if run else None
    name, found = _base(chosen, places, model)
    how = loading(name, found, clip_skip=clip_skip, prediction_type=prediction_type)
    how = {"precision": precision, **how}
    base = load(name, device=devices[0] if devices else device, **how)
    compiling(base, compile)
    with _withdrawn(out if chosen is None else None):
        if chosen is None:
            assert out is not None
            chosen = begin(out, base, edits=places, edited=edited, concepts=concept or [], overwrite=overwrite)
        bank, suite = subject(chosen, base), suite or suite_for(base)
        if len(devices) > 1:
            loaded = Loading(name, how, compile)
            with other_parts(chosen.folder, suite, loaded, devices, numbers, options) as own:
                measured(chosen, suite, base, bank, seeds=numbers, **{**options, **own})
        table = measured(chosen, suite, base, bank, seeds=numbers, **options)
    if table or not part:
        _tell(chosen, table, [name for each in bank.on for name in each.info.concepts], json)
    else:
        log.info("after all %d shards, the same command without --shard scores them", part.n)


@contextmanager
def _withdrawn(folder: Path | None) -> Iterator[None]:
    """Delete ``folder`` if it is new, no image was made in it, and the block refuses what was asked.

    It stays where another process works, which began it at the same time."""
    from mu.core.errors import BusyError, MuError, OutputError
    from mu.core.lock import locked

    new = folder is not None and not os.path.lexists(folder)
    above = [each for each in folder.absolute().parents if not each.exists()] if folder else []
    try:
        yield
    except BusyError:
        raise
    except MuError:
        if new and folder:
            with suppress(OutputError), locked(folder):
                if not any(path.suffix in (".png", ".jpg") for path in folder.rglob("*")):
                    shutil.rmtree(folder, ignore_errors=True)
            for each in above:
                with suppress(OSError):
                    each.rmdir()
        raise


def _base(run: RunDirectory | None, edits: list[Path], model: str | None) -> tuple[str, list[FoundOn]]:
    """The name of the base model of what is measured, and what notes how it was loaded."""
    from mu.edits.bank_folder import BankFolder
    from mu.edits.files import open_edit
    from mu.evaluation.audit import is_bank
    from mu.models.load_options import base_of

    if run:
        name = (run.origin().model or "canvas") if model is None else model
        return name, [] if run.bank.exists() else [open_edit(run.edit).info]
    found: list[FoundOn] = [BankFolder(place).read() if is_bank(place) else open_edit(place).info for place in edits]
    return base_of(model, found), found


def _check_images(
    given: bool, *, needs_suite: bool, for_images: dict[str, object], for_models: dict[str, object]
) -> None:
    """Raise `ConfigError` for options that belong to --images without it, or to a model beside it."""
    wrong = next((name for name, value in (for_models if given else for_images).items() if value), "")
    if wrong:
        raise ConfigError(f"{wrong} is for {'a model, and --images loads none' if given else '--images'}: leave it out")
    if given and needs_suite:
        raise ConfigError("--images needs --suite: name what its files were made for")


def _tell(run: RunDirectory, table: Table, erased: list[str], json: bool) -> None:
    """Write the report, and print the table and what it decides."""
    from mu.cli.output import print_json, print_table
    from mu.report import write_report
    from mu.report.measures import doubted, measured
    from mu.report.verdict import losses, verdict

    report = write_report(run)
    if json:
        print_json({column: [score.told() for score in scores] for column, scores in doubted(table).items()})
        return
    print_table(["score", *table, "n", "better"], _rows(table))
    decided = verdict(run.origin().concept_names() or erased, scores := measured(run))
    print(f"report  {report}")
    for line in (*decided.sentences, *decided.withheld, *decided.missing, *losses(scores).fell):
        print(line)


def _check_asked(
    run: Path | None, edits: list[Path], edited: str | None, images: Path | None, concept: list[str] | None,
    out: Path | None,
) -> None:  # fmt: skip
    """Raise `ConfigError` if not exactly one thing is to be measured, or it has no folder for its evidence."""
    things = (("RUN", run), ("--edit", edits), ("--edited", edited), ("--images", images))
    asked = [name for name, given in things if given]
    if len(asked) != 1:
        told = f"{' and '.join(asked)} were given" if asked else "nothing was"
        raise ConfigError(f"name one thing to measure, a RUN, --edit, --edited or --images: {told}")
    if run and (concept or out):
        raise ConfigError(
            f"{'--concept' if concept else '--out'} is for --edit, --edited and --images: a RUN has its own"
        )
    if not run and out is None:
        raise ConfigError(f"{asked[0]} needs --out, a folder for the evidence")
    if edited and not concept:
        raise ConfigError("--edited needs --concept: its weights do not say what was erased")
    if images and not concept:
        raise ConfigError("--images needs --concept: images do not say what was erased")


def _rows(table: Table) -> list[list[str]]:
    """A row for each score: its value and 95 % interval in every column."""
    from mu.report.measures import suite_scores

    measures = suite_scores("", table).measures
    return [[m.name, *(m.cells[column].line for column in table), m.n, m.direction] for m in measures]
