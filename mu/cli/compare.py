"""``mu compare``: a table of several runs' scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with scores; see mu evaluate.")],
    json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, with the best value of each column in bold.")
    ] = False,
) -> None:
    """Print the scores of several runs side by side. Different protocols never share a column.

    Example: mu compare outputs/neon outputs/star --markdown
    """
    from mu.cli.output import print_json, print_table
    from mu.core.errors import ConfigError
    from mu.report.table import score_table

    if json and markdown:
        raise ConfigError("--json and --markdown exclude each other: choose one")
    table = score_table(runs)
    if json:
        print_json(table.to_json())
    elif markdown:
        print(table.markdown())
    else:
        lines = [["run", "method", "concepts", *table.headings()]]
        lines += [[row.run, row.method, ", ".join(row.concepts), *table.cells(row)] for row in table.rows]
        if len(lines[0]) > len(lines):  # with fewer runs than scores, a column for each run fits a terminal
            lines = [list(column) for column in zip(*lines, strict=True)]
        print_table(lines[0], lines[1:])
