"""Several runs in one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mu.core.run import RunDirectory
from mu.core.scores import Score


def test_runs_are_compared_row_by_row(
    run: RunDirectory,
    tmp_path: Path,
    read: Callable[[str], Any],
    loads: Callable[[str], list[str]],
    page_of: Callable[..., str],
    make_run: Callable[[Path], RunDirectory],
    table: Callable[..., dict],
):
    other = make_run(tmp_path / "other-run")
    other.write_scores("mini", table(ua=0.5, frechet=12.625))
    page = page_of([run, other])
    assert (tmp_path / "comparison.html").exists() and loads(page) == []
    rows = re.findall(r"<tr>(.*?)</tr>", page.split("<tbody>")[1].split("</tbody>")[0], re.DOTALL)
    first, second = (read(row).text for row in rows)
    assert "neon-run" in first and "93.8%" in first and "13.88" in first and "50.0%" not in first
    assert "other-run" in second and "50.0%" in second and "12.62" in second
    best = [read(cell).text for cell in re.findall(r'<td class="best">(.*?)</td>', page, re.DOTALL)]
    assert [cell.split("%")[0].split("+")[0] for cell in best] == ["93.8", "12.62"]
    assert len(read(page).images()) == 9


def test_scores_of_two_protocols_share_no_column(
    run: RunDirectory,
    tmp_path: Path,
    page_of: Callable[..., str],
    make_run: Callable[[Path], RunDirectory],
    table: Callable[..., dict],
):
    other = make_run(tmp_path / "other-run")
    columns = [page_of([run, other]).split("</thead>")[0].count('<th scope="col">')]
    other.write_scores("mini", table(protocol="mini/2"))
    page = page_of([run, other])
    columns.append(page.split("</thead>")[0].count('<th scope="col">'))
    assert columns == [4, 6] and "mini/2" in page.split("</thead>")[0]


def test_what_is_in_doubt_is_withheld_and_never_the_best(
    run: RunDirectory, tmp_path: Path, page_of: Callable[..., str], make_run: Callable[[Path], RunDirectory]
):
    other = make_run(tmp_path / "blind")
    for each, base, edited in ((run, 0.9, 0.1), (other, 0.2, 0.0)):
        table = {
            "base": [Score("target shown", base, 40, "lower", "x/1")],
            "edited": [Score("target shown", edited, 40, "lower", "x/1", interval=(0.0, 0.235))],
        }
        each.write_scores("mini", table)
    page = page_of([run, other])
    assert "[0.0, 23.5]" in page and page.count(">withheld<") == 1 and ">0.0%<" not in page
    assert page.count('class="best"') == 0  # one number is left, and nothing to choose
    other.write_scores("mini", {**table, "base": [Score("target shown", 0.8, 40, "lower", "x/1")]})
    page = page_of([run, other])
    assert page.count('class="best"') == 1 and ">withheld<" not in page  # control
