"""What a calibrated search measured (``calibration.json``): how it ended, its readings by step, and its trade-off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from mu.core import charts
from mu.report.figures import embedded, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"left": "#b5483a", "shown": "#d99a2b", "moved": "#3a6ea5"}
"""The readings that decide, and their colours."""


Share = Annotated[float, Field(ge=-1e6, le=1e6)]


class ReadingAt(BaseModel):
    """A reading of the probe: after a step, or at a strength of the finished edit."""

    left: Share
    shown: Share
    moved: Share
    step: int = Field(0, ge=0, le=10**9)
    strength: Share = 1.0


class Trial(BaseModel):
    """An anchor that was tried; its readings are in the file."""

    anchor: str


class SearchRecord(BaseModel):
    """What `mu.training.calibration` notes of one concept; other keys of the file are not shown."""

    gone: bool
    known: bool = True
    mild: bool = True
    left: Share
    shown: Share
    moved: Share
    strength: Share | None = None
    anchor: str | None = None
    tried: list[Trial] = Field([], max_length=1000)
    peers: list[str] = []
    partners: list[str] = []
    others: list[str] = []
    curve: list[ReadingAt] = Field([], max_length=100_000)
    strengths: list[ReadingAt] = Field([], max_length=1000)


@dataclass(frozen=True)
class SearchShown:
    """One concept's search, as the page shows it."""

    concept: str
    record: SearchRecord

    @property
    def sentence(self) -> str:
        """How the search ended, by its own probe and not by a judge."""
        found = self.record
        if not found.known:
            return "The model does not seem to know this concept, so nothing can be said of its erasure."
        measured = f"{_percent(found.left)} of it is left, and {_percent(found.shown)} of the probe's images show it"
        ended = f"Gone in the images of the probe: {measured}." if found.gone else f"Not gone: {measured}."
        mild = "" if found.mild else " That is more than the bound of a mild edit."
        return f"{ended} What should stay moved by {_percent(found.moved)} of what tells it from its kind.{mild}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        found = self.record
        told = [
            ("anchor", "" if found.anchor is None else _named(found.anchor)),
            ("anchors tried", ", ".join(dict.fromkeys(_named(trial.anchor) for trial in found.tried))),
            ("strength", "" if found.strength is None else short(found.strength)),
            ("words in its place", ", ".join(found.peers)),
            ("words beside it", ", ".join(found.partners)),
            ("other words that stay", ", ".join(found.others)),
        ]
        return [(name, text) for name, text in told if text]

    @property
    def uri(self) -> str:
        """The charts as a data URI, drawn on demand; "" if the search has neither steps nor strengths."""
        found = self.record
        if not (found.curve or found.strengths):
            return ""
        return embedded(charts.svg(chart(found.curve, found.strengths, found.strength)), "svg+xml")

    @property
    def alt(self) -> str:
        return (
            f"Search for {self.concept}: what is left, shown and moved, by step, and left against moved at "
            f"{len(self.record.strengths)} strengths"
        )


def _named(anchor: str) -> str:
    return anchor or "the empty prompt"


def _percent(share: float) -> str:
    return f"{short(100 * share, 2)} %"


@charts.drawing()
def chart(curve: Sequence[ReadingAt], strengths: Sequence[ReadingAt], chosen: float | None) -> Figure:
    """Readings against the step, and beside them what is left against what moved, at each strength."""
    figure = charts.new_figure(7.2 if curve and strengths else 3.8, 2.6)
    axes: list[Axes] = list(figure.subplots(1, bool(curve) + bool(strengths), squeeze=False)[0])
    if curve:
        axis = axes[0]
        for name, colour in LINES.items():
            values = [getattr(reading, name) for reading in curve]
            axis.plot([reading.step for reading in curve], values, "o-", color=colour, markersize=3, label=name)
        axis.set(xlabel="step", ylabel="share")
        axis.axhline(0, color="grey", linewidth=0.6)
        axis.legend(fontsize=8, frameon=False)
    if strengths:
        axis = axes[-1]
        axis.plot([r.moved for r in strengths], [r.left for r in strengths], "-", color="#999999", linewidth=1)
        for reading in strengths:
            taken = reading.strength == chosen
            axis.plot(
                [reading.moved], [reading.left], "*" if taken else "o", color=LINES["left"], ms=11 if taken else 4
            )
            axis.annotate(short(reading.strength), (reading.moved, reading.left), (4, 4), textcoords="offset points",
                          fontsize=8)  # fmt: skip
        axis.set(xlabel="moved of what should stay", ylabel="left of the concept")
        axis.axhline(0, color="grey", linewidth=0.6)
    return figure
