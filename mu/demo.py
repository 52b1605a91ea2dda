"""``mu demo``: erase a style and an object from the embedded model, alone and together, and report the result."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from mu.algorithms import algorithm
from mu.core.algorithm import Found
from mu.core.errors import OutputError
from mu.core.evidence import hardware, note_files, note_scores
from mu.core.files import sha256
from mu.core.records import Panel, PanelRow
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.diffusion.image_folder import ImageRow, before_after, write_images
from mu.edits.bank import Bank
from mu.edits.edit import Edit
from mu.evaluation.suites import evaluate
from mu.models import load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.report import write_report

STYLE, OBJECT = "neon", "star"
PROMPTS = (
    "A star image in neon style.",
    "A star image in photo style.",
    "A house image in neon style.",
    "A fish image in sketch style.",
    "A portrait of Ada Stone in pop art style.",
)


def run(folder: Path, overwrite: bool = False) -> Path:
    """Erase a style and an object with SPM; show each edit alone, both in a bank, and both with the style restored.

    Writes ``folder/<concept>/`` (two runs), the panels, and ``folder/report.html``. Returns the report's path.
    Raises `OutputError` if ``folder`` already holds a demo, unless ``overwrite`` is set.
    """
    home = RunDirectory(folder)
    if home.report.exists() and not overwrite:
        raise OutputError(f"{folder} already holds a demo: choose another folder with --out, or pass --overwrite")
    home.check()
    model = load_diffusion("canvas")
    runs = {concept: _erase(model, concept, folder, overwrite) for concept in (STYLE, OBJECT)}
    edits = {concept: cast(Edit, done.edit) for concept, done in runs.items()}
    first = runs[STYLE].run
    about = {**first.read_environment(), "concepts": [STYLE, OBJECT]}
    home.begin(first.config.read_text(encoding="utf-8"), about, resume=not overwrite, overwrite=overwrite)
    tables = {}
    for concept, done in runs.items():
        answers = home.answers / "base"
        tables[concept] = evaluate(done.run, "canvas", model, edits[concept], seeds=(188,), base_answers=answers)
        write_report(done.run)
    _panels(model, Bank(model, list(edits.values())), home)
    for concept, table in tables.items():  # what is measured of the base depends on the concept too
        suite = f"canvas, {concept} erased"
        home.write_scores(suite, table)
        note_scores(home, suite, **hardware(model), how={"edit": sha256(runs[concept].run.edit)})
    note_files(home, home.panel_images, home.panels, home.answers / "base")
    _print(tables)
    report = write_report(home)
    home.finish()
    return report


def _erase(model: DiffusionModel, concept: str, folder: Path, overwrite: bool) -> Found:
    chosen = algorithm("spm")
    places = {"output_dir": str(folder), "run_dir": str(folder / concept)}
    settings = chosen.for_concepts([concept], model.name, None, places)
    done = chosen(settings, model=model).run(resume=not overwrite, overwrite=overwrite)
    before_after(done.run, model, Bank(model, [cast(Edit, done.edit)]), PROMPTS[:2], PROMPTS[2:])
    return done


def _panels(model: DiffusionModel, bank: Bank, home: RunDirectory) -> None:
    """Images of each prompt at one seed: base, each edit alone, both, and both with the style restored."""
    columns = {
        "base": {STYLE, OBJECT},
        f"{STYLE} erased": {OBJECT},
        f"{OBJECT} erased": {STYLE},
        "both erased": set(),
        f"both, {STYLE} restored": {STYLE},
    }
    rows = [ImageRow(f"{k}.png", prompt, 188) for k, prompt in enumerate(PROMPTS)]
    for stale in home.made_in(home.panel_images):
        stale.unlink()
    for k, restored in enumerate(columns.values()):
        bank.restored = set(restored)
        with bank.applied():
            write_images(model, rows, home.panel_images / str(k), steps=20, guidance=4.0)
    grid = [
        PanelRow(label=prompt, images=[f"panels/{column}/{row}.png" for column in range(len(columns))])
        for row, prompt in enumerate(PROMPTS)
    ]
    home.write_panels([Panel(title="One bank, any subset", columns=list(columns), rows=grid)])


def _print(tables: dict[str, dict[str, list[Score]]]) -> None:
    shown = Table(title="canvas: erased and retained (per cent, higher is better)")
    for heading in ("erased", "model", "UA", "IRA", "CRA"):
        shown.add_column(heading, justify="left" if heading in ("erased", "model") else "right")
    for concept, table in tables.items():
        for column, scores in table.items():
            values = {score.name: score.value for score in scores}
            shown.add_row(concept, column, *(f"{100 * values[name]:.1f}" for name in ("UA", "IRA", "CRA")))
    Console().print(shown)
