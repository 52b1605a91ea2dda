"""What came of each cell: the erased and the kept share, the cost, and the state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol, TypeVar

from mu.core.intervals import Interval, wilson
from mu.core.scores import HIGHER, Score
from mu.grid.folder import GridFolder, Record, State
from mu.grid.plan import Cell
from mu.report.measures import Cell as Shown
from mu.report.measures import Measure, measured, shown


@dataclass(frozen=True)
class Outcome:
    """One cell with its scores: each measure of each suite, as the run's own report shows it."""

    cell: Cell
    state: State
    record: Record
    measures: tuple[Measure, ...]
    search_seconds: float | None

    @property
    def method(self) -> str:
        return self.cell.method

    @property
    def erased(self) -> float | None:
        """The erased share: of images that ask for the concept, those that no longer show it; mean over the suites.

        None if no suite can tell."""
        return _mean([1 - shown(m.direction, value) for m in self._heads("gone") if (value := _number(m)) is not None])

    @property
    def erased_interval(self) -> Interval | None:
        """The 95 % interval of `erased`, if one suite alone measured it."""
        score = self._one()
        if score is None or score.interval is None:
            return None
        low, high = sorted(1 - shown(score.direction, end) for end in score.interval)
        return low, high

    @property
    def images(self) -> int:
        """The images that ask for the concept, if one suite alone measured it; else 0."""
        score = self._one()
        return score.n if score else 0

    @property
    def kept(self) -> float | None:
        """The kept share: mean of the suites' head measures of what should stay, such as IRA and CRA.

        What appears unasked is no such share: most images never showed it. It has a column of its own."""
        heads = [m for m in self._heads("kept") if m.direction == HIGHER]
        return _mean([value for m in heads if (value := _number(m)) is not None])

    @property
    def harmonic(self) -> float | None:
        """The harmonic mean of both; None without one of them."""
        return harmonic(self.erased, self.kept)

    def _one(self) -> Score | None:
        heads = self._heads("gone")
        score = heads[0].edited.score if len(heads) == 1 and heads[0].edited else None
        return score if score and not score.doubt else None

    def _heads(self, about: str) -> list[Measure]:
        """The head measures of erasing (``gone``) or retaining (``kept``) that are shares."""
        return [
            m for m in self.measures
            if m.share and m.metric.head and m.metric.about == about and (about == "kept" or m.metric.telling)
        ]  # fmt: skip


def harmonic(erased: float | None, kept: float | None) -> float | None:
    """The harmonic mean of two shares; 0 if one is 0, None without one of them."""
    if erased is None or kept is None:
        return None
    return 0.0 if min(erased, kept) <= 0 else 2 * erased * kept / (erased + kept)


def outcomes(folder: GridFolder) -> list[Outcome]:
    """Every cell of the grid, in the order of its plan."""
    states = folder.states()
    return [outcome(folder, cell, *states[cell.name]) for cell in folder.cells()]


def outcome(folder: GridFolder, cell: Cell, state: State, record: Record) -> Outcome:
    """What came of one cell. One without results has no measures, whatever an earlier plan left in its run."""
    run = folder.run(cell.name)
    if state != "done":
        return Outcome(cell, state, record, (), None)
    asked = {one.suite for one in cell.measured} or set(record.measured)
    measures = tuple(m for suite in measured(run) if suite.suite in asked for m in suite.measures if m.edited)
    return Outcome(cell, state, record, measures, run.origin().seconds)


class Shares(Protocol):
    """What has a place in a Pareto plot."""

    @property
    def erased(self) -> float | None: ...
    @property
    def erased_interval(self) -> Interval | None: ...
    @property
    def kept(self) -> float | None: ...
    @property
    def search_seconds(self) -> float | None: ...
    @property
    def method(self) -> str: ...


Point = TypeVar("Point", bound=Shares)


def front(found: Sequence[Point]) -> list[Point]:
    """Those that no other beats: none has both shares at least as high, and one higher."""
    whole = [(each, e, k) for each in found if (e := each.erased) is not None and (k := each.kept) is not None]
    return [
        each for each, e, k in whole
        if not any(oe >= e and ok >= k and (oe > e or ok > k) for _, oe, ok in whole)
    ]  # fmt: skip


def leading(found: Sequence[Outcome]) -> set[str]:
    """The names of the cells on the front of their concepts and model: only these are compared."""
    groups: dict[tuple[tuple[str, ...], str], list[Outcome]] = defaultdict(list)
    for each in found:
        groups[each.cell.concepts, each.cell.model].append(each)
    return {each.cell.name for group in groups.values() for each in front(group)}


@dataclass(frozen=True)
class Mean:
    """One method with its settings on one model: means over all its concepts and seeds."""

    label: str
    model: str
    method: str
    found: tuple[Outcome, ...]

    @property
    def told(self) -> list[Outcome]:
        """The cells with an erased share: a mean is over these."""
        return [each for each in self.found if each.erased is not None]

    @property
    def erased(self) -> float | None:
        return _mean([each.erased for each in self.told if each.erased is not None])

    @property
    def kept(self) -> float | None:
        return _mean([each.kept for each in self.found if each.kept is not None])

    @property
    def erased_interval(self) -> Interval | None:
        """The 95 % interval of all images together, if every cell has one measure of as many images."""
        counts = [each.images for each in self.told]
        if not counts or not counts[0] or len(set(counts)) > 1:
            return None
        n = sum(counts)
        return wilson(round((self.erased or 0.0) * n), n)

    @property
    def search_seconds(self) -> float | None:
        return _mean([each.search_seconds for each in self.found if each.search_seconds is not None])

    @property
    def cells(self) -> str:
        """``7 of 8``: cells with results."""
        return f"{sum(each.state == 'done' for each in self.found)} of {len(self.found)}"


def means(found: Sequence[Outcome]) -> list[Mean]:
    """A row for each method, combination of settings and model, in the order of the plan."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for each in found:
        groups[each.cell.label, each.cell.model].append(each)
    return [Mean(label, model, of[0].method, tuple(of)) for (label, model), of in groups.items()]


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _number(measure: Measure) -> float | None:
    cell: Shown | None = measure.edited
    return cell.number if cell and not measure.doubt else None


def plain(found: Outcome) -> dict[str, Any]:
    """One cell as JSON: its plan, state, cost, both shares, and every score with its interval."""
    cell, record = found.cell, found.record
    return {
        "cell": cell.name, "method": cell.method, "settings": cell.label, "changed": dict(cell.changed),
        "concepts": list(cell.concepts), "model": cell.model, "seed": cell.seed, "state": found.state,
        "reason": record.reason, "erased": found.erased,
        "erased_interval": list(found.erased_interval) if found.erased_interval else None, "kept": found.kept,
        "harmonic": found.harmonic, "search_seconds": found.search_seconds, "seconds": round(record.seconds, 1),
        "evaluations": record.evaluations, "memory_gib": record.memory,
        "scores": [
            {"suite": m.suite, **m.edited.score.told(), "base": m.base.number if m.base else None}
            for m in found.measures if m.edited and m.edited.score
        ],
    }  # fmt: skip
