"""The conflicts of a bank's edits as one picture: how much each edit acts on each other's concept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mu.core import charts
from mu.core.errors import OutputError
from mu.core.files import atomic_path, check_writing, writing
from mu.edits.protection import Leak

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
LABELLED = 120
"""Largest number of edits whose names are written beside the map."""
LOWEST = 1e-4
"""Shares below this have one colour."""


def check_chart(path: Path) -> None:
    """Raise `OutputError` if no chart can be written to ``path``."""
    if path.suffix.lower() not in ENDINGS:
        raise OutputError(f"{path} is no {' or '.join(ENDINGS)} file: charts are written as one of these")
    check_writing(path)


def write_chart(path: Path, leaks: Sequence[Leak], tolerance: float) -> None:
    """Write the heat map of ``leaks`` to a ``.png`` or ``.svg`` file."""
    check_chart(path)
    figure = heat_map(leaks, tolerance)
    content = charts.svg(figure) if path.suffix.lower() == ".svg" else charts.png(figure, 150)
    with writing(path), atomic_path(path) as partial:
        partial.write_bytes(content)


def worst(leaks: Sequence[Leak], count: int) -> list[Leak]:
    """The ``count`` pairs with the largest shares, largest first; without those that are not measurable."""
    known = [leak for leak in leaks if leak.share is not None]
    return sorted(known, key=lambda leak: -(leak.share or 0.0))[:count]


@charts.drawing()
def heat_map(leaks: Sequence[Leak], tolerance: float) -> Figure:
    """One row for each edit, one column for each concept; the colour changes at ``tolerance``, in powers of ten."""
    import numpy as np
    from matplotlib.colors import LogNorm

    names = list(dict.fromkeys([leak.edit for leak in leaks] + [leak.on for leak in leaks]))
    place = {name: k for k, name in enumerate(names)}
    shares = np.full((len(names), len(names)), np.nan)
    for leak in leaks:
        if leak.share is not None:
            shares[place[leak.edit], place[leak.on]] = max(leak.share, LOWEST)
    side = min(4 + 0.14 * len(names), 20)
    figure = charts.new_figure(side + 1.5, side)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="magma_r", norm=LogNorm(LOWEST, max(1.0, 10 * tolerance)), interpolation="nearest")
    axes.set_facecolor("0.9")
    axes.set_xlabel("acts on the concept")
    axes.set_ylabel("edit of")
    labels = [charts.label(name) for name in names] if len(names) <= LABELLED else []
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label("share of the edit's effect on its own concept")
    bar.ax.axhline(tolerance, color="tab:green", linewidth=1.5)
    return figure
