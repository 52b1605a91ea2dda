"""A run's scores as the page shows them: what each means, whether it went up or down, and whether that is better."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mu.core.run import RunDirectory
from mu.core.scores import BASE, EDITED, Score, Table
from mu.report.figures import short

MEANINGS = {
    "UA": ("Unlearning accuracy", "of the pictures that ask for it no longer show it"),
    "IRA": ("In-domain retain accuracy", "of the pictures of other concepts of its kind still show them"),
    "CRA": ("Cross-domain retain accuracy", "of the pictures still show the other kind of concept they ask for"),
    "FA@1": ("Forget accuracy", "of the concept's pictures are still recognised as it"),
    "FA@5": ("Forget accuracy, top five", "of the concept's pictures still have it among the five nearest names"),
    "*@1 retained": ("Retained accuracy", "of the pictures of what was to stay of its kind are recognised, every class counting once"),
    "*@5 retained": ("Retained accuracy, top five", "of the same pictures have the right name among the five nearest"),
    "imagenet@1": ("ImageNet accuracy", "of ImageNet's pictures are recognised"),
    "imagenet@5": ("ImageNet accuracy, top five", "of ImageNet's pictures have the right name among the five nearest"),
    "*@1": ("Accuracy", "of the pictures of this kind are recognised, every class counting once"),
    "*@5": ("Accuracy, top five", "of the pictures of this kind have the right name among the five nearest, every class counting once"),
    "MIA": (
        "Membership inference",
        "of the pairs can be told as forgotten or not by how well picture and caption fit: 50% is chance, and what was forgotten too "
        "much stands out again",
    ),
    "FA": ("Forget accuracy", "of the answers about the concept's pictures still name it"),
    "retained": ("Retained accuracy", "of the answers to the same question about other pictures are right"),
    "other questions": ("Other questions", "of the answers to questions about something else are right"),
    "other questions, forgotten pictures": (
        "Other questions", "of the answers to questions about something else in the concept's pictures are right",
    ),
}  # fmt: skip
"""Shares (0 to 1, shown in percent) by name, ``*`` standing for a kind of concept; other scores are shown under their own name."""

VERDICT = ("UA", "IRA", "CRA", "FA", "retained", "other questions")
"""They stand at the head of the page; of a CLIP all accuracies at 1, without a kind's own where its retained one is told."""


def meaning_of(name: str) -> tuple[str, str]:
    """A title and the end of a sentence that begins with the share; for other scores the name and nothing."""
    return next((told for pattern, told in MEANINGS.items() if fnmatch.fnmatchcase(name, pattern)), (name, ""))


@dataclass(frozen=True)
class Cell:
    """One score as text; ``verdict`` says whether it is better or worse than the base's, by ``change``."""

    score: Score | None
    text: str = ""
    change: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Measure:
    """One row of a suite's table: a score under one protocol, in every column."""

    suite: str
    name: str
    protocol: str
    direction: str
    cells: dict[str, Cell]
    column: str
    items: list[tuple[str, list[tuple[str, float]]]]

    @property
    def base(self) -> Cell | None:
        return self._measured(BASE)

    @property
    def edited(self) -> Cell | None:
        """The cell of the column that tells what the edit did."""
        return self._measured(self.column)

    def _measured(self, column: str) -> Cell | None:
        cell = self.cells.get(column)
        return cell if cell and cell.score else None

    @property
    def title(self) -> str:
        return meaning_of(self.name)[0]

    @property
    def meaning(self) -> str:
        return meaning_of(self.name)[1]

    @property
    def tone(self) -> str:
        """Whether it is about what goes or about what stays."""
        return "removed" if self.name.startswith(("UA", "FA")) else "kept"

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.protocol

    @property
    def n(self) -> str:
        counts = dict.fromkeys(str(cell.score.n) for cell in self.cells.values() if cell.score)
        return " / ".join(counts)


@dataclass(frozen=True)
class SuiteScores:
    """What one suite measured: the names of its columns, and a row for each score under each protocol."""

    suite: str
    columns: list[str]
    measures: list[Measure]


def edited_column(columns: Sequence[str]) -> str:
    """The column that tells what the edit did: ``edited``, else the last that is not the untouched model's; empty where none is."""
    return EDITED if EDITED in columns else next((column for column in reversed(columns) if column != BASE), "")


def measured(run: RunDirectory) -> list[SuiteScores]:
    """``scores.json``, suite by suite."""
    return [_suite(name, table) for name, table in run.read_scores().items()]


def _suite(name: str, table: Table) -> SuiteScores:
    found: dict[tuple[str, str], dict[str, Score]] = defaultdict(dict)
    for column, scores in table.items():
        for score in scores:
            found[score.name, score.protocol][column] = score
    columns = list(table)
    return SuiteScores(name, columns, [_measure(name, *key, scores, columns) for key, scores in found.items()])


def _measure(suite: str, name: str, protocol: str, scores: dict[str, Score], columns: list[str]) -> Measure:
    share = bool(meaning_of(name)[1]) and all(0 <= s.value <= 1 for s in scores.values())
    base = scores.get(BASE)
    cells = {column: _cell(scores.get(column), base if column != BASE else None, share) for column in columns}
    per_item = {item for score in scores.values() for item in score.per_item}
    values = [abs(v) for s in scores.values() for v in s.per_item.values() if math.isfinite(v)]
    full = 1.0 if share else max(values, default=0.0) or 1.0
    items = []
    for item in sorted(per_item):
        row = []
        for column in columns:
            value = scores[column].per_item.get(item) if column in scores else None
            length = min(abs(value) / full, 1.0) if value is not None and math.isfinite(value) else 0.0
            row.append(("" if value is None else value_text(value, share), 100 * length))
        items.append((item, row))
    return Measure(suite, name, protocol, next(iter(scores.values())).direction, cells, edited_column(columns), items)


def value_text(value: float, share: bool) -> str:
    return f"{100 * value:.1f}%" if share and math.isfinite(value) else short(value, padded=True)


def _cell(score: Score | None, base: Score | None, share: bool) -> Cell:
    if score is None:
        return Cell(None)
    text = value_text(score.value, share)
    if base is None or not math.isfinite(score.value - base.value):
        return Cell(score, text)
    if text == value_text(base.value, share):
        return Cell(score, text, "no change", "same")
    difference = score.value - base.value
    amount = f"{100 * abs(difference):.1f} points" if share else short(abs(difference), 3)
    better = (difference > 0) == (score.direction == "higher")
    return Cell(score, text, ("+" if difference > 0 else "\N{MINUS SIGN}") + amount, "better" if better else "worse")
