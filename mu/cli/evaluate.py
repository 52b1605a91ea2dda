"""``mu evaluate``: measure a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mu.cli.options import ClipSkip, Device, Json, Precision, PredictionType, RunFolder, named, whole_numbers
from mu.core.errors import ConfigError

if TYPE_CHECKING:
    from mu.core.scores import Score, Table


def evaluate(
    run: RunFolder,
    suite: Annotated[
        str | None,
        typer.Option(
            help="What to measure, by a stated protocol: canvas, concept, unlearncanvas, celebrities, imagenette, "
            "clip, vlm. Default: the suite for the model."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="What looks at the images: clip:MODEL (any concept), classifier:FOLDER, canvas, resnet50, nudenet, "
            "unlearncanvas:FILE, q16:FILE. Repeat it for unlearncanvas, which has two. Default: the suite's own."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Score the edited model's images in DIR, made elsewhere; RUN is then a new folder for the results.",
        ),
    ] = None,
    base_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --images: the base model's images.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --images: score what is there if images are missing.")
    ] = False,
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="With --images: the erased concept; repeat for several."),
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
    reference: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of real images, for FID.")] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A concept that must stay; repeat for several. Default: the nearest ones."),
    ] = None,
    synonym: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Another text or spelling of the erased concept; repeat for several."),
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
            "imagenet:FOLDER; clip: also forget:SOURCE, val:SOURCE, mia:released; vlm: also FILE.csv (image, question, "
            "answer)."
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
            metavar="K/N",
            help="Make only every N-th image, from the K-th on: machines share the work. Then score without it.",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = "float32",
    clip_skip: ClipSkip = None,
    prediction_type: PredictionType = None,
    json: Json = False,
) -> None:
    """Measure what a run erased and what it retained. Updates scores.json and the report.

    Example: mu evaluate outputs/neon --base-answers outputs/answers
    Example: mu evaluate outputs/van-gogh --judge clip:openai/clip-vit-large-patch14 --retain Monet --retain "pop art"
    Example: mu evaluate results --suite unlearncanvas --images eval_results/esd/Van_Gogh --concept "Van Gogh"
    """
    from mu.cli.output import print_json, print_table
    from mu.core.compute import pick_device
    from mu.core.concept import distinct
    from mu.core.program import show_log
    from mu.core.run import RunDirectory
    from mu.edits.files import open_edit
    from mu.evaluation.answers import Shard
    from mu.evaluation.suites import evaluate as measured
    from mu.evaluation.suites import evaluate_found, suite_for
    from mu.models import load
    from mu.models.load_options import loading
    from mu.report import write_report

    show_log()
    chosen, numbers = RunDirectory(run), whole_numbers(seeds, "--seeds") if seeds is not None else None
    part = Shard.parse(shard) if shard else None
    options: dict[str, Any] = {
        "base_answers": base_answers, "data": data, "judge": judge, "retain": retain, "synonyms": synonym, "clip": clip,
        "everyday": everyday, "steps": steps, "guidance": guidance, "shard": part, "variant": variant,
        "themes": named(themes, "--themes"), "objects": named(objects, "--objects"), "reference": reference,
    }  # fmt: skip
    if images is not None:
        if not (suite and concept) or model:
            raise ConfigError(
                "--images needs --suite NAME and --concept TEXT, and takes no --model: no model is loaded"
            )
        table = evaluate_found(
            chosen, suite, distinct(concept), images, base_images=base_images, allow_missing=allow_missing,
            seeds=numbers, device=pick_device(device), **options,
        )  # fmt: skip
    else:
        if base_images or allow_missing or concept:
            option = "--base-images" if base_images else "--allow-missing" if allow_missing else "--concept"
            raise ConfigError(f"{option} is for images made elsewhere: add --images DIR, or leave it out")
        chosen.require_edit()
        edit = open_edit(chosen.edit)
        name = (chosen.read_environment().get("model") or "canvas") if model is None else model
        how = loading(name, [edit.info], clip_skip=clip_skip, prediction_type=prediction_type)
        base = load(name, device=device, precision=precision, **how)
        table = measured(chosen, suite or suite_for(base), base, edit, seeds=numbers, **options)
    if part and not table:
        return
    report = write_report(chosen)
    if json:
        print_json({column: [score.to_json() for score in scores] for column, scores in table.items()})
        return
    print_table(["score", *table, "n", "better"], _rows(table))
    for doubt in dict.fromkeys(score.doubt for scores in table.values() for score in scores if score.doubt):
        print(f"withheld: {doubt}, so it cannot tell whether the concept is gone")
    print(f"report  {report}")


def _rows(table: Table) -> list[list[str]]:
    """A row for each score: its value and 95 % interval in every column."""
    from mu.core.metrics import SHARE, metric_of
    from mu.report.measures import value_text

    columns = {column: {score.name: score for score in scores} for column, scores in table.items()}
    known = {score.name: score for scores in table.values() for score in scores}

    def cell(score: Score | None) -> str:
        if score is None:
            return ""
        share = (metric := metric_of(score.name)) is not None and metric.unit == SHARE
        shown = [value_text(value, share) for value in (score.value, *(score.interval or ()))]
        return "withheld" if score.doubt else shown[0] + (f" [{shown[1]}, {shown[2]}]" if score.interval else "")

    return [
        [name, *(cell(scores.get(name)) for scores in columns.values()), str(score.n), score.direction]
        for name, score in known.items()
    ]
