"""Prompt files in the formats of the unlearning papers: `.csv`, `.txt` (one prompt per line), `.json`, `.jsonl`.

The columns of ESD, I2P, UnlearnDiffAtk, MACE and the COCO lists. `mu.data.columns` has the other names of each::

    prompt                             required
    case_number                        names the images; without it image_id, if that is a different number in each
                                       row (the COCO lists have only that), else the row number from 0
    evaluation_seed                    the seed of the prompt's image
    evaluation_guidance                its guidance scale
    sd_image_width, sd_image_height    its size in pixels
    class, artist, type, categories    what the prompt shows; categories are comma-separated
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mu.core.documents import parse_csv, parse_json
from mu.core.errors import DataError, quoted
from mu.core.files import lines, read_text
from mu.data.columns import Cells, Columns, field_of, find_columns

LARGEST_SIDE = 2**16
"""Pixels of an image's height or width. What a model can make is less, and checked when it is loaded."""

log = logging.getLogger("mu")


@dataclass(frozen=True)
class PromptRow:
    """One prompt. A setting missing from the file is None; the caller's value applies then.

    ``prompt`` is the text exactly as written: I2P has outer blanks, line breaks and one empty prompt.
    ``other`` holds the remaining named columns as text, such as I2P's ``nudity_percentage``.
    """

    prompt: str
    case_number: int
    evaluation_seed: int | None = None
    evaluation_guidance: float | None = None
    width: int | None = None
    height: int | None = None
    class_name: str | None = None
    artist: str | None = None
    type: str | None = None
    categories: tuple[str, ...] = ()
    other: Mapping[str, str] = field(default_factory=dict)


Row = tuple[str, Cells]
"""Where a row stands in its file, and its cells."""


def read_prompts(path: Path | str, columns: Mapping[str, str] | None = None) -> list[PromptRow]:
    """The prompts of ``path`` in the order of the file; never empty.

    CSV needs a header; unnamed index columns and blank rows are ignored, and quotes must be closed. JSON is a list of
    texts, or of objects whose keys are the column names; a `.jsonl` has one of them in each line. In a `.txt` blank
    lines are ignored and prompts are numbered from 0. ``columns`` names the column of a field, like
    ``{"prompt": "Sentence"}``; the others are found by `mu.data.columns`. What is read from an unusual column, or not
    read, is logged.

    Case numbers that repeat are replaced by row numbers, as images would overwrite each other; this is logged, and the
    numbers stay in `PromptRow.other`. Raises `DataError` for a file that is missing, of another kind, not UTF-8,
    without prompts, or with two columns of one name; and for a value that is not a number, or not in its range.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".txt": _txt_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is not a prompt file: its name must end in {', '.join(readers)}")
    text = read_text(path, "the prompt file")
    header, rows = readers[path.suffix.lower()](text, path)
    try:
        found = find_columns(header, columns)
    except DataError as trouble:
        raise DataError(f"{path} {trouble}") from None
    prompts = [_row(f"{path}, {where}", k, cells, found) for k, (where, cells) in enumerate(rows)]
    if not prompts:
        raise DataError(f"{path} holds no prompts")
    for note in found.notes:
        log.warning("%s: %s", path, note)
    numbered = _numbered_by_image(prompts, found)
    tabular = len(header) > 1 or path.suffix.lower() == ".csv"
    if tabular and "case_number" not in found.fields and numbered is prompts:
        log.info("%s: there is no case_number: prompts are numbered from 0 in the file's order", path)
    return _numbered_once(path, numbered)


def seeded(rows: list[PromptRow], seed: int, path: Path | str) -> list[PromptRow]:
    """``rows`` of the file ``path`` with ``seed`` for those that have none; their number is logged."""
    without = sum(row.evaluation_seed is None for row in rows)
    if without:
        log.warning("%s: %d of %d prompts have no seed: seed %d is used for them", path, without, len(rows), seed)
    return [row if row.evaluation_seed is not None else replace(row, evaluation_seed=seed) for row in rows]


def _csv_rows(text: str, path: Path) -> tuple[list[str], list[Row]]:
    header, rows = parse_csv(text, str(path))
    if not header:
        raise DataError(f"{path} is empty: download or copy it again")
    for number, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{path}, line {number}: {len(cells)} values for {len(header)} columns; quote commas")
    if header and header[-1].rstrip().endswith("\\"):  # each line of some released lists ends in one
        rows = [(number, [*cells[:-1], cells[-1].rstrip().removesuffix("\\")]) for number, cells in rows]
    return header, [(f"line {number}", cells) for number, cells in rows]


def _txt_rows(text: str, path: Path) -> tuple[list[str], list[Row]]:
    numbered = enumerate(lines(text), start=1)
    return ["prompt"], [(f"line {number}", [line.strip()]) for number, line in numbered if line.strip()]


def _json_rows(text: str, path: Path) -> tuple[list[str], list[Row]]:
    content = parse_json(text, str(path))
    if not isinstance(content, list):
        raise DataError(f"{path} must be a list of prompts, or of objects with a 'prompt'")
    return _object_rows([(f"entry {number}", entry) for number, entry in enumerate(content)], path)


def _jsonl_rows(text: str, path: Path) -> tuple[list[str], list[Row]]:
    numbered = [(f"line {number}", line) for number, line in enumerate(lines(text), start=1) if line.strip()]
    return _object_rows([(where, parse_json(line, f"{path}, {where}")) for where, line in numbered], path)


def _object_rows(found: Sequence[tuple[str, Any]], path: Path) -> tuple[list[str], list[Row]]:
    """The column names and rows of texts or objects, each with its place in the file."""
    entries: list[tuple[str, dict[str, Any]]] = []
    for where, entry in found:
        entries.append((where, {"prompt": entry} if isinstance(entry, str) else entry))
        if not isinstance(entries[-1][1], dict):
            raise DataError(f"{path}, {where} is neither a text nor an object with a 'prompt'")
    header = list(dict.fromkeys(name for _, entry in entries for name in entry)) or ["prompt"]
    for where, entry in entries:
        for name, value in entry.items():
            if field_of(name) == "prompt" and isinstance(value, list | dict):
                raise DataError(f"{path}, {where}: {quoted(name)} holds {quoted(value)}, not a text")
    return header, [(where, [_as_text(entry.get(name)) for name in header]) for where, entry in entries]


def _as_text(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return None if value is None else str(value)


def _row(where: str, number: int, cells: Cells, columns: Columns) -> PromptRow:
    def value(field: str) -> str:
        try:
            return columns.value(field, cells) or ""
        except DataError as trouble:
            raise DataError(f"{where}: {trouble}") from None

    def wrong(field: str, need: str) -> DataError:
        name = columns.header[columns.fields[field][0]]
        return DataError(f"{where}: {name} is {quoted(value(field).strip())}, not {need}")

    def real(field: str) -> float | None:
        text = value(field).strip()
        try:
            found = float(text) if text and "_" not in text else math.nan
        except ValueError:
            found = math.nan
        if text and not math.isfinite(found):
            raise wrong(field, "a number")
        return found if text else None

    def whole(field: str, low: int, high: int) -> int | None:
        text = value(field).strip()
        if not text:
            return None
        digits = re.fullmatch(r"([+-]?[0-9]{1,30})(\.0*)?", text)  # pandas writes "2219.0" if the column has gaps
        if not digits:
            raise wrong(field, "a whole number, all digits written out")
        found = int(digits[1])  # not through float: a seed may have 64 bits
        if not low <= found <= high:
            raise wrong(field, f"between {low} and {high}")
        return found

    def text(field: str) -> str | None:
        return value(field).strip() or None

    prompt = value("prompt")
    if columns.value("prompt", cells) is None:
        has = ", ".join(columns.header[k] for k, cell in enumerate(cells) if cell is not None)
        raise DataError(f"{where} has no 'prompt'; it has: {has[:200] or 'nothing'}")
    case_number = whole("case_number", -(2**63), 2**64 - 1)
    return PromptRow(
        prompt=prompt,
        case_number=number if case_number is None else case_number,
        evaluation_seed=whole("seed", 0, 2**64 - 1),
        evaluation_guidance=real("guidance"),
        width=whole("width", 1, LARGEST_SIDE),
        height=whole("height", 1, LARGEST_SIDE),
        class_name=text("class"),
        artist=text("artist"),
        type=text("type"),
        categories=tuple(part.strip() for part in value("categories").split(",") if part.strip()),
        other={name: cell for k, name in columns.other.items() if (cell := cells[k]) is not None},
    )


def _numbered_by_image(rows: list[PromptRow], columns: Columns) -> list[PromptRow]:
    """Use ``image_id`` as the case number if there is no column for it and the ids are distinct whole numbers."""
    images = [row.other.get("image_id", "").strip() for row in rows]
    numbers = [int(each) for each in images if re.fullmatch("[0-9]{1,18}", each)]
    if "case_number" in columns.fields or len(set(numbers)) < len(rows):
        return rows
    return [replace(row, case_number=number) for row, number in zip(rows, numbers, strict=True)]


def _numbered_once(path: Path, rows: list[PromptRow]) -> list[PromptRow]:
    """Number the rows from 0 if a case number occurs twice."""
    seen: set[int] = set()
    for row in rows:
        if row.case_number in seen:
            log.warning("%s: case number %d occurs twice: images are named by row number", path, row.case_number)
            return [
                replace(each, case_number=k, other={**each.other, "case_number": str(each.case_number)})
                for k, each in enumerate(rows)
            ]
        seen.add(row.case_number)
    return rows
