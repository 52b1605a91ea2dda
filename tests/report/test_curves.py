"""What the log of a run comes to in the page."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mu.core.charts import svg
from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.report.curves import line_chart, logged, summarised


def test_losses_that_are_not_finite_are_counted(
    run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]
):
    assert "not finite" not in read(page_of(run)).text
    with run.metrics.open("a") as lines:
        lines.write('{"step": 50, "lr": 1e-4, "loss": NaN}\n')
    assert "1 of 51 values are not finite" in read(page_of(run)).text


def test_what_changed_is_drawn_and_what_did_not_is_told(
    run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]
):
    curves, constants = logged(run)
    assert [curve.name for curve in curves] == ["loss", "erase"] and constants == ["lr 0.0001"]
    assert curves[0].alt == "loss: from 1 to 0.02"
    page = page_of(run)
    shown = {attributes["alt"]: attributes["src"] for tag, attributes in read(page).tags if tag == "img"}
    for curve in curves:
        kind, _, content = shown[curve.alt].partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")
    assert page_of(run) == page, "the same numbers give the same bytes"


def test_a_curve_goes_through_its_points_and_ends_in_a_dot():
    (axis,) = line_chart(summarised([(0, 4.0), (2, 3.0), (1, 2.0)])).axes
    line, dot = axis.lines
    assert [*line.get_xdata()] == [0, 1, 2] and [*line.get_ydata()] == [4.0, 2.0, 3.0]
    assert dot.get_marker() == "o" and ([*dot.get_xdata()], [*dot.get_ydata()]) == ([2], [3.0])
    assert axis.get_yscale() == "linear"


def test_a_long_curve_is_summarised_with_its_range():
    buckets = summarised([(i, 1.0 + (i % 2)) for i in range(20_000)])
    assert len(buckets) == 160 and all(abs(bucket.mean - 1.5) < 0.01 for bucket in buckets)
    assert {(bucket.low, bucket.high) for bucket in buckets} == {(1.0, 2.0)}
    (band,) = line_chart(buckets).axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 2.0)


@pytest.mark.parametrize(("last", "scale"), [(1e-4, "log"), (0.5, "linear"), (-1e-4, "linear")])
def test_decades_are_drawn_on_a_logarithmic_scale(last: float, scale: str):
    points = [(k, last if k > 4 else 1.0) for k in range(10)]
    (axis,) = line_chart(summarised(points)).axes
    assert axis.get_yscale() == scale


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-1.0, -1.0], [1.0, math.nan, math.inf, 2.0], [1e-12, 1e12], [1e30, 3e30]]
)
def test_odd_curves_are_drawn(values: list[float]):
    drawn = svg(line_chart(summarised(list(enumerate(values))))).decode()
    assert "line2d" in drawn and "nan" not in drawn and "inf" not in drawn


def test_where_nothing_is_finite_there_is_no_chart(run: RunDirectory, page_of: Callable[..., str]):
    run.metrics.write_text('{"step": 0, "loss": NaN}\n{"step": 1, "loss": Infinity}\n')
    assert [(curve.buckets, curve.note) for curve in logged(run)[0]] == [([], "2 of 2 values are not finite")]
    assert "2 of 2 values are not finite" in page_of(run)


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200, float("inf"), float("nan")])
def test_values_that_no_chart_holds_are_counted_and_not_drawn(value: float, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": value}, {"step": 2, "loss": 0.5}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((curve,), _) = logged(run)
    assert [bucket.mean for bucket in curve.buckets] == [1.0, 0.5] and curve.note and curve.uri
    run.metrics.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 1e50}\n')
    assert not logged(run)[0][0].note, "control"


@pytest.mark.parametrize("step", ["-1", "1e300", "NaN", "Infinity", "null", '"x"'])
def test_a_step_is_a_count(step: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text(f'{{"step": {step}, "loss": 1}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 1\.step: "):
        logged(run)
