"""``mu grid``: many runs from one plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mu.cli.options import Json

if TYPE_CHECKING:
    from mu.grid.folder import GridFolder

app = typer.Typer(
    name="grid", help="Run methods on concepts, models and seeds from one YAML file, and compare them.",
    no_args_is_help=False,
)  # fmt: skip

Grid = Annotated[Path, typer.Argument(metavar="GRID", help="The folder that `mu grid run` wrote.")]


@app.command()
def run(
    plan: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="The plan; docs/grid.md explains its keys.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The grid's folder. Default: outputs/ and the plan's name.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=0, help="Cells at once on this machine; 0: in this very process. Default: what its cores, memory and "
            "GPUs allow.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Run on the Ray cluster at this address; auto: the one of this machine; local: "
            "start one here. Needs the extra grid.",
        ),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Check the plan and list its cells; run nothing.")] = False,
) -> None:  # fmt: skip
    """Run every cell that has no result yet. Stopped or killed, the same command goes on.

    A cell that fails is a row with its reason, and is tried again by the next run. Exit code 1 if one failed.

    Example: mu grid run grid.yaml --out outputs/grid
    Example: mu grid run grid.yaml --ray auto
    """
    from mu.core.errors import ConfigError
    from mu.core.program import show_log
    from mu.grid.engines import engine_of
    from mu.grid.plan import read_plan
    from mu.grid.running import run as run_grid

    if ray is not None and jobs is not None:
        raise ConfigError("--jobs is for this machine, and --ray runs on a cluster: leave one of the two out")
    show_log()
    asked = read_plan(plan)
    home = out or Path("outputs") / plan.stem
    if dry:
        for cell in asked.cells:
            print(f"{cell.name}  {cell.label}")
        return
    with engine_of(jobs, ray, asked.config.memory, asked.config.device) as engine:
        ended = run_grid(asked, home, engine)
    print(f"grid    {home}: {ended.done + ended.before} of {len(asked.cells)} cells have results")
    for cell, record in ended.failed:
        print(f"failed  {cell.name}: {record.reason}")
    if ended.failed:
        raise typer.Exit(1)


@app.command()
def status(grid: Grid, json: Json = False) -> None:
    """Say which cells are done, running, waiting or failed, and why.

    Example: mu grid status outputs/grid
    """
    from mu.cli.output import print_json, print_table
    from mu.grid.folder import GridFolder

    folder = GridFolder(grid)
    states = folder.states()
    if json:
        print_json({name: {**record.model_dump(), "state": state} for name, (state, record) in states.items()})
        return
    rows = [
        [name, state, f"{record.seconds:.0f} s" if record.attempts else "", _note(folder, name, state, record.reason)]
        for name, (state, record) in states.items()
    ]
    print_table(["cell", "state", "time", ""], rows)
    found = [state for state, _ in states.values()]
    print(", ".join(f"{found.count(state)} {state}" for state in ("done", "running", "waiting", "failed")))


def _note(folder: GridFolder, name: str, state: str, reason: str) -> str:
    """Why a cell failed, or the step that a search has come to."""
    if state != "running":
        return reason if state == "failed" else ""
    if folder.run(name).edit.exists():
        return "measuring"
    steps = folder.run(name).read_metrics()
    return f"step {steps[-1]['step']:.0f}" if steps else "loading"


@app.command()
def table(
    grid: Grid,
    form: Annotated[
        str | None, typer.Option("--format", metavar="csv|json|latex|md", help="Default: a table for the terminal.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
    means: Annotated[
        bool,
        typer.Option(
            "--means", help="A row for each method, means over concepts and seeds; with --format md the best first."
        ),
    ] = False,
) -> None:
    """Print the table of all cells, with intervals; CSV and JSON have every score.

    Example: mu grid table outputs/grid --format csv --out grid.csv
    Example: mu grid table outputs/grid --means --format md --out leaderboard.md
    """
    from mu.cli.output import print_table
    from mu.core.errors import ConfigError
    from mu.core.files import write_text
    from mu.grid.folder import GridFolder
    from mu.grid.outcome import outcomes
    from mu.grid.table import leaderboard, mean_rows, rows, written

    if means and form not in (None, "md"):
        raise ConfigError("--means is for the terminal and for --format md: other formats have every cell")
    if out and form is None:
        raise ConfigError("--out needs --format: csv, json, latex or md")
    found = outcomes(GridFolder(grid))
    if form is None:
        first, *others = (mean_rows if means else rows)(found)
        print_table(first, others)
        return
    text = leaderboard(found) if means else written(found, form)
    if out is None:
        print(text, end="")
        return
    write_text(out, text)
    print(out)


@app.command()
def report(
    grid: Grid,
    out: Annotated[Path | None, typer.Option(help="The page. Default: report.html in the grid's folder.")] = None,
) -> None:
    """Write one page of all cells: Pareto plots, tables, a section for each concept. Needs no model.

    Example: mu grid report outputs/grid
    """
    from mu.grid.folder import GridFolder
    from mu.grid.page import write_page

    print(write_page(GridFolder(grid), out))
