"""The laws of a report: one file that loads nothing, shows everything, trusts no text, and needs no model library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mu.core.run import RunDirectory


@pytest.mark.parametrize(
    "planted",
    [
        "<img src='before/0_0.png'>",
        "<script>1</script>",
        "<link href='https://example.org/a.css'>",
        "<p onclick='go()'>",
        "<p style='background: url(a.png)'>",
        "<style>@import 'a';</style>",
    ],
)
def test_nothing_is_loaded(
    run: RunDirectory, planted: str, loads: Callable[[str], list[str]], page_of: Callable[..., str]
):
    page = page_of(run)
    assert run.report.exists()
    assert loads(page) == []
    assert len(loads(page + planted)) == 1


def test_the_page_itself_forbids_loading(run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]):
    policies = [attributes["content"] for tag, attributes in read(page_of(run)).tags if attributes.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'") and "script" not in policies[0] and "http" not in policies[0]


def test_every_prompt_score_and_setting_is_shown(
    run: RunDirectory, read: Callable[[str], Any], page_of: Callable[..., str]
):
    asked = json.loads((run.folder / "prompts.json").read_text())
    environment = json.loads(run.environment.read_text())
    text = read(page_of(run)).text
    shown = [prompt["prompt"] for prompt in asked]
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
    assert " ".join(environment["citation"].split()) in text
    assert "A prompt of another run." not in text and "42.4%" not in text


def test_text_from_files_stays_text(
    run: RunDirectory, read: Callable[[str], Any], loads: Callable[[str], list[str]], page_of: Callable[..., str]
):
    environment = json.loads(run.environment.read_text())
    (concept,) = environment["concepts"]
    page = page_of(run)
    reader = read(page)
    assert loads(page) == [] and "<script" not in page and "<b>Neon" not in page
    assert concept in reader.text and "<script>evil()</script>" in reader.text and "<b>Neon</b> & More" in reader.text
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    assert "<script>" in concept and loads(concept)


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
    assert run.report.exists() and {"jinja2", "matplotlib", "mu.report.html", "mu.core.run"} <= modules
    assert not modules & {"torch", "diffusers", "transformers", "peft"}
    assert [name for name in modules if name.startswith("mu.") and not name.startswith(("mu.core", "mu.report"))] == []
