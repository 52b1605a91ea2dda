"""``mu demo``: show the whole program on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Overwrite


def demo(
    out: Annotated[Path, typer.Option(help="The output folder.")] = Path("outputs/demo"), overwrite: Overwrite = False
) -> None:
    """Erase a style and an object from the embedded model, restore one, and write a report.

    Example: mu demo --out outputs/demo
    """
    from mu.core.program import show_log
    from mu.demo import run

    show_log()
    print(run(out, overwrite))
