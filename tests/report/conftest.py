"""A small run folder, and its page as a browser sees it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report import write_report

CONCEPT = "<script>alert('neon')</script>"
CITATION = "@article{key,\n  title={Erasing <b>Neon</b> & More},\n  url={https://example.org/paper},\n}"
PROMPTS = [
    {"case_number": 0, "prompt": "A star image in neon style.", "seed": 188, "role": "target", "gate": [0.98]},
    {"case_number": 1, "prompt": 'A "moon" onerror=alert(1) image.', "seed": 189, "role": "retain", "gate": [0.03]},
    {"case_number": 2, "prompt": "A fish image in <img src=x> style.", "role": "retain"},
]


class Reader(HTMLParser):
    """What a browser would see: tags with attributes, and the text of the body."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.skipped = 0
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        self.skipped += tag == "style"

    def handle_endtag(self, tag):
        self.skipped -= tag == "style"

    def handle_data(self, data):
        if not self.skipped:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def images(self) -> list[tuple[str, str]]:
        """Texts and contents, without the charts."""
        shown = [(attributes["alt"], attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        return [(alt, content) for alt, content in shown if not content.startswith("data:image/svg")]


LOADING = {
    "src",
    "href",
    "srcset",
    "poster",
    "data",
    "action",
    "formaction",
    "background",
    "cite",
    "xlink:href",
    "ping",
}


def loading(page: str) -> list[str]:
    """Everything in a page that would fetch something or run something."""
    found = []
    for tag, attributes in Reader(page).tags:
        found += [f"<{tag}>"] if tag in ("script", "iframe", "object", "embed", "base") else []
        for name, value in attributes.items():
            if (name in LOADING and not value.startswith(("data:", "#"))) or name.startswith("on"):
                found.append(f"{tag} {name}={value}")
            if name == "style" and "url(" in value:
                found.append(f"{tag} {name}={value}")
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    return found + re.findall(r"url\([^)]*\)|@import[^;]*", styles)


def drawn(path: Path, seed: int, size: int = 64) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def scores(ua: float = 0.9375, frechet: float = 13.875, protocol: str = "mini/1") -> dict[str, list[Score]]:
    def column(ua: float, ira: float, frechet: float) -> list[Score]:
        return [
            Score("UA", ua, 64, "higher", protocol, {"neon": ua}),
            Score("IRA", ira, 96, "higher", protocol, {"photo": ira, "sketch": 0.8125}),
            Score("Fréchet distance", frechet, 96, "lower", "judge/1"),
        ]

    return {"base": column(0.03125, 0.96875, 12.5), "edited": column(ua, 0.953125, frechet)}


def run_at(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    for case in range(3):
        drawn(run.before / f"{case}_0.png", case)
        drawn(run.after / f"{case}_0.png", 10 + case)
    drawn(folder / "panels" / "a.png", 20)
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    panels = [
        {
            "title": "Two edits",
            "columns": ["base", "both"],
            "rows": [{"label": "A panel row.", "images": ["panels/a.png", None]}],
        }
    ]
    (folder / "panels.json").write_text(json.dumps(panels))
    run.config.write_text("seed: 42\nconcepts: ['<script>evil()</script>']\n")
    environment = {
        "versions": {"torch": "9.8.7"},
        "platform": "Plan 9",
        "method": "spm",
        "model": "canvas",
        "seconds": 252.3,
    }
    run.environment.write_text(json.dumps({**environment, "concepts": [CONCEPT], "citation": CITATION}))
    rows = [{"step": i, "lr": 1e-4, "loss": 1 / (i + 1), "erase": 2 / (i + 1)} for i in range(50)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_scores("mini", scores())
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return run_at(tmp_path / "neon-run")


@pytest.fixture(scope="session")
def make_run() -> Callable[[Path], RunDirectory]:
    """``make_run(folder)``: a run with a file of every kind that the page shows, and texts that want to be more than
    text."""
    return run_at


@pytest.fixture(scope="session")
def table() -> Callable[..., dict[str, list[Score]]]:
    """``table()``: a run's scores, of the base and edited; arguments change one value or the protocol."""
    return scores


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """``draw(path, seed)`` writes noise as a image, and returns its pixels."""
    return drawn


@pytest.fixture(scope="session")
def decoded() -> Callable[[str], np.ndarray]:
    """The pixels of a image in a page."""
    return pixels_of


@pytest.fixture(scope="session")
def page_of() -> Callable[..., str]:
    """``page_of(run)``: the page of one run, or of several."""
    return lambda run: write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def read() -> Callable[[str], Reader]:
    return Reader


@pytest.fixture(scope="session")
def loads() -> Callable[[str], list[str]]:
    return loading
