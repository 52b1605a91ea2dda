"""How far a zero-shot judge can be trusted: suite concept by a CLIP and by the embedded world's judge, on the same images.

    python benchmarks/evidence.py --runs outputs/canvas_separable --json docs/results/evidence.json

``--runs`` is the folder of `benchmarks/canvas_separable.py --parts single`: METHOD/CONCEPT/edit.safetensors. Each edit
is measured twice on the images of protocol ``concept/1``, by ``clip:canvas-clip`` and by ``canvas``, whose classes were
trained on rendered images. Reported over all edits, and for each method:

- verdicts: the share of edits on which both judges say the same of "the concept is shown in less than half of the
  images", among those on which neither withholds its number.
- ranks: Spearman's correlation of the two judges' shares, of the concept and of the neighbours.
- images: the share of target images on which both say the same, and which of the two sees the concept more often.

What each suite costs beside sampling (judging, features, reading and writing) is a share of the whole time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import GUIDANCE, STEPS, keep_recipe, keep_result, made_once, markdown, mean, percent

import mu
from mu.core.errors import MuError
from mu.core.run import RunDirectory
from mu.edits.bank import Bank
from mu.edits.files import open_edit
from mu.evaluation.answers import Answers, Subject
from mu.evaluation.suites.concept import Column, ConceptSuite

JUDGES = ("canvas", "clip:canvas-clip")


def measured(bank: Bank, seeds: Sequence[int], everyday: int, place: Path, base: Path) -> dict[str, Any]:
    """The scores of both judges on one edit's images, and what each sees in the target images."""
    found: dict[str, Any] = {}
    near: list[str] = []
    for name in JUDGES:
        began = time.perf_counter()
        suite = ConceptSuite(
            Subject.of(bank),
            seeds,
            judge=name,
            clip="canvas-clip",
            retain=near,
            everyday=everyday,
            steps=STEPS,
            guidance=GUIDANCE,
        )
        near = suite.near
        answers = Answers(bank, base, place / "edited", STEPS, GUIDANCE)
        sampling = time.perf_counter()
        answers.make(suite.rows)
        made = time.perf_counter()
        table, _ = suite.score(RunDirectory(place), answers)
        column = Column(
            suite.judge, answers, suite.asked, [*suite.known.values(), *near], suite.known, "edited", suite.features
        )
        found[name] = {
            "doubt": table["edited"][0].doubt,
            "shown": [bool(hit) for concept in suite.known for hit in column.hits(concept)],
            "scores": {score.name: [score.value, score.interval] for score in table["edited"]},
            "base": {score.name: score.value for score in table["base"]},
            "seconds": {"sampling": made - sampling, "rest": time.perf_counter() - made + sampling - began},
        }
    return found


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
    parser.add_argument(
        "--runs", type=Path, default=Path("outputs/canvas_separable"), help="METHOD/CONCEPT/edit.safetensors"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="what is there is not made again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[188])
    parser.add_argument("--everyday", type=int, default=24, help="everyday prompts")
    parser.add_argument("--json", type=Path, help="the result; a table of the same name is written beside it")
    options = parser.parse_args()
    edits = sorted(options.runs.glob("*/*/edit.safetensors"))
    if not edits:
        parser.error(f"{options.runs} holds no METHOD/CONCEPT/edit.safetensors: run benchmarks/canvas_separable.py")
    keep_recipe(parser, options.out, {"seeds": options.seeds, "everyday": options.everyday})
    model = mu.load("canvas")
    rows = []
    for path in edits:
        method, concept = path.parts[-3:-1]
        place = options.out / method / concept
        make: Callable[[], dict[str, Any]] = lambda path=path, place=place: measured(  # noqa: E731
            Bank(model, [open_edit(path)]), options.seeds, options.everyday, place, options.out / "base"
        )
        try:
            rows.append({"method": method, "concept": concept, **made_once(place / "judged.json", make)})
        except MuError as error:
            print(f"{method} {concept}: {error}")
    methods = dict.fromkeys(row["method"] for row in rows)
    found = {"all": agreement(rows)} | {m: agreement([row for row in rows if row["method"] == m]) for m in methods}
    spent = [row["canvas"]["seconds"] for row in rows]
    share = sum(each["rest"] for each in spent) / sum(sum(each.values()) for each in spent)
    keep_result(options.json, {"agreement": found, "beside sampling": share, "rows": rows}, table)


if __name__ == "__main__":
    main()
