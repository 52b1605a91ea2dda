"""``mu report``: write a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.")],
    format: Annotated[
        str,
        typer.Option(metavar="html|md|json|pdf", help="Of the report of one run. A comparison is always html."),
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The output file. Default: report.html (.md, .json, .pdf) in the run, with manifest.json beside it; "
            "for several, comparison.html next to them."
        ),
    ] = None,
) -> None:
    """Write a run's report again, or a comparison of several runs. Needs no model.

    Example: mu report outputs/neon outputs/star --out comparison.html
    Example: mu report outputs/neon --format pdf
    """
    from mu.core.errors import ConfigError
    from mu.core.run import RunDirectory
    from mu.report import write_report

    ending = out.suffix.lower().removeprefix(".") if out else ""
    if ending in ("html", "md", "json", "pdf") and ending != format:
        raise ConfigError(f"--out ends in .{ending} and the format is {format}: make the two agree")
    print(write_report([RunDirectory(run) for run in runs], out, format))
