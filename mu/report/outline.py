"""The page of a run as a plain sequence of headings, texts, tables and images, from which other formats are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mu.core.judged import spread
from mu.report.figures import InlineImage
from mu.report.images import Pair
from mu.report.measures import Measure, SuiteScores
from mu.report.page import Page

PAIRS = 6
"""Pairs of images of each kind."""


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Items:
    lines: list[str]


@dataclass(frozen=True)
class Rows:
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Shots:
    """Rows of images: a caption, and one image of each column (a gap without ``uri``)."""

    columns: list[str]
    rows: list[tuple[str, list[InlineImage]]]


Block = Heading | Text | Items | Rows | Code | Shots


def outline(page: Page) -> Iterator[Block]:
    """What the page says, in its order."""
    yield Heading(1, page.title[:1].upper() + page.title[1:])
    if page.changed:
        yield Text("Changed since it was made:", strong=True)
        yield Items([f"{finding.part}: {finding.text}" for finding in page.changed])
    if page.concepts or page.suites:
        yield from (Text(sentence, strong=True) for sentence in page.verdict.sentences)
    if facts := [*(f"{name}: {text}" for name, text in page.asked), *page.facts]:
        yield Text(", ".join(facts))
    if page.head:
        yield Rows(["measure", "base", "edited", "change", "n"], [_head(measure) for measure in page.head])
    if page.suites:
        yield Heading(2, "What was lost")
        yield Items(page.losses.sentences or [page.losses.nothing])
        yield Heading(2, "What was not measured")
        yield Items(page.unmeasured)
    yield from _images(page)
    for suite in page.suites:
        yield Heading(2, f"Scores of suite {suite.suite}")
        yield from _scores(suite)
    if page.searches:
        yield Heading(2, "How the search decided")
        yield Items([f"{search.concept}: {search.sentence}" for search in page.searches])
    if page.commands:
        yield Heading(2, "How to reproduce")
        yield Code("\n".join(page.commands))
    if page.hashes:
        yield Heading(2, "Hashes")
        yield Rows(["of", "SHA-256 or fingerprint"], [[name, digest] for name, digest in page.hashes])
    if page.config:
        yield Heading(2, "Settings")
        yield Code(page.config.rstrip())
    if page.origin.citation:
        yield Heading(2, "Cite")
        yield Code(page.origin.citation)


def _images(page: Page) -> Iterator[Block]:
    for group in (*page.groups, *page.judged):
        yield Heading(2, group.title + (f", suite {group.suite}" if group.suite else ""))
        yield Shots(["base", "edited"], [_pair(pair) for pair in spread(group.pairs, PAIRS)])
    for grid in page.grids:
        yield Heading(2, grid.title)
        yield Shots(grid.columns, [(label, list(shots)) for label, shots in grid.rows[: 2 * PAIRS]])


def _pair(pair: Pair) -> tuple[str, list[InlineImage]]:
    return " · ".join(filter(None, (pair.prompt, pair.note))), [pair.before, pair.after]


def _head(measure: Measure) -> list[str]:
    base, edited = measure.base, measure.edited
    assert edited
    change = f"{edited.change} {edited.spread}".strip()
    return [measure.title, base.line if base else "", edited.line, change, measure.n]


def _scores(suite: SuiteScores) -> Iterator[Block]:
    rows = [[m.name, *(m.cells[column].line for column in suite.columns), m.n, m.better] for m in suite.measures]
    yield Rows(["measure", *suite.columns, "n", ""], rows)
    notes = [f"{measure.name} is withheld: {measure.doubt}." for measure in suite.measures if measure.doubt]
    if suite.intervals:
        notes.append("Brackets: the 95 % interval over these prompts and seeds.")
    yield Items([*notes, *(f"Protocol: {protocol}" for protocol in dict.fromkeys(m.protocol for m in suite.measures))])
