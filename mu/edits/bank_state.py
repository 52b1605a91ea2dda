"""The files of a bank's folder that say what it holds: ``bank.json`` and ``log.jsonl``. No model is needed."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from mu.core.concept import folded
from mu.core.config import BaseConfig
from mu.core.documents import parse_json
from mu.core.errors import ConfigError, DataError, EditError, nearest, quoted, titled
from mu.core.files import read_bytes, read_text

FORMAT = 1

log = logging.getLogger("mu")


def is_file_name(name: str) -> bool:
    """Whether an edit of a bank may have this file name: it leads to no other folder."""
    return re.fullmatch(r"\w[\w.-]*\.safetensors", name) is not None


class BankEntry(BaseConfig):
    """One edit of the bank."""

    concept: str
    file: str
    sha256: str
    on: bool = True
    strength: float = Field(1.0, allow_inf_nan=False)

    @field_validator("file")
    @classmethod
    def _in_the_folder(cls, name: str) -> str:
        if not is_file_name(name):
            raise ValueError(f"{titled(name)} is not the name of a .safetensors file in the bank's own folder")
        return name


class BankState(BaseConfig):
    """The contents of ``bank.json``. Edits are added up in the order listed."""

    format: int = FORMAT
    base: str
    fingerprint: str
    loading: dict[str, Any] = {}
    edits: list[BankEntry] = []

    def find(self, concept: str) -> BankEntry | None:
        """The edit of ``concept`` in that spelling, else in any spelling; None if the bank has none."""
        spelt = [entry for entry in self.edits if entry.concept == concept]
        return next(iter(spelt or [entry for entry in self.edits if folded(entry.concept) == folded(concept)]), None)

    def entry(self, concept: str) -> BankEntry:
        if (found := self.find(concept)) is not None:
            return found
        raise EditError(
            f"{quoted(concept)} is not in the bank.{nearest(concept, [entry.concept for entry in self.edits])}"
        )


class LoggedEdit(BaseModel):
    """An edit in a line of the log; other keys are allowed."""

    concept: str


class LogRow(BaseModel):
    """A line of the log; other keys are allowed."""

    time: str
    verb: str
    edits: list[LoggedEdit]
    reason: str = ""


_LOG_ROW = TypeAdapter(LogRow)


def read_state(path: Path, log_name: str) -> BankState:
    """Read ``bank.json``. Raises `EditError` for a folder without one, and for a damaged one."""
    if not path.exists():
        raise EditError(
            f"{path.parent} holds no {path.name}: name a bank's folder, or make one with `mu bank add EDIT`"
        )
    try:
        content = parse_json(read_text(path, error=EditError), "its content")
        if not isinstance(content, dict):
            raise ConfigError("not keys and values")
        if isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise EditError(f"{path} has format {content['format']}, but this mu reads up to {FORMAT}: upgrade mu")
        state = BankState.parse(content)
        for what in ("concept", "file"):
            name, count = next(iter(Counter(getattr(entry, what) for entry in state.edits).most_common(1)), ("", 0))
            if count > 1:
                raise ConfigError(f"{what} {titled(name)} is listed twice")
    except (DataError, ConfigError) as error:
        raise EditError(f"{path} is damaged ({error}): put a good copy back; {log_name} lists what was on") from None
    return state


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of the log, oldest first; of each, those keys of `LogRow` that it lacks have their defaults.

    A damaged line, as a killed process may leave, is skipped with a warning. Raises `EditError` if ``path`` cannot be
    read.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_bytes(path, error=EditError).decode(errors="replace").split("\n"), 1):
        if not line:
            continue
        try:
            row = parse_json(line, "the line")
            rows.append({"reason": _LOG_ROW.validate_python(row).reason, **row})
        except (DataError, ValidationError):
            log.warning("line %d of %s is damaged and is skipped", number, path)
    return rows
