"""``mu evaluate``: measure a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mu.cli.options import ClipSkip, Device, Json, Precision, PredictionType, RunFolder, whole_numbers

if TYPE_CHECKING:
    from mu.core.scores import Table


def evaluate(
    run: RunFolder,
    suite: Annotated[
        str | None,
        typer.Option(
            help="What to measure, by a stated protocol: canvas, concept, clip, vlm. Default: the suite for the model."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="What looks at the images: clip:MODEL (any concept), classifier:FOLDER, canvas, resnet50, nudenet, "
            "unlearncanvas:FILE, q16:FILE. Default: the suite's own."
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
    model: Annotated[str | None, typer.Option(help="The base model. Default: the run's own.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the images, comma-separated.")] = "188,288,588,688",
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
    """
    from mu.cli.output import print_json, print_table
    from mu.core.program import show_log
    from mu.core.run import RunDirectory
    from mu.edits.files import open_edit
    from mu.evaluation.answers import Shard
    from mu.evaluation.suites import evaluate as measured
    from mu.evaluation.suites import suite_for
    from mu.models import load
    from mu.models.load_options import loading
    from mu.report import write_report
    from mu.report.measures import measured as measured_scores
    from mu.report.verdict import losses, verdict

    show_log()
    chosen, numbers = RunDirectory(run), whole_numbers(seeds, "--seeds")
    chosen.require_edit()
    edit = open_edit(chosen.edit)
    name = (chosen.read_environment().get("model") or "canvas") if model is None else model
    how = loading(name, [edit.info], clip_skip=clip_skip, prediction_type=prediction_type)
    part = Shard.parse(shard) if shard else None
    base = load(name, device=device, precision=precision, **how)
    table = measured(
        chosen, suite or suite_for(base), base, edit, seeds=numbers, base_answers=base_answers, data=data,
        judge=judge, retain=retain, synonyms=synonym, clip=clip, everyday=everyday, steps=steps, guidance=guidance,
        shard=part,
    )  # fmt: skip
    if part and not table:
        return
    report = write_report(chosen)
    if json:
        print_json({column: [score.to_json() for score in scores] for column, scores in table.items()})
        return
    print_table(["score", *table, "n", "better"], _rows(table))
    decided = verdict(chosen.origin().concept_names() or edit.info.concepts, scores := measured_scores(chosen))
    print(f"report  {report}")
    for line in (*decided.sentences, *decided.withheld, *losses(scores).fell):
        print(line)


def _rows(table: Table) -> list[list[str]]:
    """A row for each score: its value and 95 % interval in every column."""
    from mu.report.measures import suite_scores

    measures = suite_scores("", table).measures
    return [[m.name, *(m.cells[column].line for column in table), m.n, m.direction] for m in measures]
