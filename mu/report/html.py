"""The page of a run: what was asked, the verdict, what was lost, images, scores, how to reproduce it, and the citation.

Reads only a run's files (see `mu.core.run`); no model library is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mu.core.errors import ConfigError, DataError, OutputError, nearest, quoted
from mu.core.files import atomic_path, check_writing, write_text, writing
from mu.core.manifest import check_manifest, is_gone, write_manifest
from mu.core.run import RunDirectory
from mu.report.comparison import Comparison, compare
from mu.report.formats import MARK, WRITERS
from mu.report.images import PAIRS_SHOWN, ROLES
from mu.report.page import Page, read_page

FORMATS = ("html", *WRITERS)


log = logging.getLogger("mu")


def write_report(
    run: RunDirectory | Sequence[RunDirectory], path: Path | str | None = None, kind: str = "html"
) -> Path:
    """Write the page of one run, or the comparison of several, and return its path. ``kind`` is one of `FORMATS`.

    Default ``path``: ``report.html`` (or another ending) in the run's folder, with ``manifest.json`` beside it; for
    several runs ``comparison.html`` next to the first folder. Raises `ConfigError` for another ``kind``, and for
    several runs in another format than HTML; `OutputError` if ``path`` or the manifest is a file of another kind.
    """
    runs = [run] if isinstance(run, RunDirectory) else list(run)
    if kind not in FORMATS:
        raise ConfigError(f"unknown format {quoted(kind)}.{nearest(kind, FORMATS)}")
    if not runs:
        raise DataError("no run to report on: name at least one run folder")
    if len(runs) > 1 and kind != "html":
        raise ConfigError(f"a comparison is a web page, not {kind}: use --format html, or mu compare --json")
    if path is not None:
        _check_place(Path(path), kind)
    pages = [read_page(each) for each in runs]
    if len(pages) > 1:
        out = Path(path or runs[0].folder.parent / "comparison.html")
        _write_html(pages, compare(pages), out)
        return out
    own = runs[0].report.with_suffix(f".{kind}")
    if path is None:
        _check_place(own, kind)
        check_manifest(runs[0])
    out = Path(path or own)
    if kind == "html":
        _write_html(pages, None, out)
    else:
        content = WRITERS[kind](pages[0], runs[0].folder, out)
        with writing(out), atomic_path(out) as partial:
            partial.write_bytes(content)
    if path is None:
        if is_gone(runs[0], runs[0].evidence):
            log.warning("%s is kept, as the run's evidence.json was filed and is gone", runs[0].manifest)
            return out
        verdict = pages[0].verdict
        decided = [*verdict.sentences, *verdict.withheld, *verdict.missing]
        write_manifest(runs[0], [*decided, *pages[0].losses.sentences], pages[0].changed)
    return out


def _write_html(pages: list[Page], comparison: Comparison | None, path: Path) -> None:
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
            with atomic_path(path.with_name(plot.file)) as partial:
                partial.write_bytes(plot.png)


def _check_place(path: Path, kind: str) -> None:
    """Raise `OutputError` if ``path`` is something else than a report in this format, which would be lost, or cannot
    be written."""
    if not path.exists() and not path.is_symlink():
        check_writing(path)
        return
    endings = (".html", ".htm") if kind == "html" else (f".{kind}",)
    known = path.is_file() and path.suffix.lower() in endings
    if not (known and (kind == "html" or MARK.encode() in path.read_bytes())):
        raise OutputError(f"{path} exists and is not a page: choose another name, like comparison{endings[0]}")
