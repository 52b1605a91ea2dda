"""Scores in the page: what each means, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report.page import read_page


def test_better_and_worse_follow_the_direction(
    run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str], table: Callable[..., dict]
):
    text = read(page_of(run)).text
    assert re.search(r"\+90\.6 points\s*better", text) and re.search(r"\+1\.38\s*worse", text)
    run.write_scores("mini", table(ua=0.0, frechet=10.0))
    text = read(page_of(run)).text
    assert re.search(r"−3\.1 points\s*worse", text) and re.search(r"−2\.50?\s*better", text)


CLIP_SCORES = {
    "FA@1": 0.0,
    "identity@1 retained": 0.97,
    "identity@1": 0.89,
    "style@1": 0.96,
    "FA@5": 0.125,
    "MIA": 0.52,
    "cosine of forget pairs": 0.18,
}
VLM_SCORES = {"FA": 0.05, "retained": 0.9, "other questions": 0.95, "other questions, forgotten pictures": 0.85}


@pytest.mark.parametrize(
    ("scores", "head"),
    [
        (CLIP_SCORES, ["FA@1", "identity@1 retained", "style@1"]),
        (VLM_SCORES, ["FA", "retained", "other questions"]),
        ({"UA": 1.0, "IRA": 0.9, "CRA": 0.8, "identity": 0.7}, ["UA", "IRA", "CRA"]),
        ({"fresh": 0.7}, ["fresh"]),
    ],
)
def test_the_scores_of_every_suite_are_explained(
    scores: dict[str, float],
    head: list[str],
    run: RunDirectory,
    read: Callable[[str], Any],
    page_of: Callable[..., str],
):
    """What counts stands at the head; shares are percents, what is none keeps its number and its own name."""
    run.write_scores("mini", {"edited": [Score(name, value, 9, "lower", "x/1") for name, value in scores.items()]})
    page = read_page(run)
    assert [measure.name for measure in page.head] == head
    for measure in page.measures:
        share = measure.name not in ("cosine of forget pairs", "identity", "fresh")
        assert measure.share == share == measure.cells["edited"].text.endswith("%"), measure.name
        assert bool(measure.meaning) == (measure.name not in ("identity", "fresh"))
        assert (measure.tone == "removed") == (measure.name in ("UA", "FA", "FA@1", "FA@5", "cosine of forget pairs"))
    assert all(measure.meaning in read(page_of(run)).text for measure in page.head)


@pytest.mark.parametrize(
    ("direction", "edited", "verdict", "words"),
    [
        ("towards 0.5", 1.0, "worse", "nearer 50.0% is better"),
        ("towards 0.5", 0.45, "better", "nearer 50.0% is better"),
        ("towards 0.5", 0.4, "same", "nearer 50.0% is better"),
        ("lower", 0.45, "better", "lower is better"),
        ("higher", 0.45, "worse", "higher is better"),
        ("higher", 1.0, "better", "higher is better"),
    ],
)
def test_the_score_says_which_way_is_better_and_not_its_name(
    direction: str,
    edited: float,
    verdict: str,
    words: str,
    run: RunDirectory,
    read: Callable[[str], Any],
    page_of: Callable[..., str],
):
    columns = {"base": 0.6, "edited": edited}
    run.write_scores("mini", {column: [Score("MIA", value, 9, direction, "x/1")] for column, value in columns.items()})
    (measure,) = read_page(run).measures
    assert measure.edited and (measure.edited.verdict, measure.better, measure.tone) == (verdict, words, "other")
    assert words in read(page_of(run)).text


def test_each_suite_has_its_own_heading_and_columns(
    run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]
):
    assert page_of(run).count("<h3>") == 1
    run.write_scores(
        "other",
        {"one": [Score("fresh", 0.25, 3, "higher", "other/1")], "two": [Score("fresh", 0.5, 3, "higher", "other/1")]},
    )
    mini, other = page_of(run).split('<section id="scores">')[1].split("</section>")[0].split("<h3>")[1:]
    assert mini.startswith("Suite mini<") and "IRA" in mini and "fresh" not in mini
    assert (
        other.startswith("Suite other<") and "fresh" in other and "IRA" not in other and '<th scope="col">two' in other
    )
    head = read(page_of(run)).text.partition("Images")[0]
    assert "mini: UA" in head and "fresh" in head
