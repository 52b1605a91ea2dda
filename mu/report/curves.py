"""A run's ``metrics.jsonl`` as curves over the steps."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from markupsafe import Markup

from mu.core.run import RunDirectory
from mu.report.figures import Point, line_chart, short


@dataclass(frozen=True)
class Curve:
    name: str
    svg: Markup
    note: str


def logged(run: RunDirectory) -> tuple[list[Curve], list[str]]:
    """A curve of everything that changed, the loss first, and what stayed the same as words."""
    series: dict[str, list[Point]] = defaultdict(list)
    for row in run.read_metrics():
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                series[name].append((row["step"], value))
    curves, constants = [], []
    for name, points in sorted(series.items(), key=lambda item: (item[0] != "loss", item[0] == "lr")):
        values = [value for _, value in points]
        if len(set(values)) == 1:
            constants.append(f"{name} {short(values[0])}")
            continue
        broken = sum(not math.isfinite(value) for value in values)
        note = f"{broken} of {len(values)} values are not finite" if broken else ""
        curves.append(Curve(name, line_chart(name, points), note))
    return curves, constants
