"""Typed content of the files of a run: what is wrong in one is told by the file's name and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mu.core.errors import DataError

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """What ``path`` holds; `DataError` where that is no JSON, or the file is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is {path.parent} a run's folder?") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8: make it again") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno}): make it again") from None


def checked(path: Path, content: Any, kind: Any, key: str = "") -> Any:
    """``content`` of ``path`` as ``kind`` (a type that pydantic knows); `DataError` that names the file and the first wrong key.

    ``key`` is where in the file the content stands.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (*filter(None, [key]), *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{path}: {f'{where}: ' if where else ''}{message}: repair it or make it again") from None


def read_record(path: Path, kind: type[T]) -> T:
    """The content of ``path`` as ``kind``."""
    return checked(path, read_json(path), kind)
