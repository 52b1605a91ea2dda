"""A run's scores for the page: the meaning of each, its change, and whether that is better."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mu.core.metrics import SHARE, Metric, metric_of
from mu.core.run import RunDirectory
from mu.core.scores import BASE, EDITED, LOWER, NEITHER, Score, Table, loss, target
from mu.report.figures import short

WITHHELD = "withheld"
REPLACEMENT = "replacement"


@dataclass(frozen=True)
class Cell:
    """One score as text. ``change`` is the difference from the base, ``verdict`` better, worse or same.

    A change whose interval holds 0 is the same: chance alone may have made it.
    ``interval`` and ``spread`` are the 95 % intervals of both, if they were computed. A score in doubt is `WITHHELD`.
    """

    score: Score | None
    text: str = ""
    change: str = ""
    verdict: str = ""
    interval: str = ""
    spread: str = ""

    @property
    def line(self) -> str:
        """The value and its interval."""
        return f"{self.text} {self.interval}".rstrip()

    @property
    def number(self) -> float | None:
        """The value, if it is shown."""
        return self.score.value if self.score and not self.score.doubt else None


@dataclass(frozen=True)
class Measure:
    """One row of a suite's table: a score under one protocol, in every column."""

    suite: str
    name: str
    metric: Metric
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
        """The cell of the edited model's column."""
        return self._measured(self.column)

    def _measured(self, column: str) -> Cell | None:
        cell = self.cells.get(column)
        return cell if cell and cell.score else None

    @property
    def doubt(self) -> str:
        """Why its numbers are withheld; "" if they are not."""
        return next((cell.score.doubt for cell in self.cells.values() if cell.score and cell.score.doubt), "")

    @property
    def judges(self) -> bool:
        """Whether its edited value says if the concept is gone."""
        return self.metric.telling is not None and self.edited is not None

    @property
    def withheld(self) -> bool:
        """Whether it heads what its suite says of erased concepts, and a doubt stands in place of its number."""
        return self.metric.head and self.metric.about == "gone" and bool(self.doubt) and self.edited is not None

    @property
    def share(self) -> bool:
        """True if it is shown in per cent."""
        return self.metric.unit == SHARE

    @property
    def title(self) -> str:
        return self.metric.title

    @property
    def meaning(self) -> str:
        return self.metric.meaning

    @property
    def tone(self) -> str:
        """``removed`` for a measure of erased concepts, ``kept`` for one of retained concepts, else ``other``."""
        return {"gone": "removed", "kept": "kept"}.get(self.metric.about, "other")

    @property
    def better(self) -> str:
        """The better direction, in words."""
        aim = target(self.direction)
        if self.direction == NEITHER:
            return "neither direction is better"
        return f"{self.direction} is better" if aim is None else f"nearer {value_text(aim, self.share)} is better"

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.protocol

    @property
    def n(self) -> str:
        counts = dict.fromkeys(str(cell.score.n) for cell in self.cells.values() if cell.score)
        return " / ".join(counts)


@dataclass(frozen=True)
class SuiteScores:
    """One suite's scores: the names of its columns, and a row for each score under each protocol."""

    suite: str
    columns: list[str]
    measures: list[Measure]

    @property
    def intervals(self) -> bool:
        """Whether any score has an interval."""
        return any(cell.interval for measure in self.measures for cell in measure.cells.values())


def edited_column(columns: Sequence[str]) -> str:
    """``edited``, else the last column that is not the base's; empty without one."""
    return EDITED if EDITED in columns else next((column for column in reversed(columns) if column != BASE), "")


def shown(direction: str, value: float) -> float:
    """Share of images that show the concept: the ``value`` of FA and its kin, 1 - UA."""
    return value if direction == LOWER else 1 - value


def doubted(table: Table) -> Table:
    """``table`` with the doubt of every score that shows nothing, whether or not its suite says so.

    A head measure of erasing shows nothing if the base already shows the concept in less than half of its images. What
    stands in the concept's place would tell the same number, so it shares the doubt.
    """
    own = edited_column(list(table))
    base, edited = ({key_of(score): score for score in table.get(column, [])} for column in (BASE, own))
    doubts = {key: _doubt(base.get(key), edited.get(key)) for key in (*base, *edited)}
    for name, protocol in [key for key, doubt in doubts.items() if doubt and _tells(key[0])]:
        doubts.setdefault((REPLACEMENT, protocol), "")
        doubts[REPLACEMENT, protocol] = doubts[REPLACEMENT, protocol] or doubts[name, protocol]

    def known(score: Score, column: str) -> Score:
        doubt = doubts.get(key_of(score), "") if column in (BASE, own) else ""
        return replace(score, doubt=doubt) if doubt and not score.doubt else score

    return {column: [known(score, column) for score in scores] for column, scores in table.items()}


def _tells(name: str) -> bool:
    metric = metric_of(name)
    return metric is not None and metric.telling is not None


def key_of(score: Score) -> tuple[str, str]:
    return score.name, score.protocol


def _doubt(base: Score | None, edited: Score | None) -> str:
    said = next((score.doubt for score in (edited, base) if score and score.doubt), "")
    metric = metric_of(base.name) if base else None
    if said or not (base and metric and metric.telling):
        return said
    share = shown(base.direction, base.value)
    images = metric.telling.images.format("it")
    return f"it is seen in only {value_text(share, True)} of the base's {images}" if share < 0.5 else ""


def measured(run: RunDirectory) -> list[SuiteScores]:
    """The scores of ``scores.json``, suite by suite."""
    return [suite_scores(name, table) for name, table in run.read_scores().items()]


def suite_scores(name: str, table: Table) -> SuiteScores:
    """The scores of one suite as rows."""
    table = doubted(table)
    found: dict[tuple[str, str], dict[str, Score]] = defaultdict(dict)
    for column, scores in table.items():
        for score in scores:
            found[score.name, score.protocol][column] = score
    columns = list(table)
    return SuiteScores(name, columns, [_measure(name, *key, scores, columns) for key, scores in found.items()])


def _measure(suite: str, name: str, protocol: str, scores: dict[str, Score], columns: list[str]) -> Measure:
    direction = next(iter(scores.values())).direction
    metric = metric_of(name) or Metric(name, direction, "", name, "")
    share = metric.unit == SHARE
    base = scores.get(BASE)
    cells = {column: _cell(scores.get(column), base if column != BASE else None, share) for column in columns}
    per_item = {item for score in scores.values() for item in score.per_item}
    if any(score.doubt for score in scores.values()):
        per_item = set()
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
    return Measure(suite, name, metric, protocol, direction, cells, edited_column(columns), items)


def value_text(value: float, share: bool) -> str:
    return f"{100 * value:.1f}%" if share and math.isfinite(value) else short(value, padded=True)


def interval_text(interval: tuple[float, float] | None, share: bool, *, signed: bool = False) -> str:
    """``[0.0, 8.8]``, a share in per cent or, ``signed``, in points; "" without an interval."""
    if interval is None:
        return ""
    ends = [f"{100 * end:.1f}" if share and math.isfinite(end) else short(end, 3) for end in interval]
    ends = ["0.0" if end == "-0.0" else end.replace("-", "\N{MINUS SIGN}") for end in ends]
    if signed:
        ends = [f"+{end}" if value > 0 and end != "0.0" else end for end, value in zip(ends, interval, strict=True)]
    return f"[{ends[0]}, {ends[1]}]"


def _cell(score: Score | None, base: Score | None, share: bool) -> Cell:
    if score is None:
        return Cell(None)
    if score.doubt:
        return Cell(score, WITHHELD)
    text, interval = value_text(score.value, share), interval_text(score.interval, share)
    if base is None or not math.isfinite(score.value - base.value):
        return Cell(score, text, interval=interval)
    spread = interval_text(score.change, share, signed=True)
    if text == value_text(base.value, share):
        return Cell(score, text, "no change", "same", interval, spread)
    difference = score.value - base.value
    gain = loss(score.direction, base.value) - loss(score.direction, score.value)
    chance = score.change is not None and score.change[0] <= 0 <= score.change[1]
    verdict = "same" if chance or math.isclose(gain, 0, abs_tol=1e-9) else "better" if gain > 0 else "worse"
    amount = f"{100 * abs(difference):.1f} points" if share else short(abs(difference), 3)
    return Cell(score, text, ("+" if difference > 0 else "\N{MINUS SIGN}") + amount, verdict, interval, spread)
