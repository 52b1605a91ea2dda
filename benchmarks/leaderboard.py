"""The leaderboard: methods on each model, by the committed results of the benchmarks. Runs no model.

    python benchmarks/leaderboard.py --out docs/results/leaderboard.md

The means, the front and their order are those of `mu grid table GRID --means --format md`. A result is there only if
the judge sees the concept in the base's images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mu.core.files import write_text
from mu.core.metrics import scored
from mu.grid.folder import Record
from mu.grid.outcome import Outcome
from mu.grid.plan import Cell
from mu.grid.table import leaderboard
from mu.report.measures import suite_scores

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHARES = ("UA", "IRA", "CRA")
HEAD = """# Leaderboard

Made by `python benchmarks/leaderboard.py` from the results of the benchmarks. Erased is UA, kept the mean of IRA and CRA, in per
cent; seconds are those of one search. Each row is the mean over concepts that were erased alone. A method is on the front if none
has both shares at least as high and one higher. The highest harmonic mean of erased and kept comes first.
"""


def outcome(row: Mapping[str, Any], model: str) -> Outcome:
    """A row of a benchmark as a cell of a grid."""
    table = {
        column: [scored(name, row[column][name], 0, model) for name in SHARES] for column in ("base", "edited")
    }  # the rows do not say how many images there were, so their shares have no intervals
    cell = Cell(f"{row['method']}-{row['concept']}", row["method"], (row["concept"],), model, {})
    return Outcome(cell, "done", Record(state="done"), tuple(suite_scores("", table).measures), row.get("seconds"))


def boards(results: Path = RESULTS) -> Iterator[tuple[str, str, list[Outcome]]]:
    """For each model: its title, whence its rows come, and the rows."""
    single = json.loads((results / "canvas_neutral.json").read_text(encoding="utf-8"))["single"]
    timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in single]
    source = "Presets `canvas`, chosen on other seeds: [canvas_neutral.md](canvas_neutral.md). What a search takes"
    source += "\nis in [separable.md](../separable.md#measured-on-canvas)."
    yield "canvas", source, [outcome(row, "canvas") for row in timeless]
    worlds = json.loads((results / "generalise.json").read_text(encoding="utf-8"))["worlds"]
    for name, rows in worlds.items():
        source = (
            "Preset `calibrated`, no setting by hand: [generalise.md](generalise.md). What was looked at on it is in"
        )
        source += "\n[calibration.md](../calibration.md#measured)."
        yield name, source, [outcome(row, name) for row in rows]


def page() -> str:
    parts = [HEAD]
    for title, source, rows in boards():
        parts += [f"## {title}\n", f"{source}\n", leaderboard(rows)]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the page here")
    options = parser.parse_args()
    print(page())
    if options.out:
        write_text(options.out, page())


if __name__ == "__main__":
    main()
