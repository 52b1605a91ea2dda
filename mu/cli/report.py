"""``mu report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(help="The page. Default: report.html in the run, comparison.html beside runs.")
    ] = None,
) -> None:
    """Write the page of a run again, or compare several. Needs no model.

    Example: mu report outputs/neon outputs/star --out comparison.html
    """
    from mu.core.run import RunDirectory
    from mu.report import write_report

    print(write_report([RunDirectory(run) for run in runs], out))
