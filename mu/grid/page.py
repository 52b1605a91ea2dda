"""The page of a grid: Pareto plots, all cells, and a section for each concept. One file, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from mu.core import charts
from mu.core.errors import OutputError
from mu.core.files import write_text
from mu.grid.folder import GridFolder
from mu.grid.outcome import Outcome, Shares, front, means, outcomes
from mu.grid.table import mean_rows, rows
from mu.report.figures import embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARK = "<!-- a grid of mu -->"
"""First line of the page: only such a file is replaced."""
COLOURS = ("#3b6fb6", "#d1603d", "#3f9c6d", "#8a5bb0", "#b8860b", "#c2487e", "#4ba3b7", "#7a6a5a")
SMALLEST, LARGEST = 30.0, 400.0
"""Areas of the points of the cheapest and the dearest cell, in square points."""


class Section(NamedTuple):
    """One concept, or several that were erased together: its plot and rows."""

    title: str
    plot: str
    lines: list[list[str]]
    links: list[str]


def write_page(folder: GridFolder, path: Path | None = None) -> Path:
    """Write the page of the grid, and return its path, by default ``report.html`` in its folder.

    Raises `OutputError` for a file of another kind, which would be lost.
    """
    out = path or folder.report
    if out.exists() and not (out.is_file() and MARK in out.read_text(encoding="utf-8", errors="replace")[:200]):
        raise OutputError(f"{out} exists and is not a grid's page: choose another name with --out")
    found = outcomes(folder)
    environment = Environment(
        loader=PackageLoader("mu.grid", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("page.html").render(
        name=folder.folder.resolve().name, means=_means(found),
        all=Section("All cells", "", rows(found), _links(folder, found, out)),
        sections=[_section(", ".join(concepts), of, folder, out) for concepts, of in _by_concepts(found).items()],
        failed=[each for each in found if each.state == "failed"], counts=_counts(found), tuned=folder.tuning(),
    )  # fmt: skip
    write_text(out, f"{MARK}\n{text}")
    return out


def _counts(found: Sequence[Outcome]) -> str:
    states = [each.state for each in found]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _by_concepts(found: Sequence[Outcome]) -> dict[tuple[str, ...], list[Outcome]]:
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for each in found:
        groups.setdefault(each.cell.concepts, []).append(each)
    return groups


def _means(found: Sequence[Outcome]) -> Section:
    lines = mean_rows(found)
    return Section("Methods", _plot(means(found), "Means over concepts and seeds"), lines, [""] * (len(lines) - 1))


def _section(title: str, found: Sequence[Outcome], folder: GridFolder, page: Path) -> Section:
    return Section(title, _plot(found, title), rows(found), _links(folder, found, page))


def _links(folder: GridFolder, found: Sequence[Outcome], page: Path) -> list[str]:
    """The paths from the page to the cells' own reports; "" without one, or where the page lies elsewhere."""
    beside = page.resolve().parent == folder.folder.resolve()
    reports = [folder.run(each.cell.name).report if beside and each.state == "done" else None for each in found]
    return [path.relative_to(folder.folder).as_posix() if path and path.exists() else "" for path in reports]


def _plot(found: Sequence[Shares], title: str) -> str:
    """`pareto` for the page; "" if nothing has both shares."""
    return embedded(charts.svg(pareto(found, title)), "svg+xml") if _points(found) else ""


def _points(found: Sequence[Shares]) -> list[tuple[Shares, float, float]]:
    """Those with both shares, in per cent."""
    return [
        (each, 100 * e, 100 * k) for each in found if (e := each.erased) is not None and (k := each.kept) is not None
    ]


@charts.drawing()
def pareto(found: Sequence[Shares], title: str) -> Figure:
    """Erased against kept, in per cent: a colour for each method, the area by the seconds of the search.

    Points on the front have a dark edge; bars are the 95 % intervals of the erased share."""
    figure = charts.new_figure(7.2, 4.6)
    axis: Axes = figure.add_subplot()
    best, points = front(found), _points(found)
    most = max(each.search_seconds or 0.0 for each, _, _ in points)
    for k, method in enumerate(dict.fromkeys(each.method for each, _, _ in points)):
        own, colour = [point for point in points if point[0].method == method], COLOURS[k % len(COLOURS)]
        axis.scatter(
            [e for _, e, _ in own], [k for _, _, k in own],
            s=[area(each.search_seconds or 0.0, most) for each, _, _ in own], color=colour, alpha=0.75, zorder=2,
            label=charts.label(method), edgecolors=["black" if each in best else "none" for each, _, _ in own],
        )  # fmt: skip
        for each, _, height in own:
            if each.erased_interval:
                ends = [100 * end for end in each.erased_interval]
                axis.plot(ends, [height] * 2, color=colour, alpha=0.4, zorder=1)
    axis.set(xlabel="erased, %", ylabel="kept, %", xlim=(-3, 103), ylim=(-3, 103), title=charts.label(title))
    legend = axis.legend(loc="lower left", frameon=False, title=f"area: seconds of search, at most {most:.3g}")
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    return figure


def area(cost: float, most: float) -> float:
    """The area of a point: by the square root of the cost, so that cheap cells stay visible."""
    return SMALLEST + (LARGEST - SMALLEST) * (math.sqrt(cost / most) if most > 0 else 0.0)
