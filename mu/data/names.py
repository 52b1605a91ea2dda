"""Files of names: of concepts to erase, or of texts to retain. One a line, or the column ``concept`` of a CSV."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mu.core.concept import Concept, folded
from mu.core.documents import parse_csv
from mu.core.errors import ConfigError, DataError, nearest, quoted
from mu.core.files import lines, read_text

COLUMN = "concept"
SHOWN = 5
"""How many names a message lists."""

log = logging.getLogger("mu")


def read_names(path: Path | str, what: str) -> dict[str, int]:
    """The names of ``path`` with the line of each, blank lines left out; of spellings of one name, the first.

    Names that are listed again are told in one warning. Raises `DataError` for a file without names, and for a
    ``.csv`` without the column `COLUMN`.
    """
    path = Path(path)
    text = read_text(path, what)
    found: dict[str, tuple[str, int]] = {}
    again: list[str] = []
    for name, line in _in_table(text, path) if path.suffix.lower() == ".csv" else _in_lines(text):
        first = found.setdefault(folded(name), (name, line))
        if first != (name, line):
            again.append(f"{quoted(name)} (lines {first[1]} and {line})")
    if not found:
        raise DataError(f"{path} holds no names: write one a line, or a CSV with a column {quoted(COLUMN)}")
    if again:
        more = f" and {len(again) - SHOWN} more" if len(again) > SHOWN else ""
        log.warning("%s lists names twice, which counts once: %s%s", path, ", ".join(again[:SHOWN]), more)
    return dict(found.values())


def _in_lines(text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(lines(text), 1):
        if line.strip():
            yield " ".join(line.split()), number


def _in_table(text: str, path: Path) -> Iterator[tuple[str, int]]:
    header, rows = parse_csv(text, str(path))
    places = [k for k, name in enumerate(header) if name.strip().lower() == COLUMN]
    if not places:
        columns = [name.strip() for name in header if name.strip()]
        raise DataError(
            f"{path} has no column {quoted(COLUMN)}.{nearest(COLUMN, columns)} Rename the column of the names"
        )
    for line, cells in rows:
        if len(cells) > places[0] and cells[places[0]].strip():
            yield " ".join(cells[places[0]].split()), line


def read_concepts(path: Path | str) -> list[Concept]:
    """The concepts of ``path``. Raises `DataError`, with the line, for one that is no `Concept`."""
    found = []
    for name, line in read_names(path, "the file of concepts").items():
        try:
            found.append(Concept(name))
        except DataError as trouble:
            raise DataError(f"{path}, line {line}: {trouble}") from None
    return found


def read_retained(path: Path | str) -> dict[str, int]:
    """The texts to retain of ``path``, with their lines: see `read_names`."""
    return read_names(path, "the file of texts to retain")


def check_apart(retained: Mapping[str, int], path: Path | str, concepts: Iterable[str]) -> None:
    """Raise `ConfigError` if one of the texts ``retained`` of ``path`` is one of ``concepts``, which are erased."""
    erased = {folded(concept) for concept in concepts}
    both = [f"{quoted(name)} (line {line})" for name, line in retained.items() if folded(name) in erased]
    if both:
        more = f" and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
        raise ConfigError(
            f"{path} retains what is to be erased: {', '.join(both[:SHOWN])}{more}: take it out of one of the two"
        )
