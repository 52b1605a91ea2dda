"""``mu cite``: print BibTeX entries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.core.errors import DataError


def cite(
    what: Annotated[str, typer.Argument(metavar="METHOD|RUN|EDIT", help="A method, a run folder or an edit file.")],
) -> None:
    """Print the BibTeX entry of a method, a run or an edit file.

    Example: mu cite spm
    """
    from mu.algorithms import ALGORITHMS, method
    from mu.core.algorithm import citation
    from mu.core.run import RunDirectory

    path = Path(what)
    if what in ALGORITHMS or not path.exists():
        found = citation(method(what))
    elif RunDirectory(path).environment.exists():
        found = str(RunDirectory(path).read_environment().get("citation", ""))
    else:
        from mu.edits.files import open_edit

        found = open_edit(path).info.citation
    if not found:
        raise DataError(f"{what} names no paper")
    print(found)
