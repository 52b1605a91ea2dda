"""``mu compare``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs with scores, see mu evaluate.")],
    json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, the best of each column in bold.")
    ] = False,
) -> None:
    """Put the scores of runs side by side. Numbers of different protocols never share a column.

    Example: mu compare outputs/neon outputs/star --markdown
    """
    from mu.cli.output import print_json, print_table
    from mu.core.errors import ConfigError
    from mu.report.table import score_table

    if json and markdown:
        raise ConfigError("--json and --markdown are two forms of the same table: choose one")
    table = score_table(runs)
    if json:
        print_json(table.to_json())
    elif markdown:
        print(table.markdown())
    else:
        rows = [[row.run, row.method, ", ".join(row.concepts), *table.cells(row)] for row in table.rows]
        print_table(["run", "method", "concepts", *table.headings()], rows)
