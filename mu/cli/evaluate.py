"""``mu evaluate``: measure a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import ClipSkip, Device, Json, Precision, PredictionType, RunFolder, whole_numbers


def evaluate(
    run: RunFolder,
    suite: Annotated[
        str | None,
        typer.Option(
            help="What to measure, by a stated protocol: canvas, clip, vlm. Default: the suite for the model."
        ),
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
    device: Device = None,
    precision: Precision = "float32",
    clip_skip: ClipSkip = None,
    prediction_type: PredictionType = None,
    json: Json = False,
) -> None:
    """Measure what a run erased and what it retained. Updates scores.json and the report.

    Example: mu evaluate outputs/neon --base-answers outputs/answers
    """
    from mu.cli.output import print_json, print_table
    from mu.core.program import show_log
    from mu.core.run import RunDirectory
    from mu.edits.files import open_edit
    from mu.evaluation.suites import evaluate as measured
    from mu.evaluation.suites import suite_for
    from mu.models import load
    from mu.models.load_options import loading
    from mu.report import write_report

    show_log()
    chosen, numbers = RunDirectory(run), whole_numbers(seeds, "--seeds")
    chosen.require_edit()
    edit = open_edit(chosen.edit)
    name = (chosen.read_environment().get("model") or "canvas") if model is None else model
    how = loading(name, [edit.info], clip_skip=clip_skip, prediction_type=prediction_type)
    base = load(name, device=device, precision=precision, **how)
    table = measured(
        chosen, suite or suite_for(base), base, edit, seeds=numbers, base_answers=base_answers, data=data or []
    )
    report = write_report(chosen)
    if json:
        print_json({column: [score.to_json() for score in scores] for column, scores in table.items()})
        return
    columns = {column: {score.name: score for score in scores} for column, scores in table.items()}
    known = {score.name: score for scores in table.values() for score in scores}
    rows = [
        [
            name,
            *(f"{scores[name].value:.4g}" if name in scores else "" for scores in columns.values()),
            str(score.n),
            score.direction,
        ]
        for name, score in known.items()
    ]
    print_table(["score", *columns, "n", "better"], rows)
    print(f"report  {report}")
