"""The table of a grid: a row for each cell, failed ones with their reason."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from mu.core.errors import ConfigError, nearest, quoted
from mu.grid.outcome import Mean, Outcome, front, harmonic, leading, means, plain
from mu.report.figures import short
from mu.report.measures import Measure, interval_text, value_text
from mu.report.table import arrow, markdown_lines

Key = tuple[str, str]
"""A score's name and protocol."""
FRONT = "on the front"
FIRST = ("method", "concepts", "model", "seed")


def columns(found: Sequence[Outcome], head: bool = True) -> list[Measure]:
    """One measure of each name and protocol that any cell has; with ``head``, only those that a report shows first."""
    first: dict[Key, Measure] = {}
    for each in found:
        for measure in each.measures:
            if measure.metric.head or not head:
                first.setdefault(measure.key, measure)
    return list(first.values())


def rows(found: Sequence[Outcome], head: bool = True) -> list[list[str]]:
    """The headings, and a row for each cell: values with their 95 % intervals."""
    measures = columns(found, head)
    names = [measure.name for measure in measures]
    titles = [
        f"{m.name} ({m.protocol})" if names.count(m.name) > 1 else f"{m.name} {arrow(m.direction)}".rstrip()
        for m in measures
    ]
    best = leading(found)
    lines = [[*FIRST, "erased", "kept", *titles, "seconds", ""]]
    for each in found:
        cell, values = each.cell, {m.key: m for m in each.measures}
        shares = [share(each.erased, each.erased_interval), share(each.kept)]
        scores = [values[m.key].edited.line if m.key in values else "" for m in measures]  # type: ignore[union-attr]
        cost = "" if each.search_seconds is None else short(each.search_seconds, 3)
        note = FRONT if cell.name in best else ""
        if each.state != "done":
            note = f"{each.state}: {each.record.reason}".removesuffix(": ")
        seed = "" if cell.seed is None else str(cell.seed)
        lines.append([cell.label, ", ".join(cell.concepts), cell.model, seed, *shares, *scores, cost, note])
    return lines


def mean_rows(found: Sequence[Outcome]) -> list[list[str]]:
    """The headings, and a row for each method, combination of settings and model: means over concepts and seeds."""
    return _mean_lines(means(found))


def _mean_lines(all_means: Sequence[Mean]) -> list[list[str]]:
    lines = [["method", "model", "cells", "erased", "kept", "seconds", ""]]
    for each in all_means:
        rivals = [other for other in all_means if other.model == each.model]
        cost = "" if each.search_seconds is None else short(each.search_seconds, 3)
        shares = [share(each.erased, each.erased_interval), share(each.kept)]
        lines.append([each.label, each.model, each.cells, *shares, cost, FRONT if each in front(rivals) else ""])
    return lines


def leaderboard(found: Sequence[Outcome]) -> str:
    """The rows of `mean_rows` as Markdown, model by model, the highest harmonic mean of erased and kept first."""
    models = list(dict.fromkeys(each.cell.model for each in found))

    def place(mean: Mean) -> tuple[int, float]:
        return models.index(mean.model), -(harmonic(mean.erased, mean.kept) or 0.0)

    return "\n".join(markdown_lines(_mean_lines(sorted(means(found), key=place)))) + "\n"


def share(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A share in per cent with its interval; "" for none."""
    return "" if value is None else f"{value_text(value, True)} {interval_text(interval, True)}".rstrip()


def markdown(found: Sequence[Outcome]) -> str:
    return "\n".join(markdown_lines(rows(found))) + "\n"


def as_json(found: Sequence[Outcome]) -> str:
    return json.dumps([plain(each) for each in found], indent=2, ensure_ascii=False) + "\n"


def as_csv(found: Sequence[Outcome]) -> str:
    """Numbers only: each score has its value and the ends of its interval; every score, head or not."""
    measures = columns(found, head=False)
    names = [f"{m.name} ({m.protocol})" for m in measures]
    first = ["cell", *FIRST, "state", "reason", "erased", "kept", "search_seconds", "seconds", "evaluations"]
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    write.writerow([*first, *(f"{name}{end}" for name in names for end in ("", " low", " high"))])
    for each in found:
        told, scores = plain(each), {m.key: m for m in each.measures}
        known = {**told, "method": each.cell.label, "concepts": "; ".join(each.cell.concepts)}
        write.writerow([*("" if known[name] is None else known[name] for name in first), *(
            number for m in measures for number in _numbers(scores.get(m.key))
        )])  # fmt: skip
    return out.getvalue()


def _numbers(measure: Measure | None) -> list[float | str]:
    """Value and ends of the interval; blank where there are none, or they are withheld."""
    score = measure.edited.score if measure and measure.edited else None
    if score is None or score.doubt:
        return ["", "", ""]
    return [score.value, *(score.interval or ("", ""))]


SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\N{UPWARDS ARROW}": r"$\uparrow$",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$", "\N{RIGHTWARDS ARROW}": r"$\rightarrow$", "\N{MINUS SIGN}": "$-$",
}  # fmt: skip


def latex(found: Sequence[Outcome]) -> str:
    """A ``tabular`` that needs no package."""
    first, *others = rows(found)
    lines = [
        " & ".join("".join(SPECIAL.get(c, c) for c in text) for text in line) + r" \\" for line in (first, *others)
    ]
    shape = "l" * len(FIRST) + "r" * (len(first) - len(FIRST) - 1) + "l"
    body = [rf"\begin{{tabular}}{{{shape}}}", r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]
    return "\n".join(body) + "\n"


FORMATS: dict[str, Callable[[Sequence[Outcome]], str]] = {
    "csv": as_csv,
    "json": as_json,
    "latex": latex,
    "md": markdown,
}


def written(found: Sequence[Outcome], form: str) -> str:
    """The table in one of `FORMATS`. Raises `ConfigError` for another."""
    if form not in FORMATS:
        raise ConfigError(f"unknown format {quoted(form)}.{nearest(form, FORMATS)} Formats: {', '.join(FORMATS)}")
    return FORMATS[form](found)
