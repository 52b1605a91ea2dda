"""Figures of a search for one layer (``slug_<concept>.json``): tensor importance, and forget accuracy by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, Field, model_validator
from typing_extensions import Self

from mu.core import charts
from mu.report.figures import embedded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
COLOURS = ("#3b6fb6", "#d1603d", "#3f9c6d", "#8a5bb0", "#b8860b", "#c2487e", "#4ba3b7", "#7a6a5a")


SMALLEST, LARGEST = 1e-30, 1e30
"""Limits of what a logarithmic axis shows; smaller values are drawn as the smallest one."""


def _share(value: float) -> float:
    if value < 0 or value > 1:
        raise ValueError(f"expected a share from 0 to 1, not {value:g}")
    return value


Share = Annotated[float, AfterValidator(_share)]
"""From 0 to 1, or nan."""
Positive = Annotated[float, Field(ge=0, le=LARGEST)]


class Layer(BaseModel):
    name: str
    importance: float = Field(gt=0, le=LARGEST)
    alignment: Positive
    tower: str = Field("", pattern=r"^\w{0,40}$")
    """Part of a file's name."""
    front: bool = False


class Outcome(BaseModel):
    """Forget accuracy after the step, at 1 and at 5."""

    fa1: Share | None = None
    fa5: Share | None = None


class Line(BaseModel):
    """Forget accuracy (0 to 1), at 1 or at 5, at each step ``rho``; the step taken, and its result."""

    name: str
    rho: list[Positive] = Field(min_length=1)
    fa1: list[Share] = []
    fa5: list[Share] = []
    chosen: Positive | None = None
    outcome: Outcome | None = None

    @model_validator(mode="after")
    def _one_for_each_step(self) -> Self:
        if len(self.fa1 or self.fa5) != len(self.rho):
            found = len(self.fa1 or self.fa5)
            raise ValueError(f"{len(self.rho)} steps rho have {found} forget accuracies")
        return self


class LayerSearch(BaseModel):
    """SLUG's record of one concept; other keys of the file are not drawn."""

    concept: str
    chosen: str = ""
    layers: list[Layer]
    curves: list[Line] = []


@dataclass(frozen=True)
class LayerFigure:
    """A figure in the page, and the PNG ``file`` next to the page; ``alt`` describes it."""

    file: str
    alt: str
    figure: Figure

    @property
    def uri(self) -> str:
        return embedded(charts.svg(self.figure), "svg+xml")

    @property
    def png(self) -> bytes:
        return charts.png(self.figure, DPI)


def layer_figures(search: LayerSearch, stem: str) -> list[LayerFigure]:
    """``pareto-<tower>-<stem>.png`` of every tower, and ``steps-<stem>.png`` if steps were tried."""
    figures = []
    for tower in dict.fromkeys(layer.tower for layer in search.layers):
        layers = [layer for layer in search.layers if layer.tower == tower]
        told = f"Importance against gradient alignment of {len(layers)} tensors of the {tower} tower, {search.concept}"
        figure = pareto(layers, f"{charts.label(search.concept)}: {tower} tower")
        figures.append(LayerFigure(f"pareto-{tower}-{stem}.png", told, figure))
    if search.curves:
        told = f"Forget accuracy of {search.concept} against the step, for {len(search.curves)} tensors"
        figures.append(LayerFigure(f"steps-{stem}.png", told, steps(search)))
    return figures


@charts.drawing()
def pareto(layers: Sequence[Layer], title: str) -> Figure:
    """Importance against alignment, log-log: the front in colours, other tensors as black crosses.

    An alignment of 0 is drawn at the left edge; the axis label says so.
    """
    figure, axis = _axes(title, "gradient alignment |cos(g_f, g_r)|", "importance |g_f| / |theta|")
    positive = [layer.alignment for layer in layers if layer.alignment >= SMALLEST] or [1.0]
    edge = min(positive) / 2
    others = [layer for layer in layers if not layer.front]
    axis.plot(
        [max(layer.alignment, edge) for layer in others],
        [max(layer.importance, SMALLEST) for layer in others],
        "x",
        color="black",
        ms=5,
    )
    for k, layer in enumerate(layer for layer in layers if layer.front):
        axis.plot(
            max(layer.alignment, edge),
            max(layer.importance, SMALLEST),
            "osD^v"[k // len(COLOURS) % 5],
            color=COLOURS[k % len(COLOURS)],
            ms=8,
            label=charts.label(short_name(layer.name)),
        )
    _logarithmic(axis, "x", "y")
    if zeros := sum(layer.alignment < edge for layer in layers):
        axis.set_xlim(left=edge)
        for line in axis.lines:
            line.set_clip_on(False)
        axis.set_xlabel(f"{axis.get_xlabel()}; at the left edge: {zeros} with 0")
    figure.legend(loc="outside lower left", fontsize=7, ncols=2)
    return figure


@charts.drawing()
def steps(search: LayerSearch) -> Figure:
    """Forget accuracy against rho for each tensor that was searched; a star marks the step that was taken."""
    top = 1 if any(line.fa1 for line in search.curves) else 5
    figure, axis = _axes(
        f"{charts.label(search.concept)}: search of the step", "rho = lambda |g_f| / |theta|", f"forget accuracy @{top}"
    )
    towers = {layer.name: layer.tower for layer in search.layers}
    for k, line in enumerate(search.curves):
        points = sorted(zip((max(rho, SMALLEST) for rho in line.rho), line.fa1 or line.fa5, strict=True))
        taken, colour = line.name == search.chosen, COLOURS[k % len(COLOURS)]
        axis.plot(
            *zip(*points, strict=True),
            ".-" if k < len(COLOURS) else ".--",
            color=colour,
            linewidth=2.4 if taken else 1.2,
            label=charts.label(f"{towers.get(line.name, '')} {short_name(line.name)}".strip()),
            zorder=3 if taken else 2,
        )
        reached = getattr(line.outcome, f"fa{top}", None)
        if taken and line.chosen and reached is not None:
            axis.plot(max(line.chosen, SMALLEST), reached, "*", color=colour, markersize=15, clip_on=False, zorder=9)
    _logarithmic(axis, "x")
    axis.set_ylim(-0.02, 1.02)
    figure.legend(loc="outside lower left", fontsize=7, ncols=2)
    return figure


def short_name(parameter: str) -> str:
    """``text_encoder.encoder.layers.3.mlp.fc1.weight`` -> ``3.mlp.fc1``; the component if the rest is empty."""
    component, _, path = parameter.partition(".")
    return re.sub(r"\.?weight$", "", re.sub(r"^(encoder\.layers|transformer\.resblocks)\.", "", path)) or component


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = charts.new_figure(5.4, 4.2)
    axis = figure.add_subplot(xlabel=x, ylabel=y)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    return figure, axis


def _logarithmic(axes: Axes, *directions: str) -> None:
    """Make the axes logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for direction in directions:
        axes.set(**{f"{direction}scale": "log"})
        axis = getattr(axes, f"{direction}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
