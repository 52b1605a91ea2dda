"""The page of a run: what was erased, images without and with the edit, scores, curves, settings and the citation.

Reads only a run's files (see `mu.core.run`); no model library is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mu.core.errors import DataError, OutputError
from mu.core.files import atomic_path, write_text, writing
from mu.core.run import RunDirectory
from mu.report.comparison import compare
from mu.report.images import PAIRS_SHOWN, ROLES
from mu.report.page import read_page


def write_report(run: RunDirectory | Sequence[RunDirectory], path: Path | str | None = None) -> Path:
    """Write the page of one run, or the comparison of several, and return its path.

    Default ``path``: ``report.html`` in the run's folder; for several runs ``comparison.html`` next to the first
    folder.
    """
    runs = [run] if isinstance(run, RunDirectory) else list(run)
    if not runs:
        raise DataError("no run to report on: name at least one run folder")
    if path is not None:
        _check_place(Path(path))
    pages = [read_page(each) for each in runs]
    if len(pages) == 1:
        path, comparison = path or runs[0].report, None
    else:
        path, comparison = path or runs[0].folder.parent / "comparison.html", compare(pages)
    environment = Environment(
        loader=PackageLoader("mu.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("template.html")
    text = template.render(page=pages[0], pages=pages, comparison=comparison, roles=ROLES, shown=PAIRS_SHOWN)
    with writing(path):
        write_text(path, text.lstrip())
        for plot in pages[0].plots if comparison is None else ():
            with atomic_path(Path(path).with_name(plot.file)) as partial:
                partial.write_bytes(plot.png)
    return Path(path)


def _check_place(path: Path) -> None:
    """Raise `OutputError` if ``path`` is something else than a page, which would be lost."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_file() or path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{path} exists and is not a page: choose another name, like comparison.html")
