"""Published figures, to be read beside measured ones. They are never put in the columns of measured scores.

``published.yaml`` holds the tables. Every row names its source, and every source the variant of the protocol and what
makes its figures differ from others: detectors, samplers, prompts and averages do.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mu.core.documents import parse_yaml
from mu.core.errors import ConfigError, nearest, quoted
from mu.core.files import read_text

FIGURES = Path(__file__).with_name("published.yaml")


class Source(BaseModel):
    """Where figures were printed, by which variant of the protocol, and what to beware of."""

    model_config = ConfigDict(extra="forbid")

    text: str
    variant: str
    caveat: str


class Row(BaseModel):
    """The figures of one method; a figure that its source does not give is missing."""

    model_config = ConfigDict(extra="forbid")

    method: str
    target: str
    source: str
    scores: dict[str, float]
    note: str = ""


class Published(BaseModel):
    """One table. ``columns`` are the figures' names with their unit; shares are in per cent, as they were printed."""

    model_config = ConfigDict(extra="forbid")

    title: str
    columns: list[str]
    sources: dict[str, Source]
    rows: list[Row]

    @property
    def heading(self) -> str:
        return f"{self.title}: as published, not measured here"

    def lines(self) -> list[list[str]]:
        """The headings and a line for each row; the last cell is the number of its source in `notes`."""
        numbers = {key: k for k, key in enumerate(self.sources, start=1)}
        lines = [["method", "target", "variant", *self.columns, "source"]]
        for row in self.rows:
            figures = [f"{row.scores[name]:g}" if name in row.scores else "" for name in self.columns]
            method = f"{row.method} ({row.note})" if row.note else row.method
            lines.append([method, row.target, self.sources[row.source].variant, *figures, f"[{numbers[row.source]}]"])
        return lines

    def notes(self, mark: str = "") -> list[str]:
        """A line for each source: what it is, and what to beware of."""
        return [f"{mark}[{k}] {each.text}. {each.caveat}" for k, each in enumerate(self.sources.values(), start=1)]

    def to_json(self) -> dict[str, Any]:
        """Every row with its source in full."""
        rows = [{**row.model_dump(), "source": self.sources[row.source].model_dump()} for row in self.rows]
        return {"title": self.title, "columns": self.columns, "rows": rows}


@cache
def published() -> dict[str, Published]:
    """All tables by name."""
    content = parse_yaml(read_text(FIGURES), FIGURES.name)
    return {name: Published.model_validate(table) for name, table in content.items()}


def read_published(name: str) -> Published:
    """The table ``name``. Raises `ConfigError` for another, and names those that there are."""
    tables = published()
    if name not in tables:
        raise ConfigError(f"there are no published figures {quoted(name)}.{nearest(name, tables)}")
    return tables[name]
