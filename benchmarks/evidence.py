"""How far a zero-shot judge can be trusted: a CLIP and the embedded world's judge on the same images of suite concept.

    mu grid run benchmarks/plans/evidence.yaml --out outputs/evidence
    python benchmarks/evidence.py outputs/evidence --json docs/results/evidence.json

The images of each cell are measured twice by protocol ``concept/1``, by ``clip:canvas-clip`` and by ``canvas``, whose
classes were trained on rendered images. Reported over all edits, and for each method:

- verdicts: the share of edits on which both judges say the same of "the concept is shown in less than half of the
  images", among those on which neither withholds its number.
- ranks: Spearman's correlation of the two judges' shares, of the concept and of the neighbours.
- images: the share of target images on which both say the same, and which of the two sees the concept more often.

Cells without a result are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _shared import keep_result, markdown, mean, percent

from mu.core.errors import DataError
from mu.core.evidence import read_evidence
from mu.core.program import guarded
from mu.core.run import RunDirectory
from mu.diffusion.image_folder import claimed_for
from mu.evaluation.answers import Found, Subject
from mu.evaluation.suites.concept import Column, ConceptSuite
from mu.grid.folder import GridFolder
from mu.grid.plan import Cell, Measuring

JUDGES = ("canvas", "clip:canvas-clip")
OPTIONS = ("clip", "everyday", "steps", "guidance")
"""What the plan says of the images and of both measurements."""


def asked_of(folder: GridFolder, cell: Cell) -> Measuring:
    """What the cell's plan measures. Raises `DataError` for another plan than evidence.yaml, as whose the images are
    named."""
    if [one.suite for one in cell.measured] == ["concept"] and cell.measured[0].options.keys() == {*OPTIONS, "judge"}:
        return cell.measured[0]
    raise DataError(
        f"{folder.plan} is of another plan: its suite must be concept alone, with a judge, {', '.join(OPTIONS)}, as "
        "benchmarks/plans/evidence.yaml has it"
    )


def neighbours_of(run: RunDirectory) -> list[str]:
    """The neighbours that the run's images ask for. Raises `DataError` if its evidence does not say."""
    made = read_evidence(run).scores.get("concept")
    keys = ("neighbours", "left out, as the base does not show them")
    if not made or not all(isinstance(made.how.get(key), list) for key in keys):
        raise DataError(
            f"{run.evidence} does not say which neighbours were asked for: delete the run, and run the grid"
        )
    return [str(name) for key in keys for name in made.how[key]]


def images_of(folder: GridFolder, cell: Cell) -> Found:
    """The cell's images, and those of the base that were made by the same recipe. Raises `DataError` without them."""
    edited = folder.run(cell.name).answers / "concept" / "edited"
    recipe = claimed_for(edited).items()
    bases = [
        place for place in folder.base.glob("*/concept/*") if (own := claimed_for(place)) and own.items() <= recipe
    ]
    if not bases:
        raise DataError(f"no images in {folder.base} were made as those in {edited}: delete the run, and run the grid")
    return Found(edited, bases[0], torch.device("cpu"))


def measured(folder: GridFolder, cell: Cell) -> dict[str, Any]:
    """The scores of both judges on one edit's images, and what each sees in the target images."""
    asked, near = asked_of(folder, cell), neighbours_of(folder.run(cell.name))
    options = {key: asked.options[key] for key in OPTIONS}
    images, found = images_of(folder, cell), {}
    for name in JUDGES:
        subject = Subject(cell.concepts, None, images.device)
        suite = ConceptSuite(subject, asked.seeds or (), judge=name, retain=near, **options)
        with TemporaryDirectory() as scratch:
            table, _ = suite.score(RunDirectory(scratch), images)
        among = [*suite.known.values(), *suite.near]
        column = Column(suite.judge, images, suite.asked, among, suite.known, "edited", suite.features)
        found[name] = {
            "doubt": table["edited"][0].doubt,
            "shown": [bool(hit) for concept in suite.known for hit in column.hits(concept)],
            "scores": {score.name: [score.value, score.interval] for score in table["edited"]},
            "base": {score.name: score.value for score in table["base"]},
        }
    return found


def rows_of(folder: GridFolder) -> list[dict[str, Any]]:
    """What both judges say of each cell that has a result."""
    done = [cell for cell in folder.cells() if folder.is_done(cell)]
    return [{"method": cell.method, "concept": cell.concepts[0], **measured(folder, cell)} for cell in done]


def ranks(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's correlation, with mean ranks for equal values; None if one of the two does not vary."""

    def ranked(values: Sequence[float]) -> torch.Tensor:
        x = torch.tensor(values, dtype=torch.float64)
        return ((x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2).double()

    x, y = (r - r.mean() for r in map(ranked, (a, b)))
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else None


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far the two judges agree over some edits."""
    told = [row for row in rows if not any(row[name]["doubt"] for name in JUDGES)]
    shown = [[row[name]["scores"]["target shown"][0] for row in told] for name in JUDGES]
    kept = [
        [
            row[name]["scores"]["neighbours kept"][0]
            for row in told
            if all("neighbours kept" in row[n]["scores"] for n in JUDGES)
        ]
        for name in JUDGES
    ]
    pairs = [pair for row in told for pair in zip(*(row[name]["shown"] for name in JUDGES), strict=True)]
    return {
        "edits": len(rows),
        "withheld": {name: sum(bool(row[name]["doubt"]) for row in rows) for name in JUDGES},
        "same verdict": mean([float((a < 0.5) == (b < 0.5)) for a, b in zip(*shown, strict=True)]),
        "rank of shown": ranks(*shown) if told else None,
        "rank of kept": ranks(*kept) if kept[0] else None,
        "same on images": mean([float(a == b) for a, b in pairs]),
        "seen by CLIP alone": mean([float(b and not a) for a, b in pairs]),
        "seen by canvas alone": mean([float(a and not b) for a, b in pairs]),
    }


def table(result: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    header = [
        "",
        "edits",
        "withheld, canvas / CLIP",
        "same verdict",
        "rank, shown",
        "rank, kept",
        "same on images",
        "seen by CLIP alone",
        "by canvas alone",
    ]
    rows = [
        [
            name, str(a["edits"]), " / ".join(str(a["withheld"][judge]) for judge in JUDGES), percent(a["same verdict"]),
            number(a["rank of shown"]), number(a["rank of kept"]), percent(a["same on images"]),
            percent(a["seen by CLIP alone"]), percent(a["seen by canvas alone"]),
        ]
        for name, a in result["agreement"].items()
    ]  # fmt: skip
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, nargs="?", default=Path("outputs/evidence"), help="of `mu grid run`")
    parser.add_argument("--json", type=Path, help="the result; a table of the same name is written beside it")
    options = parser.parse_args()
    folder = GridFolder(options.grid)
    rows = rows_of(folder) if folder.plan.exists() else []
    if not rows:
        parser.error(f"{options.grid} holds no result: run `mu grid run benchmarks/plans/evidence.yaml` first")
    methods = dict.fromkeys(row["method"] for row in rows)
    found = {"all": agreement(rows)} | {m: agreement([row for row in rows if row["method"] == m]) for m in methods}
    keep_result(options.json, {"agreement": found, "rows": rows}, table)


if __name__ == "__main__":
    sys.exit(guarded(main))
