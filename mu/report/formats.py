"""A run's page as Markdown, JSON and PDF, from the same `Page` as the HTML page."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mu.core.charts import drawing, new_figure
from mu.core.scores import Score
from mu.report.figures import InlineImage
from mu.report.images import Group
from mu.report.outline import Block, Code, Heading, Items, Rows, Shots, Text, outline
from mu.report.page import Page

MARK = "mu report"
"""Stands in every file that is written here, so that no other file is replaced."""

# -- JSON --------------------------------------------------------------------------------------------------------------


def as_json(page: Page, folder: Path, out: Path) -> bytes:
    """What the page says as plain values; images by their paths in the run's folder."""
    content = {
        "kind": MARK,
        "format": 1,
        "run": page.name,
        "concepts": page.concepts,
        "method": page.origin.method,
        "model": page.origin.model,
        "verdict": {
            "state": page.verdict.state,
            "sentences": page.verdict.sentences,
            "withheld": page.verdict.withheld,
        },
        "lost": {"fell": page.losses.fell, "kept": page.losses.kept, "unsure": page.losses.unsure},
        "not measured": page.unmeasured,
        "changed": [finding._asdict() for finding in page.changed],
        "scores": {
            suite.suite: [_score(m.cells) | {"title": m.title} for m in suite.measures] for suite in page.suites
        },
        "images": [_group(group) for group in (*page.groups, *page.judged)],
        "commands": page.commands,
        "hashes": dict(page.hashes),
        "settings": page.config,
        "citation": page.origin.citation,
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _score(cells: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, Score] = {column: cell.score for column, cell in cells.items() if cell.score}
    return {column: score.told() for column, score in scores.items()}


def _group(group: Group) -> dict[str, Any]:
    pairs = [
        {"prompt": pair.prompt, "note": pair.note, "base": pair.before.file, "edited": pair.after.file}
        for pair in group.pairs
    ]
    return {"title": group.title, "suite": group.suite, "total": group.total, "shown": pairs}


# -- Markdown ----------------------------------------------------------------------------------------------------------


def as_markdown(page: Page, folder: Path, out: Path) -> bytes:
    """Images are linked where they lie in the run's ``folder``, from the place of ``out``."""
    home = os.path.relpath(folder.resolve(), out.absolute().parent.resolve())
    parts = [f"<!-- {MARK} -->", *(_markdown(block, home) for block in outline(page))]
    return ("\n\n".join(part for part in parts if part) + "\n").encode("utf-8", "backslashreplace")


def _markdown(block: Block, home: str) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_plain(text)}"
        case Text(text, strong):
            return f"**{_plain(text)}**" if strong else _plain(text)
        case Items(lines):
            return "\n".join(f"- {_plain(line)}" for line in lines)
        case Rows(head, rows):
            return _table(head, [[_plain(cell) for cell in row] for row in rows])
        case Code(text):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Shots(columns, shots):
            return _table(["", *columns], [[_plain(c), *(_linked(shot, home) for shot in row)] for c, row in shots])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[_plain(name) for name in head], ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _linked(shot: InlineImage, home: str) -> str:
    if not shot.uri:
        return "no image"
    path = Path(home, shot.file).as_posix()
    return f"![{_plain(shot.alt)}](<{re.sub('[<>|]', lambda sign: f'%{ord(sign[0]):02X}', path)}>)"


def _plain(text: str) -> str:
    """``text`` on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>|~&]|^[#+-]|(?<=\])[(:\[])", r"\\\1", " ".join(text.split()))


# -- PDF ---------------------------------------------------------------------------------------------------------------

PAPER = (8.27, 11.69)
"""A4 in inches."""
MARGIN, LINE = 0.7, 1.45
"""Inches; height of a line in font sizes."""
SIZES = {1: 18.0, 2: 12.0}
BODY, SMALL, MONO = 9.5, 7.5, 7.0
SHOT = 0.95
"""Width of an image in inches."""
ROW = SHOT + 0.55
"""Height of a row of images, with its caption."""


def as_pdf(page: Page, folder: Path, out: Path) -> bytes:
    """A plain page to print: text that can be searched, tables and images. Scripts without a font show as boxes."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages

    content = io.BytesIO()
    about = {"Title": page.title, "Subject": MARK, "Creator": "mu", "CreationDate": None}
    with (
        drawing(),
        matplotlib.rc_context({"pdf.fonttype": 42, "figure.constrained_layout.use": False}),
        PdfPages(content, metadata=about) as pages,
    ):
        paper = Paper(pages.savefig)
        for block in outline(page):
            _print(paper, block)
        paper.finish()
    return content.getvalue()


class Paper:
    """Sheets that are filled from the top; ``save(figure)`` takes each full one."""

    def __init__(self, save: Callable[[Any], object]):
        self.save, self.figure, self.top = save, new_figure(*PAPER), MARGIN

    def room(self, height: float) -> None:
        """Begin a new sheet if less than ``height`` inches are left."""
        if self.top + height > PAPER[1] - MARGIN and self.top > MARGIN:
            self.finish()
            self.figure, self.top = new_figure(*PAPER), MARGIN

    def finish(self) -> None:
        self.save(self.figure)

    def write(self, text: str, size: float, *, x: float = MARGIN, **style: Any) -> None:
        """Write one line."""
        self.room(LINE * size / 72)
        self.figure.text(x / PAPER[0], 1 - self.top / PAPER[1], text, size=size, va="top", **style)
        self.top += LINE * size / 72

    def space(self, height: float) -> None:
        self.top += height

    def draw(self, image: Image.Image, x: float, width: float) -> None:
        """Draw ``image`` at ``x``, inches from the left, below the last line."""
        height = width * image.height / image.width
        place = (x / PAPER[0], 1 - (self.top + height) / PAPER[1], width / PAPER[0], height / PAPER[1])
        axis = self.figure.add_axes(place)
        axis.imshow(image, interpolation="none")
        axis.set_axis_off()


def _print(paper: Paper, block: Block) -> None:
    match block:
        case Heading(level, text):
            paper.space(0.16)
            paper.room(ROW + 0.4)  # no heading is left alone at the foot of a sheet
            _write(paper, text, SIZES[level], weight="bold")
            paper.space(0.06)
        case Text(text, strong):
            _write(paper, text, BODY + strong, weight="bold" if strong else "normal")
            paper.space(0.06)
        case Items(lines):
            for line in lines:
                _write(paper, line, BODY, first="\N{BULLET} ")
            paper.space(0.08)
        case Rows(head, rows):
            _rows(paper, [head, *rows])
            paper.space(0.08)
        case Code(text):
            for line in text.splitlines():
                _write(paper, line, MONO, family="monospace")
            paper.space(0.08)
        case Shots(columns, shots):
            _shots(paper, columns, shots)


def _write(paper: Paper, text: str, size: float, *, first: str = "", **style: Any) -> None:
    """Write ``text``, broken at the right margin; ``first`` stands before its first line."""
    wide = 0.62 if style.get("family") == "monospace" else 0.58 if style.get("weight") == "bold" else 0.53
    width = int((PAPER[0] - 2 * MARGIN) * 72 / (wide * size))
    shown = " ".join(text.split()) if style.get("family") != "monospace" else text.expandtabs(4)
    lines = textwrap.wrap(shown, width, initial_indent=first, subsequent_indent="  " if first else "") or [""]
    for line in lines:
        paper.write(line, size, **style)


def _rows(paper: Paper, rows: Sequence[Sequence[str]]) -> None:
    """A table in columns of equal characters; what is too wide is broken."""
    total = int((PAPER[0] - 2 * MARGIN) * 72 / (0.605 * MONO))
    widest = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    widths = _fitted(widest, total - 2 * (len(widest) - 1))
    for number, row in enumerate(rows):
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for k in range(max(map(len, cells))):
            parts = [(cell[k] if k < len(cell) else "").ljust(w) for cell, w in zip(cells, widths, strict=True)]
            paper.write("  ".join(parts), MONO, family="monospace", weight="normal" if number else "bold")


def _fitted(widest: Sequence[int], total: int) -> list[int]:
    """Widths of columns that together fit: the widest are cut first."""
    widths = [max(1, width) for width in widest]
    while sum(widths) > total and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return widths


def _shots(paper: Paper, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[InlineImage]]]) -> None:
    """Each caption above its row of images; images of up to two columns stand two rows side by side."""
    width = min(SHOT, (PAPER[0] - 2 * MARGIN) / max(len(columns), 1) - 0.08)
    beside = max(1, int((PAPER[0] - 2 * MARGIN) / (len(columns) * (width + 0.08) + 0.25)))
    step = (PAPER[0] - 2 * MARGIN) / beside
    for k in range(0, len(rows), beside):
        paper.room(ROW - SHOT + width)
        start, bottom = paper.top, paper.top
        for place, (caption, shots) in enumerate(rows[k : k + beside]):
            paper.top, left = start, MARGIN + place * step
            for line in textwrap.wrap(caption, int((step - 0.2) * 72 / (0.53 * SMALL)), max_lines=2):
                paper.write(line, SMALL, x=left)
            names = paper.top
            for number, (column, shot) in enumerate(zip(columns, shots, strict=True)):
                paper.top, x = names, left + number * (width + 0.08)
                paper.write(column[:24] if shot.uri else f"{column[:24]}: no image", SMALL - 1, x=x, color="#655e54")
                if shot.uri:
                    paper.draw(_decoded(shot), x, width)
            paper.space(width)
            bottom = max(bottom, paper.top)
        paper.top = bottom + 0.1


def _decoded(shot: InlineImage) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(shot.uri.partition(",")[2])))


WRITERS: dict[str, Callable[[Page, Path, Path], bytes]] = {"md": as_markdown, "json": as_json, "pdf": as_pdf}
