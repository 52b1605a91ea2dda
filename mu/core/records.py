"""Typed content of a run's files. Errors name the file and the key."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from mu.core.errors import DataError

T = TypeVar("T")


class Origin(BaseModel):
    """``environment.json``: the origin of the run's edit. Other keys are allowed."""

    model_config = ConfigDict(coerce_numbers_to_str=True, protected_namespaces=())

    method: str = ""
    model: str | None = None
    concepts: list[str] | str = []
    seconds: float | None = None
    citation: str = ""
    platform: str = ""
    versions: dict[str, str] = {}

    def concept_names(self) -> list[str]:
        return [self.concepts] if isinstance(self.concepts, str) else self.concepts


class MetricsRow(BaseModel):
    """A line of ``metrics.jsonl``: the step and its logged values."""

    step: float


class Prompt(BaseModel):
    """An entry of ``prompts.json``; its image k is ``<case_number>_<k>.png``."""

    case_number: int | str
    prompt: str
    seed: int | None = None
    """The seed of image 0."""
    role: str = ""
    """``target`` for a prompt of the concept to erase, ``retain`` for one to retain."""
    gate: list[float] | None = None
    """The gate of each edit for this prompt."""


class PanelRow(BaseModel):
    label: str
    images: list[str | None]
    """Paths in the run folder, one per column; None leaves a gap."""


class Panel(BaseModel):
    """An entry of ``panels.json``: a grid of images."""

    title: str
    columns: list[str]
    rows: list[PanelRow]

    @model_validator(mode="after")
    def _filled(self) -> Self:
        for row in self.rows:
            if len(row.images) != len(self.columns):
                found = f"row {row.label!r} of {self.title!r} has {len(row.images)} images"
                raise ValueError(f"{found} for {len(self.columns)} columns")
        return self


def read_text(path: Path) -> str:
    """The text of ``path``. Raises `DataError` if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is {path.parent} a run's folder?") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: make it again") from None


def read_json(path: Path) -> Any:
    """The JSON content of ``path``. Raises `DataError` if it is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno}): make it again") from None


def checked(path: Path, content: Any, kind: Any, key: str = "") -> Any:
    """Validate ``content`` of ``path`` as ``kind``, any type pydantic accepts; ``key`` is its place in the file.

    Raises `DataError` that names the file and the first wrong key.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (*filter(None, [key]), *first["loc"]))
        if not where and first["type"] in ("dict_type", "model_type"):
            held = type(content).__name__
            raise DataError(f"{path} must hold names and values, not a {held}: repair it or make it again") from None
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{path}: {f'{where}: ' if where else ''}{message}: repair it or make it again") from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_record(path: Path, kind: type[T]) -> T:
    """The content of ``path`` as ``kind``. Raises `DataError` as `read_json` and `checked` do."""
    return checked(path, read_json(path), kind)
