"""The report as Markdown, JSON and PDF says what the page says, and replaces no other file."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mu.core.errors import ConfigError, OutputError
from mu.core.judged import SHOWN, keep_base, kept_base
from mu.core.manifest import read_manifest
from mu.core.records import Prompt
from mu.core.run import RunDirectory
from mu.report import write_report
from mu.report.figures import InlineImage
from mu.report.formats import Paper, _print
from mu.report.outline import Heading, Shots
from mu.report.page import read_page


def text_of(pdf: bytes) -> bytes:
    """All streams of a PDF, decompressed."""
    found = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    parts = []
    for stream in found:
        try:
            parts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(parts)


def test_markdown_says_what_the_page_says(run: RunDirectory):
    page, path = read_page(run), write_report(run, kind="md")
    text = path.read_text(encoding="utf-8")
    assert path == run.folder / "report.md"
    for piece in ("93.8%", "3.1%", "13.88", "+90.6 points", "mini/1", "method: spm", "seed: 42", "Two edits"):
        assert piece in text, piece
    assert text.count("![") == 7 and "(<before/0_0.png>)" in text
    assert not re.search(r"(?<!\\)<script", text.partition("## Settings")[0])
    assert re.sub(r"\\(.)", r"\1", text).count(page.verdict.sentences[0]) == 1
    assert (run.folder / "before/0_0.png").is_file()
    elsewhere = write_report(run, run.folder.parent / "pages" / "a.md", "md").read_text(encoding="utf-8")
    assert f"(<../{run.folder.name}/before/0_0.png>)" in elsewhere


def test_text_from_files_stays_text_in_markdown(run: RunDirectory):
    run.write_prompts([Prompt(case_number=0, prompt="a | [b](http://c.de) <img src=x> *d* `e`", role="target")])
    text = write_report(run, kind="md").read_text(encoding="utf-8")
    (row,) = {line for line in text.splitlines() if line.startswith("| a ")}
    assert r"a \| [b]\(http://c.de) \<img src=x\> \*d\* \`e\`" in row and len(re.findall(r"(?<!\\)\|", row)) == 4


def test_json_holds_scores_sentences_and_files(run: RunDirectory):
    page = read_page(run)
    told = json.loads(write_report(run, kind="json").read_text(encoding="utf-8"))
    assert told["verdict"] == {"state": "erased", "sentences": page.verdict.sentences, "withheld": []}
    assert told["lost"]["unsure"] == page.losses.unsure and told["not measured"] == page.unmeasured
    ua = told["scores"]["mini"][0]
    assert (ua["title"], ua["base"]["value"], ua["edited"]["value"]) == ("Unlearning accuracy", 0.03125, 0.9375)
    assert told["images"][0]["shown"][0]["edited"] == "after/0_0.png"


def test_pdf_is_searchable_and_the_same_twice(run: RunDirectory):
    content = write_report(run, kind="pdf").read_bytes()
    assert content.startswith(b"%PDF") and content == write_report(run, kind="pdf").read_bytes()
    assert content.count(b"/Width 64 /Height 64") == 7 and b"(mu report)" in content
    assert text_of(content).count(b" Tf") > 20  # lines of text, and not a picture of them


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_a_heading_of_a_pdf_stands_above_its_images(columns: int):
    image = InlineImage("a gap, as high as an image")
    shots, moved = Shots(["base"] * columns, [("a caption " * 20, [image] * columns)]), 0
    for tenth in range(7, 110):
        sheets: list[Any] = []
        paper = Paper(sheets.append)
        paper.top = tenth / 10
        _print(paper, Heading(2, "Everyday prompts"))
        before = len(sheets)
        _print(paper, shots)
        assert len(sheets) == before, f"a sheet ended between them, from {paper.top:.1f} inches"
        moved += before
    assert 0 < moved < 40  # the control: near the foot both begin a new sheet


@pytest.mark.parametrize("kind", ["html", "md", "json", "pdf"])
def test_no_other_file_is_replaced(run: RunDirectory, kind: str):
    own = run.folder / f"mine.{kind if kind != 'html' else 'txt'}"
    own.write_text("{}", encoding="utf-8")
    with pytest.raises(OutputError, match=own.name):
        write_report(run, own, kind)
    assert own.read_text(encoding="utf-8") == "{}"
    page = write_report(run, run.folder / f"again.{kind}", kind)
    assert write_report(run, page, kind) == page  # control: a report is replaced


def test_the_scores_are_no_place_for_a_report(run: RunDirectory):
    before = run.scores.read_bytes()
    with pytest.raises(OutputError, match=r"scores\.json"):
        write_report(run, run.scores, "json")
    assert run.scores.read_bytes() == before


def test_unknown_formats_and_comparisons_are_refused(
    run: RunDirectory, tmp_path: Path, make_run: Callable[[Path], RunDirectory]
):
    with pytest.raises(ConfigError, match="'pdf'"):
        write_report(run, kind="pdff")
    with pytest.raises(ConfigError, match="comparison"):
        write_report([run, make_run(tmp_path / "other")], kind="md")


def test_images_that_a_suite_judged_are_shown_by_what_was_asked(
    run: RunDirectory, draw: Callable, read: Callable, page_of: Callable
):
    place = run.answers / "concept"
    names = ["target_neon_0_ab_seed1.png", "neighbour_photo_0_cd_seed1.png", "everyday_000_ef_seed7.png"]
    for k, name in enumerate(names):
        for side in ("base", "edited"):
            draw(place / side / name, 30 + k)
    draw(place / "edited" / "target_old_0_00_seed1.png", 50)  # left by another measurement: no prompt names it
    prompts = [Prompt(case_number=name, prompt=f"prompt {k}", seed=k) for k, name in enumerate(names)]
    run.asked("concept").write_text(json.dumps([prompt.model_dump() for prompt in prompts]), encoding="utf-8")
    groups = read_page(run).judged
    assert [(g.role, g.suite, [p.prompt for p in g.pairs]) for g in groups] == [
        ("target", "concept", ["prompt 0"]), ("neighbour", "concept", ["prompt 1"]), ("everyday", "concept", ["prompt 2"]),
    ]  # fmt: skip
    reader = read(page_of(run))
    assert "base: prompt 0, seed 1" in dict(reader.images()) and "Asked for its neighbours" in reader.text
    assert "old" not in reader.text


def test_images_of_the_canvas_suite_are_told_by_their_names(run: RunDirectory, draw: Callable):
    run.describe({"concepts": ["pop art"]})
    for name in ("pop_art_star_seed1.png", "neon_star_seed1.png"):
        draw(run.answers / "edited" / name, 3)
    groups = read_page(run).judged
    assert [(group.role, group.pairs[0].prompt) for group in groups] == [("target", "pop art star"), ("", "neon star")]
    assert not groups[0].pairs[0].before.uri and groups[0].pairs[0].after.uri  # the base's lie in a shared folder


def test_judged_images_lie_in_any_folder_and_format(run: RunDirectory, draw: Callable):
    """The list of what was asked says the names: a photo in a folder of a variant is one of them."""
    run.describe({"concepts": ["Van Gogh"]})
    names = ["saeuron/Van_Gogh_Dogs_seed188.jpg", "saeuron/Cartoon_Dogs_seed188.jpg"]
    place = run.answers / "unlearncanvas"
    for name in (*names, "saeuron/Cartoon_Cats_seed188.jpg"):
        for side in ("base", "edited"):
            draw(place / side / name, 3)
    prompts = [Prompt(case_number=name, prompt=name, seed=188) for name in (*names, "saeuron/missing_seed1.jpg")]
    run.asked("unlearncanvas").write_text(json.dumps([p.model_dump() for p in prompts]), encoding="utf-8")
    found = [(g.role, [p.name for p in g.pairs], g.total) for g in read_page(run).judged]
    assert found == [("target", names[:1], 1), ("", names[1:], 1)]
    assert all(p.before.uri and p.after.uri for g in read_page(run).judged for p in g.pairs)


def test_base_images_of_a_shared_folder_are_kept_where_the_page_shows_them(
    run: RunDirectory, draw: Callable, decoded: Callable, tmp_path: Path
):
    names = [f"everyday_{k:03}_ab_seed{k}.png" for k in range(3 * SHOWN)]
    shared = tmp_path / "base answers"
    pixels = {name: draw(shared / name, 200 + k) for k, name in enumerate(names)}
    for k, name in enumerate(names):
        draw(run.answers / "concept" / "edited" / name, k)
    assert not any(pair.before.uri for pair in read_page(run).judged[0].pairs)  # control: gaps without copies
    keep_base(run, "concept", shared)
    (group,) = read_page(run).judged
    assert len(group.pairs) == SHOWN and group.total == len(names)
    assert all((decoded(pair.before.uri) == pixels[pair.name]).all() for pair in group.pairs)
    kept = list(kept_base(run, "concept").iterdir())
    assert len(kept) == SHOWN and {*kept} <= {*run.made_in(run.panel_images)}  # an overwritten run deletes them
    keep_base(run, "concept", None)  # measured again, with images of its own
    assert not kept_base(run, "concept").exists()


def test_the_manifest_is_written_with_the_runs_own_report_only(run: RunDirectory):
    write_report(run, run.folder.parent / "page.html")
    assert not run.manifest.exists()
    write_report(run, kind="md")
    filed, page = read_manifest(run.manifest), read_page(run)
    assert filed.verdict[0] == page.verdict.sentences[0] and filed.concepts == page.concepts
    assert {"report.md", "scores.json", "config.yaml"} <= filed.files.keys()
    run.manifest.write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(OutputError, match=r"manifest\.json"):
        write_report(run)
    assert run.manifest.read_text(encoding="utf-8") == '{"mine": 1}' and not run.report.exists()
