"""``mu compare``: a table of several runs' scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with scores; see mu evaluate.")],
    json: Json = False,
    published: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE", help="Put published figures beside the runs: unlearncanvas, celebrities, nudity or speed."
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, with the best value of each column in bold.")
    ] = False,
) -> None:
    """Print the scores of several runs side by side. Different protocols never share a column.

    Several runs of one method in suite unlearncanvas also have their mean over requests, like the benchmark's table.
    Published figures have a table of their own: each row names its source and its variant of the protocol.

    Example: mu compare outputs/neon outputs/star --markdown
    Example: mu compare outputs/van-gogh --published unlearncanvas
    """
    from mu.cli.output import print_json, print_table
    from mu.core.errors import ConfigError
    from mu.evaluation.published import read_published
    from mu.evaluation.requests import NOTE, TITLE, over_requests
    from mu.report.table import markdown_lines, score_table

    if json and markdown:
        raise ConfigError("--json and --markdown exclude each other: choose one")
    beside = read_published(published) if published is not None else None
    table, requests = score_table(runs), over_requests(runs)
    if json:
        means = {"means over requests": [mean.to_json() for mean in requests.means]} if requests.means else {}
        print_json({**table.to_json(), **means, **({"published": beside.to_json()} if beside else {})})
    elif markdown:
        print(table.markdown())
        if requests.means:
            print("\n".join(["", f"**{TITLE}**", "", *markdown_lines(requests.lines()), "", NOTE]))
        if beside:
            print(
                "\n".join(["", f"**{beside.heading}**", "", *markdown_lines(beside.lines()), "", *beside.notes("- ")])
            )
    else:
        lines = [["run", "method", "concepts", *table.headings()]]
        lines += [[row.run, row.method, ", ".join(row.concepts), *table.cells(row)] for row in table.rows]
        if len(lines[0]) > len(lines):  # with fewer runs than scores, a column for each run fits a terminal
            lines = [list(column) for column in zip(*lines, strict=True)]
        print_table(lines[0], lines[1:])
        if requests.means:
            print_table(requests.lines()[0], requests.lines()[1:], title=TITLE)
            print(NOTE)
        if beside:
            first, *others = beside.lines()
            print_table(first, others, title=beside.heading)
            print("\n".join(beside.notes()))
    for note in requests.notes:
        print(note, file=sys.stderr)
