"""Prompt files in the formats of the unlearning papers: `.csv`, `.txt` (one prompt per line), `.json`.

The columns of ESD, I2P, UnlearnDiffAtk, MACE and the COCO lists::

    prompt                             required
    case_number                        names the images; without it image_id, if that is a different number in each
                                       row (the COCO lists have only that), else the row number from 0
    evaluation_seed, sd_seed           the seed of the prompt's image
    evaluation_guidance, sd_guidance_scale
    sd_image_width, sd_image_height
    class, artist, type, categories    what the prompt shows; categories are comma-separated
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mu.core.errors import DataError

_ALSO_CALLED = {"sd_seed": "evaluation_seed", "sd_guidance_scale": "evaluation_guidance"}  # released I2P file
_OWN_FIELD = {
    "prompt", "case_number", "evaluation_seed", "evaluation_guidance", "sd_image_width", "sd_image_height",
    "class", "artist", "type", "categories",
}  # fmt: skip


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


def read_prompts(path: Path | str) -> list[PromptRow]:
    """The prompts of ``path`` in the order of the file; never empty.

    CSV needs a header; unnamed index columns and blank rows are ignored. JSON is a list of texts, or of objects whose
    keys are the column names. In a `.txt` blank lines are ignored and prompts are numbered from 0. Raises `DataError`
    for a file that is missing, of another kind, not UTF-8, without prompts or without a ``prompt`` column. Also raises
    it for a value that must be a number but is not. A case number must not repeat, as images would overwrite each
    other; this raises it too.
    """
    path = Path(path)
    readers = {".csv": _csv_rows, ".txt": _txt_rows, ".json": _json_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is not a prompt file: its name must end in {', '.join(readers)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"the prompt file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    places, read = [], []
    for where, fields in readers[path.suffix.lower()](path, text):
        places.append(where)
        read.append(fields)
    rows = [_row(path, where, k, fields) for k, (where, fields) in enumerate(zip(places, _numbered(read), strict=True))]
    if not rows:
        raise DataError(f"{path} holds no prompts")
    _numbered_once(path, rows)
    return rows


def _numbered(fields: Sequence[Fields]) -> list[Fields]:
    """Use ``image_id`` as the case number if no row has one and the ids are distinct whole numbers."""
    images = {each.get("image_id", "").strip() for each in fields}
    if (
        len(images) < len(fields)
        or not all(map(str.isdecimal, images))
        or any("case_number" in each for each in fields)
    ):
        return list(fields)
    return [{**each, "case_number": each["image_id"]} for each in fields]


Fields = Mapping[str, str]


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Fields]]:
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(lines, [])
        known = _columns(header)
        if "prompt" not in known:
            found = ", ".join(name.strip() for name in header if name.strip())
            raise DataError(f"{path} has no column 'prompt'; its columns are: {found or 'none'}")
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {lines.line_num}: {len(cells)} values for {len(header)} columns; quote commas"
                )
            yield f"line {lines.line_num}", {name: cell for name, cell in zip(known, cells, strict=True) if name}
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}") from None


def _txt_rows(path: Path, text: str) -> Iterator[tuple[str, Fields]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", {"prompt": line.strip()}


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Fields]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno})") from None
    if not isinstance(content, list):
        raise DataError(f"{path} must be a list of prompts, or of objects with a 'prompt'")
    for number, entry in enumerate(content):
        entry = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict):
            raise DataError(f"{path}, entry {number} is neither a text nor an object with a 'prompt'")
        values = {
            name: value
            for name, value in zip(_columns(entry), entry.values(), strict=True)
            if name and value is not None
        }
        if "prompt" not in values:
            raise DataError(f"{path}, entry {number} has no 'prompt'; it has: {', '.join(entry) or 'nothing'}")
        yield f"entry {number}", {name: _as_text(value) for name, value in values.items()}


def _columns(header: Iterable[str]) -> list[str]:
    """Normalised column names; empty for an index column written by pandas."""
    names = []
    for name in header:
        plain = name.strip().lower()
        plain = _ALSO_CALLED.get(plain, plain)
        names.append("" if plain.startswith("unnamed:") else plain if plain in _OWN_FIELD else name.strip())
    return names


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _row(path: Path, where: str, number: int, fields: Fields) -> PromptRow:
    def real(name: str) -> float | None:
        text = fields.get(name, "").strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{path}, {where}: {name} is {text!r}, not a number")
        return value

    def whole(name: str) -> int | None:
        try:
            return int(fields.get(name, ""))  # not through float: a seed may have 64 bits
        except ValueError:
            value = real(name)  # pandas writes "2219.0" if the column has gaps
        if value is not None and not value.is_integer():
            raise DataError(f"{path}, {where}: {name} is {fields[name]!r}, not a whole number")
        return None if value is None else int(value)

    def text(name: str) -> str | None:
        return fields.get(name, "").strip() or None

    case_number = whole("case_number")
    return PromptRow(
        prompt=fields["prompt"],
        case_number=number if case_number is None else case_number,
        evaluation_seed=whole("evaluation_seed"),
        evaluation_guidance=real("evaluation_guidance"),
        width=whole("sd_image_width"),
        height=whole("sd_image_height"),
        class_name=text("class"),
        artist=text("artist"),
        type=text("type"),
        categories=tuple(part.strip() for part in fields.get("categories", "").split(",") if part.strip()),
        other={name: value for name, value in fields.items() if name not in _OWN_FIELD},
    )


def _numbered_once(path: Path, rows: list[PromptRow]) -> None:
    seen: set[int] = set()
    for row in rows:
        if row.case_number in seen:
            raise DataError(f"{path}: case_number {row.case_number} occurs twice: renumber the rows or drop the column")
        seen.add(row.case_number)
