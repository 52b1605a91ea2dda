"""Print tables for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

WIDEST = 10_000
"""Characters of a line into a file or a pipe."""


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table. Cells are shown literally, never parsed as markup, and no word is cut: into a file or a pipe the
    table is as wide as its words need, and in a narrow terminal they are broken."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=WIDEST)).minimum
        console.width = max(console.width, needed)
    console.print(table)
