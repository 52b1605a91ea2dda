"""A run's ``metrics.jsonl`` as curves over the steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from mu.core.charts import drawing, new_figure, svg
from mu.core.run import RunDirectory
from mu.report.figures import embedded, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUCKETS = 160
"""Number of intervals of steps that summarise a curve."""
WIDTH, HEIGHT = 3.6, 1.8
"""Size of a chart in inches."""
INK, SOFT, RULE = "#3547b8", "#655e54", "#e3ddd2"

LARGEST = 1e100
"""Values beyond are drawn no more than those that are not finite."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """The values logged under one name; without ``buckets`` nothing is drawn."""

    name: str
    buckets: list[Bucket]
    note: str

    @property
    def uri(self) -> str:
        """The chart as a data URI, drawn on demand."""
        return embedded(svg(line_chart(self.buckets)), "svg+xml")

    @property
    def alt(self) -> str:
        first, last = (short(bucket.mean) for bucket in (self.buckets[0], self.buckets[-1]))
        return f"{self.name}: from {first} to {last}{', logarithmic scale' if spans_decades(self.buckets) else ''}"


@dataclass(frozen=True)
class Bucket:
    """An interval of steps: their mean ``x``, and the mean, lowest and highest value."""

    x: float
    mean: float
    low: float
    high: float


def logged(run: RunDirectory) -> tuple[list[Curve], list[str]]:
    """Curves of all values that changed, the loss first, and the constant ones as text."""
    series: dict[str, list[Point]] = defaultdict(list)
    for row in run.read_metrics():
        for name, value in row.items():
            if name != "step":
                series[name].append((row["step"], value))
    curves, constants = [], []
    for name, points in sorted(series.items(), key=lambda item: (item[0] != "loss", item[0] == "lr")):
        values = [value for _, value in points]
        if len(set(values)) == 1:
            constants.append(f"{name} {short(values[0])}")
            continue
        broken = sum(not math.isfinite(value) for value in values)
        note = f"{broken} of {len(values)} values are not finite" if broken else ""
        if large := sum(LARGEST < abs(value) < math.inf for value in values):
            note = f"{note}; {large} are too large to draw".removeprefix("; ")
        curves.append(Curve(name, summarised(points), note))
    return curves, constants


@drawing()
def line_chart(buckets: Sequence[Bucket]) -> Figure:
    """A line through the means, a band from the lowest to the highest value, and a dot at the end."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = new_figure(WIDTH, HEIGHT)
    axis = figure.add_subplot()
    steps, means = [bucket.x for bucket in buckets], [bucket.mean for bucket in buckets]
    lows, highs = [bucket.low for bucket in buckets], [bucket.high for bucket in buckets]
    axis.fill_between(steps, lows, highs, color=INK, alpha=0.18, linewidth=0)
    axis.plot(steps, means, color=INK, linewidth=1.5)
    axis.plot(steps[-1:], means[-1:], "o", color=INK, markersize=4, clip_on=False)
    log = spans_decades(buckets)
    if log:
        axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(numticks=5) if log else MaxNLocator(4))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 3)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 4)))
    axis.tick_params(which="both", length=0, labelsize=8, labelcolor=SOFT)
    axis.grid(axis="y", color=RULE, linewidth=0.8)
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)
    return figure


def spans_decades(buckets: Sequence[Bucket]) -> bool:
    """True if all values are positive and four fifths of the line span more than two decades."""
    means = sorted(bucket.mean for bucket in buckets)
    tenth = len(means) // 10
    return min(bucket.low for bucket in buckets) > 0 and means[-1 - tenth] > 100 * means[tenth]


def summarised(points: Sequence[Point]) -> list[Bucket]:
    """Summarise ``points`` in at most `BUCKETS` intervals, without values that are not finite or beyond `LARGEST`."""
    points = sorted((x, y) for x, y in points if abs(y) <= LARGEST)
    if not points:
        return []
    start, width = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    buckets = []
    for _, group in groupby(points, key=lambda point: min(int((point[0] - start) / width * BUCKETS), BUCKETS - 1)):
        members = list(group)
        values = [y for _, y in members]
        x = sum(x for x, _ in members) / len(members)
        buckets.append(Bucket(x, sum(values) / len(values), min(values), max(values)))
    return buckets
