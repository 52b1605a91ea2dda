"""The scores of several runs in one table. Each column holds scores of one name and one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.core.scores import BASE, HIGHER, LOWER, NEITHER, Score, best, target
from mu.report.figures import short
from mu.report.measures import WITHHELD, doubted, edited_column, interval_text


@dataclass(frozen=True)
class Column:
    name: str
    protocol: str
    direction: str


@dataclass(frozen=True)
class Row:
    """One model: a run's edited model, or the base."""

    run: str
    method: str
    concepts: tuple[str, ...]
    scores: dict[tuple[str, str], Score]
    """Scores by name and protocol."""


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[Row]

    def value(self, row: Row, column: Column) -> float | None:
        """The value; None if the protocol did not measure it, or it is withheld."""
        score = self.score(row, column)
        return score.value if score and not score.doubt else None

    def score(self, row: Row, column: Column) -> Score | None:
        return row.scores.get((column.name, column.protocol))

    def best(self, column: Column) -> float | None:
        """The best value of the edits; None if they do not differ."""
        values = (self.value(row, column) for row in self.rows if row.method)
        return best(column.direction, (value for value in values if value is not None))

    def headings(self) -> list[str]:
        """The columns' names; a name with several protocols is followed by its protocol."""
        names = [column.name for column in self.columns]
        return [f"{c.name} ({c.protocol})" if names.count(c.name) > 1 else c.name for c in self.columns]

    def cells(self, row: Row) -> list[str]:
        """The row's values with their intervals as text; empty if the protocol did not measure it."""
        return [_cell(self.score(row, column)) for column in self.columns]

    def markdown(self) -> str:
        """A table for a README, the best of each column in bold."""
        titles = [
            f"{title} {arrow(column.direction)}".rstrip()
            for title, column in zip(self.headings(), self.columns, strict=True)
        ]
        lines = [["run", "method", "concepts", *titles]]
        for row in self.rows:
            leads = [
                (v := self.value(row, c)) is not None and bool(row.method) and v == self.best(c) for c in self.columns
            ]
            values = [f"**{cell}**" if top else cell for cell, top in zip(self.cells(row), leads, strict=True)]
            lines.append([row.run, row.method, ", ".join(row.concepts), *values])
        return "\n".join(markdown_lines(lines))

    def to_json(self) -> dict[str, Any]:
        """``columns``, and ``rows`` with ``scores`` in the same order, each `Score.told`; null for a missing one."""
        return {
            "columns": [vars(column) for column in self.columns],
            "rows": [
                {"run": row.run, "method": row.method, "concepts": list(row.concepts), "scores": [
                    score.told() if (score := self.score(row, c)) else None for c in self.columns
                ]} for row in self.rows
            ],
        }  # fmt: skip


def markdown_lines(lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table: the first holds the headings, and columns after the third hold numbers."""
    first, *rows = lines
    rule = ["---" if k < 3 else "---:" for k in range(len(first))]
    found = [[_escaped(cell) for cell in line] for line in (first, rule, *rows)]
    return ["| " + " | ".join(line) + " |" for line in found]


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return (
        WITHHELD
        if score.doubt
        else f"{short(score.value, padded=True)} {interval_text(score.interval, False)}".rstrip()
    )


def arrow(direction: str) -> str:
    """The better direction as an arrow: up, down, or towards a number."""
    aim = target(direction)
    if aim is not None:
        return f"\N{RIGHTWARDS ARROW} {short(aim)}"
    return {HIGHER: "\N{UPWARDS ARROW}", LOWER: "\N{DOWNWARDS ARROW}", NEITHER: ""}[direction]


def score_table(runs: Sequence[Path | str]) -> Table:
    """The scores of the ``runs`` (folders) with their edits, one row each. Bases come first, in one row if all agree.

    Raises `DataError` for a run without scores, and if two runs differ in the better direction of a name and protocol.
    """
    names = _names([Path(run) for run in runs])
    rows, bases = [], []
    for name, folder in zip(names, runs, strict=True):
        run = RunDirectory(folder)
        base, edited = _scores(run)
        about = run.origin()
        rows.append(Row(name, about.method or "edit", tuple(about.concept_names()), edited))
        if base:
            bases.append(Row(name, "", (), base))
    rows = _merged(bases) + rows
    columns: dict[tuple[str, str], Column] = {}
    for row in rows:
        for key, score in row.scores.items():
            if columns.setdefault(key, Column(*key, score.direction)).direction != score.direction:
                raise DataError(
                    f"{score.name} ({score.protocol}) is better {columns[key].direction} in one run and "
                    f"better {score.direction} "
                    f"in {row.run}: measure again with one version"
                )
    return Table(list(columns.values()), rows)


def _scores(run: RunDirectory) -> tuple[dict[tuple[str, str], Score], dict[tuple[str, str], Score]]:
    """Scores of the base and of the edited model in all suites, by name and protocol."""
    suites = {name: doubted(table) for name, table in run.read_scores().items()}
    if not run.folder.is_dir():
        raise DataError(f"{run.folder} is not a run folder")
    if not suites:
        raise DataError(f"{run.folder} has no scores: run mu evaluate {run.folder}")
    base, edited = (
        {
            (score.name, score.protocol): score
            for table in suites.values()
            for score in table.get(column(list(table)), [])
        }
        for column in (lambda _: BASE, edited_column)
    )
    return base, edited


def _merged(bases: list[Row]) -> list[Row]:
    """One row if no two runs disagree on a base score; each run may have measured other scores."""
    together: dict[tuple[str, str], Score] = {}
    for row in bases:
        for key, score in row.scores.items():
            if together.setdefault(key, score).value != score.value:
                return [Row(f"{BASE} of {each.run}", "", (), each.scores) for each in bases]
    return [Row(BASE, "", (), together)] if bases else []


def _names(folders: list[Path]) -> list[str]:
    """The folders' names; whole paths for names that occur twice."""
    short_names = [folder.resolve().name for folder in folders]
    return [str(f) if short_names.count(name) > 1 else name for f, name in zip(folders, short_names, strict=True)]


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())
