"""What the files of a run hold, as far as the page shows it. Beside the files of `RunDirectory`:

    prompts.json   [{"case_number": 0, "prompt": "...", "seed": 188, "role": "target" or "retain", "gate": [0.98]}, ...]
                   ``before/0_1.png`` is picture 1 of case 0; seed and gate may be missing
    panels.json    [{"title": "...", "columns": ["base", ...], "rows": [{"label": "...", "images": ["panels/a.png", ...]}]}]
                   more grids of pictures
    slug_*.json    importance and alignment of every tensor, and the searched steps (see `mu.report.layer_figures`); its figures
                   are also written beside the page, ``pareto-<tower>-<concept>.png``

Paths in them stay inside the run folder or are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mu.core.errors import DataError

T = TypeVar("T")


class Prompt(BaseModel):
    case_number: int | str
    prompt: str
    seed: int | None = None
    role: str = ""
    gate: list[float] | None = None


class PanelRow(BaseModel):
    label: str
    images: list[str | None]


class Panel(BaseModel):
    title: str
    columns: list[str]
    rows: list[PanelRow]


class Origin(BaseModel):
    """``environment.json``; keys that are not here are not shown."""

    model_config = ConfigDict(coerce_numbers_to_str=True, protected_namespaces=())

    method: str = ""
    model: str | None = None
    concepts: list[str] | str = []
    seconds: float | None = None
    citation: str = ""
    platform: str = ""
    versions: dict[str, str] = {}


def parsed(path: Path, kind: TypeAdapter[T], default: T) -> T:
    """The content of ``path``, ``default`` where it does not exist; `DataError` for what is damaged or has another form."""
    if not path.exists():
        return default
    try:
        return kind.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {f'{where}: ' if where else ''}{first['msg']}") from None
