"""Tables and picture of a grid of methods with their preset ``calibrated`` on worlds, canvas and its siblings.

    mu canvas train --world 5 --steps unet=6500 --out outputs/world-5
    mu grid run benchmarks/plans/generalise.yaml --out outputs/generalise
    python benchmarks/generalise.py outputs/generalise --json docs/results/generalise.json

For each world apart: UA, IRA and CRA by the world's own judge, and how often the concept is seen on prompts that do not
name it, of the edited and of the base model, at seeds and in phrasings that no probe uses. Another world is another
plan: list its model, and its styles and objects. Cells without a result are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import reduce
from pathlib import Path
from typing import Any

from _shared import keep_result, markdown

from mu.core import charts
from mu.core.errors import quoted
from mu.core.evidence import read_evidence
from mu.core.files import atomic_path
from mu.edits.files import open_edit
from mu.grid.folder import GridFolder
from mu.grid.outcome import Outcome, outcomes
from mu.models.canvas.folder import world_of

SCORES = ("UA", "IRA", "CRA", "unasked")
FOUND = ("gone", "mild", "left", "shown", "moved", "strange", "strength", "anchor")


def row_of(folder: GridFolder, cell: Outcome) -> dict[str, Any]:
    """One cell with its scores, what its calibrated search says of it, and the fingerprint of the model that it is of."""
    (concept,) = cell.cell.concepts
    run = folder.run(cell.cell.name)
    found, searched = open_edit(run.edit).info.found, read_evidence(run).found
    own = found.get(concept, found)
    shown = {m.name: m for m in cell.measures if m.suite == "worlds"}
    values = {
        column: {name: shown[name].cells[column].score.value for name in SCORES}  # type: ignore[union-attr]
        for column in ("base", "edited")
    }
    return {
        "concept": concept,
        "method": cell.method,
        "seconds": round(cell.search_seconds or 0.0, 1),
        **values,
        "found": {key: own.get(key) for key in FOUND},
        **({"model": searched.base} if searched and searched.base else {}),
    }


def by_world(folder: GridFolder) -> dict[str, list[dict[str, Any]]]:
    """The rows of each world, by its name and what its model predicts."""
    worlds: dict[str, list[dict[str, Any]]] = {}
    for cell in outcomes(folder):
        if cell.state == "done":
            place = world_of(cell.cell.model)
            rows = worlds.setdefault(f"{place.world.name} ({place.sizes.prediction})", [])
            rows.append(row_of(folder, cell))
    return worlds


def added(worlds: dict[str, list[dict[str, Any]]], more: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """``worlds`` with the rows of ``more``, by method; of two rows of one method and concept, that of ``more``."""
    found = {}
    for world in dict.fromkeys([*worlds, *more]):
        rows = {(row["method"], row["concept"]): row for side in (worlds, more) for row in side.get(world, [])}
        methods = list(dict.fromkeys(method for method, _ in rows))
        found[world] = sorted(rows.values(), key=lambda row: methods.index(row["method"]))
    return found


def of_two_makings(worlds: dict[str, list[dict[str, Any]]]) -> str:
    """A concept whose rows differ in the base's own scores, so another model, judge or sampler made them; or ""."""
    for rows in worlds.values():
        base: dict[str, dict[str, float]] = {}
        for row in rows:
            if base.setdefault(row["concept"], row["base"]) != row["base"]:
                return str(row["concept"])
    return ""


def of_two_models(worlds: dict[str, list[dict[str, Any]]]) -> str:
    """A world whose rows are of models with different fingerprints; or "". Old rows do not say theirs."""
    models = {world: {row["model"] for row in rows if "model" in row} for world, rows in worlds.items()}
    return next((world for world, several in models.items() if len(several) > 1), "")


def told(row: dict[str, Any]) -> bool:
    """Whether the judge sees the concept in at least half of the base's images; nothing is known of others."""
    return row["base"]["UA"] <= 0.5


def table(result: dict[str, Any]) -> str:
    lines = []
    for world, rows in result["worlds"].items():
        lines += [f"\n{world}: edited (base), percent\n"]
        cells = [
            [
                row["method"],
                row["concept"],
                *(f"{100 * row['edited'][s]:.1f} ({100 * row['base'][s]:.1f})" for s in SCORES),
                "yes" if row["found"]["gone"] else "no",
                "" if row["seconds"] is None else str(row["seconds"]),
            ]
            for row in rows
        ]
        means = [_mean_row(name, own) for name, own in _by_method(rows).items()]
        lines.append(markdown(["method", "concept", *SCORES, "gone", "seconds"], [*cells, *means]))
        if left_out := sorted({row["concept"] for row in rows if not told(row)}):
            lines.append(f"Left out of the means, since the base draws it in less than half: {', '.join(left_out)}.")
    return "\n".join(lines) + "\n"


def _by_method(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that enter means, by method."""
    kept = [row for row in rows if told(row)]
    return {name: [row for row in kept if row["method"] == name] for name in dict.fromkeys(r["method"] for r in kept)}


def _mean(rows: list[dict[str, Any]], side: str, score: str) -> float:
    return 100 * statistics.mean(row[side][score] for row in rows)


def _mean_row(name: str, rows: list[dict[str, Any]]) -> list[str]:
    both = [f"{_mean(rows, 'edited', s):.1f} ({_mean(rows, 'base', s):.1f})" for s in SCORES]
    gone = sum(row["found"]["gone"] for row in rows)
    timed = [row["seconds"] for row in rows if row["seconds"] is not None]
    seconds = (
        f"{statistics.mean(timed):.0f}" + (f" (of {len(timed)})" if len(timed) < len(rows) else "") if timed else ""
    )
    return [f"**{name}**", f"mean of {len(rows)}", *both, f"{gone} of {len(rows)}", seconds]


@charts.drawing()
def picture(result: dict[str, Any]) -> bytes:
    """One panel a world: of each method, what is erased, and what is kept as a share of the base's."""
    worlds = result["worlds"]
    figure = charts.new_figure(8, 0.8 + 2.6 * len(worlds))
    for axis, (world, rows) in zip(figure.subplots(len(worlds), squeeze=False)[:, 0], worlds.items(), strict=True):
        of = _by_method(rows)
        for k, (score, colour) in enumerate((("UA", "#b5483a"), ("IRA", "#3a6ea5"), ("CRA", "#7fb069"))):
            whole = {name: 100.0 if score == "UA" else _mean(own, "base", score) for name, own in of.items()}
            values = [100 * _mean(own, "edited", score) / whole[name] for name, own in of.items()]
            name = score if score == "UA" else f"{score}, share of the base's"
            bars = axis.bar([x + 0.27 * (k - 1) for x in range(len(of))], values, 0.25, color=colour, label=name)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set_xticks(range(len(of)), [f"{name}\n{len(own)} concepts" for name, own in of.items()])
        axis.set(ylim=(0, 130), ylabel="percent", title=charts.label(world))
        axis.axhline(97, color="grey", linewidth=0.6, linestyle=":")
        axis.legend(fontsize=7, ncols=3, loc="upper right", frameon=False)
    return charts.png(figure, 130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", type=Path, nargs="*", help="of `mu grid run`; default: outputs/generalise")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--untimed", action="store_true", help="the grids ran beside other work: leave out seconds")
    parser.add_argument("--add", action="store_true", help="keep the rows of the JSON that the grids do not have")
    options = parser.parse_args()
    folders = [GridFolder(place) for place in options.grids or [Path("outputs/generalise")]]
    for folder in folders:
        if not folder.plan.exists():
            parser.error(f"{folder.folder} is no grid's folder: run a plan first, `mu grid run benchmarks/plans/...`")
    if options.add and not (options.json and options.json.exists()):
        parser.error("--add is for rows of an earlier --json, and there is none")
    seeds = [[seed for one in folder.cells()[0].measured for seed in one.seeds or ()] for folder in folders]
    result = {"seeds": seeds[0], "worlds": reduce(added, map(by_world, folders))}
    if options.untimed:
        result["worlds"] = {w: [{**row, "seconds": None} for row in rows] for w, rows in result["worlds"].items()}
    if options.add:
        before = json.loads(options.json.read_text(encoding="utf-8"))
        seeds.append(before["seeds"])
        result["worlds"] = added(before["worlds"], result["worlds"])
    if any(each != seeds[0] for each in seeds):
        parser.error("the grids, or the JSON, have other seeds: their rows belong in tables of their own")
    if concept := of_two_makings(result["worlds"]):
        parser.error(
            f"the base's own scores of {quoted(concept)} differ between rows: another model, judge or sampler made some"
        )
    if name := of_two_models(result["worlds"]):
        parser.error(
            f"the rows of {quoted(name)} are of two models: the world was trained again, and its rows belong in a table "
            "of their own"
        )
    keep_result(options.json, result, table)
    if options.json:
        with atomic_path(options.json.with_suffix(".png")) as path:
            path.write_bytes(picture(result))


if __name__ == "__main__":
    main()
