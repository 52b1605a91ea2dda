"""The laws of a report: one file that loads nothing, shows everything, trusts no text, and needs no model library."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mu.core.errors import DataError, OutputError
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report import write_report
from mu.report.figures import line_chart, picture, short
from mu.report.html import read_page

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

    def pictures(self) -> list[tuple[str, str]]:
        return [(attributes["alt"], attributes["src"]) for tag, attributes in self.tags if tag == "img"]


LOADING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "cite", "xlink:href", "ping"}


def loads(page: str) -> list[str]:
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


def draw(path: Path, seed: int, size: int = 64) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def table(ua: float = 0.9375, frechet: float = 13.875, protocol: str = "mini/1") -> dict[str, list[Score]]:
    def column(ua: float, ira: float, frechet: float) -> list[Score]:
        return [
            Score("UA", ua, 64, "higher", protocol, {"neon": ua}),
            Score("IRA", ira, 96, "higher", protocol, {"photo": ira, "sketch": 0.8125}),
            Score("Fréchet distance", frechet, 96, "lower", "judge/1"),
        ]

    return {"base": column(0.03125, 0.96875, 12.5), "edited": column(ua, 0.953125, frechet)}


def make_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    for case in range(3):
        draw(run.before / f"{case}_0.png", case)
        draw(run.after / f"{case}_0.png", 10 + case)
    draw(folder / "panels" / "a.png", 20)
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
    environment = {"versions": {"torch": "9.8.7"}, "platform": "Plan 9", "method": "spm", "model": "canvas", "seconds": 252.3}
    run.environment.write_text(json.dumps({**environment, "concepts": [CONCEPT], "citation": CITATION}))
    rows = [{"step": i, "lr": 1e-4, "loss": 1 / (i + 1), "erase": 2 / (i + 1)} for i in range(50)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_scores(table())
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "neon-run")


def page_of(run: RunDirectory | list[RunDirectory]) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("planted", ["<img src='before/0_0.png'>", "<script>1</script>", "<link href='https://example.org/a.css'>",
                                     "<p onclick='go()'>", "<p style='background: url(a.png)'>", "<style>@import 'a';</style>"])  # fmt: skip
def test_nothing_is_loaded(run: RunDirectory, planted: str):
    page = page_of(run)
    assert run.report.exists()
    assert loads(page) == []
    assert len(loads(page + planted)) == 1


def test_the_page_itself_forbids_loading(run: RunDirectory):
    policies = [attributes["content"] for tag, attributes in Reader(page_of(run)).tags if attributes.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'") and "script" not in policies[0] and "http" not in policies[0]


def test_every_prompt_score_and_setting_is_shown(run: RunDirectory):
    text = Reader(page_of(run)).text
    shown = [prompt["prompt"] for prompt in PROMPTS]
    shown += [
        "93.8%",
        "3.1%",
        "95.3%",
        "96.9%",
        "13.88",
        "12.50",
        "+90.6 points",
        "+1.38",
        "81.2%",
        "mini/1",
        "judge/1",
        "n = 64",
    ]
    shown += [
        "seed 188",
        "gate 0.98",
        "0.03",
        "spm",
        "canvas",
        "4 min 12 s",
        "9.8.7",
        "Plan 9",
        "seed: 42",
        "A panel row.",
        "both",
    ]
    assert [piece for piece in shown if piece not in text] == []
    assert " ".join(CITATION.split()) in text
    assert "A prompt of another run." not in text and "42.4%" not in text


def test_better_and_worse_follow_the_direction(run: RunDirectory):
    text = Reader(page_of(run)).text
    assert re.search(r"\+90\.6 points\s*better", text) and re.search(r"\+1\.38\s*worse", text)
    run.write_scores(table(ua=0.0, frechet=10.0))
    text = Reader(page_of(run)).text
    assert re.search(r"−3\.1 points\s*worse", text) and re.search(r"−2\.50?\s*better", text)


CLIP_SCORES = {"FA@1": 0.0, "identity@1 retained": 0.97, "identity@1": 0.89, "style@1": 0.96, "FA@5": 0.125, "MIA": 0.52,
               "cosine of forget pairs": 0.18}  # fmt: skip
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
def test_the_scores_of_every_suite_are_explained(scores: dict[str, float], head: list[str], run: RunDirectory):
    """What counts stands at the head; shares are percents, what is none keeps its number and its own name."""
    run.write_scores({"edited": [Score(name, value, 9, "lower", "x/1") for name, value in scores.items()]})
    page = read_page(run)
    assert [measure.name for measure in page.verdict] == head
    for measure in page.measures:
        explained = measure.name not in ("cosine of forget pairs", "identity", "fresh")
        assert bool(measure.meaning) == explained == measure.cells["edited"].text.endswith("%"), measure.name
        assert (measure.tone == "removed") == (measure.name[:2] in ("UA", "FA"))
    assert all(measure.meaning in Reader(page_of(run)).text for measure in page.verdict)


def test_small_pictures_are_exact_and_each_has_its_text(run: RunDirectory):
    pictures = Reader(page_of(run)).pictures()
    assert len(pictures) == 7 and all(alt for alt, _ in pictures)
    by_alt = dict(pictures)
    before, after = (decoded(by_alt[f"{side} the edit: {PROMPTS[0]['prompt']}"]) for side in ("before", "after"))
    assert np.array_equal(before, np.asarray(Image.open(run.before / "0_0.png")))
    assert np.array_equal(after, np.asarray(Image.open(run.after / "0_0.png")))
    assert not np.array_equal(before, after)


def test_large_pictures_are_reduced(tmp_path: Path):
    draw(tmp_path / "large.png", 0, 1024)
    draw(tmp_path / "small.png", 0)
    large, small = picture(tmp_path, "large.png", ""), picture(tmp_path, "small.png", "")
    assert (large.width, large.pixelated) == (512, False) and (small.width, small.pixelated) == (64, True)
    assert len(large.uri) < (tmp_path / "large.png").stat().st_size / 4


def test_roles_split_the_pictures(run: RunDirectory):
    removed, kept = page_of(run).split("What was removed")[1].split("What was kept")
    assert "seed 188" in removed and "seed 189" not in removed
    assert "seed 189" in kept.split("Two edits")[0]


def test_text_from_files_stays_text(run: RunDirectory):
    page = page_of(run)
    reader = Reader(page)
    assert loads(page) == [] and "<script" not in page and "<b>Neon" not in page
    assert CONCEPT in reader.text and "<script>evil()</script>" in reader.text and "<b>Neon</b> & More" in reader.text
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    assert "<script>" in CONCEPT and loads(CONCEPT)


ESCAPES = [
    "../secret.png",
    "panels/../../secret.png",
    "/etc/secret.png",
    "..\\secret.png",
    "C:\\secret.png",
    "link.png",
    "a\0.png",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_that_leave_the_run_are_refused(run: RunDirectory, name: str):
    draw(run.folder.parent / "secret.png", 99)
    (run.folder / "link.png").symlink_to(run.folder.parent / "secret.png")
    panel = {"title": "t", "columns": ["c"], "rows": [{"label": "l", "images": ["panels/a.png"]}]}
    (run.folder / "panels.json").write_text(json.dumps([panel]))
    assert "c: l" in dict(Reader(page_of(run)).pictures())

    panel["rows"] = [{"label": "l", "images": [name]}]
    (run.folder / "panels.json").write_text(json.dumps([panel]))
    run.report.unlink()
    with pytest.raises(DataError, match="leaves the run folder"):
        write_report(run)
    assert not run.report.exists()


def test_a_linked_picture_folder_is_refused(run: RunDirectory):
    outside = run.folder.parent / "elsewhere"
    shutil.move(run.after, outside)
    run.after.symlink_to(outside)
    with pytest.raises(DataError, match="leaves the run folder"):
        write_report(run)


def test_the_report_needs_no_model_library(run: RunDirectory):
    code = (
        "import sys; from mu.core.run import RunDirectory; from mu.report import write_report;"
        f"write_report(RunDirectory({str(run.folder)!r}));"
        "print(*sorted({name.split('.')[0] for name in sys.modules} | {name for name in sys.modules if name.startswith('mu.')}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    modules = set(done.stdout.split())
    assert run.report.exists() and {"jinja2", "mu.report.html", "mu.core.run"} <= modules
    assert not modules & {"torch", "diffusers", "transformers", "peft", "matplotlib"}
    assert [name for name in modules if name.startswith("mu.") and not name.startswith(("mu.core", "mu.report"))] == []


@pytest.mark.parametrize(
    ("part", "sign", "instead"),
    [
        ("config.yaml", "config.yaml", ""),
        ("environment.json", "Versions", "neon-run"),
        ("metrics.jsonl", "Training", ""),
        ("scores.json", "How each was measured", "mu evaluate"),
        ("prompts.json", "Prompts and gates", "1_0.png"),
        ("panels.json", "Two edits", ""),
        ("after", "after the edit: A star image in neon style.", "no picture"),
    ],
)
def test_a_missing_part_is_left_out(run: RunDirectory, part: str, sign: str, instead: str):
    def seen() -> str:
        reader = Reader(page_of(run))
        return " ".join([reader.text, *(alt for alt, _ in reader.pictures())])

    assert sign in seen()
    path = run.folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sign not in seen() and instead in seen()


def test_the_emptiest_run_says_how_to_go_on(tmp_path: Path):
    run = RunDirectory(tmp_path / "my run")
    run.folder.mkdir()
    with pytest.raises(DataError, match="nothing to report"):
        write_report(run)
    run.config.write_text("seed: 1\n")
    assert f"mu evaluate '{run.folder}'" in Reader(page_of(run)).text
    with pytest.raises(DataError, match="no run"):
        write_report([])
    with pytest.raises(OutputError, match="cannot write"):
        write_report(run, run.config / "report.html")


def test_each_gate_is_named_by_its_concept(run: RunDirectory):
    environment = json.loads(run.environment.read_text())
    prompts = [{**prompt, "gate": [0.91, 0.12]} for prompt in PROMPTS]
    (run.folder / "prompts.json").write_text(json.dumps(prompts))
    assert "gate 2" in Reader(page_of(run)).text
    run.environment.write_text(json.dumps({**environment, "concepts": ["neon", "star"]}))
    text = Reader(page_of(run)).text
    assert "gate: neon" in text and "gate: star" in text
    assert "gate 0.91, 0.12" in text and "gate 2" not in text


def damage(name: str, text: str) -> Callable[[RunDirectory], object]:
    return lambda run: (run.folder / name).write_text(text)


@pytest.mark.parametrize(
    "spoil",
    [
        damage("environment.json", "{"), damage("prompts.json", '{"case_number": 0}'), damage("prompts.json", '[{"seed": 1}]'),
        damage("scores.json", '{"base": [{"name": "UA"}]}'),
        damage("panels.json", '[{"title": "t", "columns": ["a", "b"], "rows": [{"label": "l", "images": ["panels/a.png"]}]}]'),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(run: RunDirectory, spoil: Callable[[RunDirectory], object]):
    write_report(run)
    spoil(run)
    with pytest.raises(DataError, match=r"environment|prompts|metrics|scores|panels"):
        write_report(run)


def test_a_damaged_picture_is_a_gap(run: RunDirectory):
    assert Reader(page_of(run)).text.count("no picture") == 1  # the gap that panels.json asks for
    (run.after / "0_0.png").write_bytes((run.after / "0_0.png").read_bytes()[:300])
    reader = Reader(page_of(run))
    assert reader.text.count("no picture") == 2 and len(reader.pictures()) == 6


def test_runs_are_compared_row_by_row(run: RunDirectory, tmp_path: Path):
    other = make_run(tmp_path / "other-run")
    other.write_scores(table(ua=0.5, frechet=12.625))
    page = page_of([run, other])
    assert (tmp_path / "comparison.html").exists() and loads(page) == []
    rows = re.findall(r"<tr>(.*?)</tr>", page.split("<tbody>")[1].split("</tbody>")[0], re.DOTALL)
    first, second = (Reader(row).text for row in rows)
    assert "neon-run" in first and "93.8%" in first and "13.88" in first and "50.0%" not in first
    assert "other-run" in second and "50.0%" in second and "12.62" in second
    best = [Reader(cell).text for cell in re.findall(r'<td class="best">(.*?)</td>', page, re.DOTALL)]
    assert [cell.split("%")[0].split("+")[0] for cell in best] == ["93.8", "12.62"]
    assert len(Reader(page).pictures()) == 9


def test_scores_of_two_protocols_share_no_column(run: RunDirectory, tmp_path: Path):
    other = make_run(tmp_path / "other-run")
    columns = [page_of([run, other]).split("</thead>")[0].count('<th scope="col">')]
    other.write_scores(table(protocol="mini/2"))
    page = page_of([run, other])
    columns.append(page.split("</thead>")[0].count('<th scope="col">'))
    assert columns == [4, 6] and "mini/2" in page.split("</thead>")[0]


def test_a_curve_reaches_its_extremes():
    svg = str(line_chart("loss", [(0, 4.0), (1, 2.0), (2, 3.0)]))
    line = re.search(r'class="line" points="([^"]*)"', svg).group(1)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, corner.split(",")) for corner in line.split())
    assert (x0, x2) == (46, 350) and x1 == 198
    assert y0 == 8 and y1 == 146 and y2 == pytest.approx((8 + 146) / 2)
    assert 'aria-label="loss: from 4 to 3"' in svg


def test_a_long_curve_is_summarised_with_its_range():
    noisy = [(i, 1.0 + (i % 2)) for i in range(20_000)]
    svg = str(line_chart("loss", noisy))
    corners = re.search(r'class="line" points="([^"]*)"', svg).group(1).split()
    assert len(corners) == 160 and all(abs(float(corner.split(",")[1]) - 77) < 1 for corner in corners)
    band = re.search(r'class="band" points="([^"]*)"', svg).group(1).split()
    assert {float(corner.split(",")[1]) for corner in band} == {8.0, 146.0}


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-1.0, -1.0], [1.0, float("nan"), float("inf"), 2.0], [1e-12, 1e12], [1e30, 3e30]]
)
def test_odd_curves_are_drawn(values: list[float]):
    svg = str(line_chart("<loss>", list(enumerate(values))))
    assert "<polyline" in svg and "nan" not in svg and "inf" not in svg and "<loss>" not in svg
    assert line_chart("loss", [(0, float("nan"))]) == ""


def test_losses_that_are_not_finite_are_counted(run: RunDirectory):
    assert "not finite" not in Reader(page_of(run)).text
    with run.metrics.open("a") as lines:
        lines.write('{"step": 50, "lr": 1e-4, "loss": NaN}\n')
    assert "1 of 51 values are not finite" in Reader(page_of(run)).text


def test_numbers_are_short():
    values = [0.27813, 12345.6, 0.0001, -1.5, 0.0, float("nan"), 1e9]
    assert [short(v) for v in values] == ["0.2781", "12,346", "0.0001", "−1.5", "0", "not finite", "1e9"]
    assert short(13.9, padded=True) == "13.90"
