"""``mu``: the command line. Each verb is one file that calls the packages. Nothing here imports torch."""

from __future__ import annotations

import io
import sys

import typer

from mu.cli.bank import app as bank_app
from mu.cli.canvas import app as canvas_app
from mu.cli.cite import cite
from mu.cli.classifier import app as classifier_app
from mu.cli.compare import compare
from mu.cli.config import config
from mu.cli.data import app as data_app
from mu.cli.demo import demo
from mu.cli.erase import erase
from mu.cli.evaluate import evaluate
from mu.cli.generate import generate
from mu.cli.gradients import gradients
from mu.cli.grid import app as grid_app
from mu.cli.import_ import import_
from mu.cli.info import info
from mu.cli.merge import merge
from mu.cli.methods import methods
from mu.cli.program import Program, root
from mu.cli.report import report
from mu.cli.tune import tune
from mu.cli.verify import verify

app = typer.Typer(name="mu", cls=Program, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.callback(invoke_without_command=True)(root)
for verb in (
    demo,
    erase,
    tune,
    gradients,
    generate,
    evaluate,
    verify,
    compare,
    report,
    merge,
    info,
    methods,
    config,
    cite,
):
    app.command()(verb)
app.command("import")(import_)
app.add_typer(bank_app)
app.add_typer(canvas_app)
app.add_typer(classifier_app)
app.add_typer(data_app)
app.add_typer(grid_app)


def main() -> None:
    """Run the console script. What the terminal cannot show, as half a character in a path, is printed escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="mu")
    except KeyboardInterrupt:  # before a verb began
        print("interrupted", file=sys.stderr)
        sys.exit(130)


__all__ = ["app", "main"]
