"""Several runs side by side."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from mu.core.judged import spread
from mu.core.scores import Score, best
from mu.report.images import PAIRS_SHOWN, Grid
from mu.report.measures import Cell
from mu.report.page import Page


@dataclass(frozen=True)
class Comparison:
    """One row per run. Each column holds scores of one name and one protocol."""

    keys: list[tuple[str, str]]
    better: dict[tuple[str, str], str]
    rows: list[tuple[Page, dict[tuple[str, str], Cell]]]
    best: dict[tuple[str, str], float]
    grid: Grid | None

    @property
    def ambiguous(self) -> set[str]:
        """Names of more than one column, which need the protocol to be distinct."""
        names = [name for name, _ in self.keys]
        return {name for name in names if names.count(name) > 1}


def compare(pages: list[Page]) -> Comparison:
    """Compare the edited columns of several runs, and the images that all runs made from the same base image."""
    rows = [(page, {m.key: m.edited for m in page.measures if m.edited}) for page in pages]
    found: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for _, cells in rows:
        for key, cell in cells.items():
            if cell.score:
                found[key].append(cell.score)
    leading = {
        key: best(scores[0].direction, (score.value for score in scores if not score.doubt))
        for key, scores in found.items()
    }
    leaders = {key: value for key, value in leading.items() if value is not None}
    better = {measure.key: measure.better for page in pages for measure in page.measures}
    return Comparison(list(found), better, rows, leaders, _shared_images(pages))


def _shared_images(pages: list[Page]) -> Grid | None:
    first, *others = (
        {(p.prompt, p.name, p.before.uri): p for group in (*page.groups, *page.judged) for p in group.pairs}
        for page in pages
    )
    shared = [key for key, pair in first.items() if pair.before.uri and all(key in other for other in others)]
    shown = spread(shared, 2 * PAIRS_SHOWN)
    rows = [(key[0], [first[key].before, *(pairs[key].after for pairs in (first, *others))]) for key in shown]
    return Grid("The same prompts and seeds", ["before", *(page.name for page in pages)], rows) if rows else None
