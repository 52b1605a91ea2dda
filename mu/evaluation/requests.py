"""The mean over requests: UA, IRA and CRA of a method in UnlearnCanvas (arXiv 2402.11846), as its table has them.

A run of suite ``unlearncanvas`` measures one request, a style or an object that was erased. The table's rows are means
over the 50 style requests and over the 20 object requests of a method, every request counting once. Of which images
each request's own numbers are means, its protocol says; runs of other protocols or base models never share a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mu.core.metrics import scored
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.data.unlearncanvas import OBJECTS, PHOTOS, STYLES
from mu.evaluation.metrics.intervals import bootstrap

SUITE = "unlearncanvas"
KINDS = {"style": [name for name in STYLES if name != PHOTOS], "object": list(OBJECTS)}
"""The requests of the table."""
NAMES = ("UA", "IRA", "CRA")
FEWEST = 10
"""Requests below which a mean has no interval: a bootstrap of few values is too narrow."""
UNKNOWN = ("images", "imported")
"""Methods of runs whose edit came from elsewhere: the folder that holds the run tells them apart."""
TITLE = "UnlearnCanvas: means over requests, in per cent"
NOTE = (
    "Each run's UA, IRA and CRA are as its protocol averages them; here is their mean, every request counting once, as "
    "UnlearnCanvas (arXiv 2402.11846, table 2) does over 50 styles and over 20 objects."
)


@dataclass(frozen=True)
class Mean:
    """The scores of one method over its style requests or its object requests; ``per_item`` has those of each."""

    method: str
    kind: str
    scores: list[Score]

    @property
    def requests(self) -> list[str]:
        return list(self.scores[0].per_item)

    def line(self) -> list[str]:
        counted = f"{len(self.requests)} of {len(KINDS[self.kind])}"
        return [self.method, self.kind, counted, *map(_cell, self.scores), self.scores[0].protocol]

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "target": self.kind, "scores": [score.told() for score in self.scores]}


@dataclass(frozen=True)
class Requests:
    """The means of several runs, and what is said of those that have none."""

    means: list[Mean] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[list[str]]:
        """The headings and a line for each mean."""
        return [["method", "target", "requests", *NAMES, "protocol"], *(mean.line() for mean in self.means)]


def over_requests(runs: Sequence[Path]) -> Requests:
    """The means of the ``runs`` (folders) by method, of two requests or more of one kind.

    Of a request that two runs of a method measured, neither is chosen: the method has a note in place of its mean.
    """
    found: dict[tuple[str, ...], list[tuple[str, dict[str, Score]]]] = {}
    for folder in runs:
        run = RunDirectory(folder)
        scores = {score.name: score for score in run.read_scores().get(SUITE, {}).get("edited", [])}
        request = next(iter(scores["UA"].per_item), "") if {*NAMES} <= scores.keys() else ""
        if kind := next((kind for kind, names in KINDS.items() if request in names), ""):
            protocols = (scores[name].protocol for name in NAMES)
            key = (_method(run), kind, run.origin().model or "", *protocols)
            found.setdefault(key, []).append((request, scores))
    told = Requests()
    for (method, kind, *_), group in found.items():
        requests = [request for request, _ in group]
        if len({*requests}) < 2:
            continue
        if again := next((name for name in requests if requests.count(name) > 1), ""):
            told.notes.append(f"{method}, {kind}: no mean, since several runs erase {again}: leave all but one out")
            continue
        told.means.append(Mean(method, kind, [_mean(name, dict(group)) for name in NAMES]))
    return told


def _method(run: RunDirectory) -> str:
    method = run.origin().method or "edit"
    return f"{method} in {run.folder.resolve().parent.name}" if method in UNKNOWN else method


def _mean(name: str, group: dict[str, dict[str, Score]]) -> Score:
    """The mean of one score over requests. One that is withheld withholds it."""
    each = {request: scores[name] for request, scores in group.items()}
    values = {request: score.value for request, score in each.items()}
    doubts = [f"{request}: {score.doubt}" for request, score in each.items() if score.doubt]
    return scored(
        name, sum(values.values()) / len(values), sum(score.n for score in each.values()),
        next(iter(each.values())).protocol, values,
        interval=bootstrap([*values.values()]) if len(values) >= FEWEST else None, doubt="; ".join(doubts),
    )  # fmt: skip


def _cell(score: Score) -> str:
    if score.doubt:
        return "withheld"
    ends = f" [{100 * score.interval[0]:.1f}, {100 * score.interval[1]:.1f}]" if score.interval else ""
    return f"{100 * score.value:.2f}{ends}"
