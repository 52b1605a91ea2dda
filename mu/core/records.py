"""Typed content of the files of a run: what is wrong in one is told by the file's name and the key."""

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
    """``environment.json``: where the run's edit comes from. It may hold more."""

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
    """A line of ``metrics.jsonl``: the step, and whatever was logged of it."""

    step: float


class Prompt(BaseModel):
    """An entry of ``prompts.json``: image k of it is ``<case_number>_<k>.png``."""

    case_number: int | str
    prompt: str
    seed: int | None = None
    """Of image 0."""
    role: str = ""
    """``target``: of what is to go; ``retain``: of what is to stay."""
    gate: list[float] | None = None
    """How far each edit opens for the prompt."""


class PanelRow(BaseModel):
    label: str
    images: list[str | None]
    """Paths in the run's folder, one for each column; None is a gap."""


class Panel(BaseModel):
    """An entry of ``panels.json``: a grid of images."""

    title: str
    columns: list[str]
    rows: list[PanelRow]

    @model_validator(mode="after")
    def _filled(self) -> Self:
        for row in self.rows:
            if len(row.images) != len(self.columns):
                found = f"row {row.label!r} of {self.title!r} has {len(row.images)} pictures"
                raise ValueError(f"{found} for {len(self.columns)} columns")
        return self


def read_text(path: Path) -> str:
    """What ``path`` holds; `DataError` where that is no text, or the file is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is {path.parent} a run's folder?") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8: make it again") from None


def read_json(path: Path) -> Any:
    """What ``path`` holds; `DataError` where that is no JSON, or the file is not there."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno}): make it again") from None


def checked(path: Path, content: Any, kind: Any, key: str = "") -> Any:
    """``content`` of ``path`` as ``kind``, a type that pydantic knows; ``key`` is where in the file it stands.

    Raises `DataError`, which names the file and the first wrong key.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (*filter(None, [key]), *first["loc"]))
        if not where and first["type"] in ("dict_type", "model_type"):
            held = type(content).__name__
            raise DataError(f"{path} holds no names and values, but a {held}: repair it or make it again") from None
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{path}: {f'{where}: ' if where else ''}{message}: repair it or make it again") from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_record(path: Path, kind: type[T]) -> T:
    """The content of ``path`` as ``kind``; `DataError` as by `read_json` and `checked`."""
    return checked(path, read_json(path), kind)
