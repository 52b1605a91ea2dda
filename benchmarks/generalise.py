"""Every method with its preset ``calibrated``, the same for all, on canvas and on sibling worlds nobody tuned on.

    mu canvas train --world 1 --out outputs/world-1
    python benchmarks/generalise.py --worlds outputs/world-1 --concepts 2 --out outputs/generalise \
        --json docs/results/generalise.json

For each world apart: UA, IRA and CRA by the world's own judge, and how often the concept is seen on prompts that do not
name it, of the edited and of the base model, at seeds and in phrasings that no probe uses. ``--concepts N`` takes N
styles and N objects, those that the base draws best; ``--names`` takes the named ones. What lies in ``--out`` is not
made again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from _shared import keep_recipe, keep_result, made_once, markdown
from _worlds import Place, one_thread

from mu.algorithms import algorithm, method
from mu.core import charts
from mu.core.files import atomic_path, slug

METHODS = ("uce", "speed", "spm", "sepce", "esd", "ca", "cie", "fmn")
SCORES = ("UA", "IRA", "CRA", "unasked")


def concepts_of(place: Place, count: int, seeds: list[int]) -> list[str]:
    """``count`` styles and ``count`` objects: those that the base draws best, in the order of the world if equal."""
    found = []
    for kind, names in (("style", place.world.styles), ("object", place.world.objects)):
        base = place.base(kind, seeds)
        found += sorted(names, key=lambda name: base.scores(name, kind)["UA"])[:count]
    return found


def measured(place: Place, name: str, concept: str, seeds: list[int]) -> dict[str, Any]:
    begun = time.monotonic()
    given = method(name).for_concepts([concept], None, "calibrated", {})
    edit: Any = algorithm(name)(given, model=place.model).find_edit()
    seconds = round(time.monotonic() - begun, 1)
    found = edit.info.found.get(concept, edit.info.found)
    facts = {key: found.get(key) for key in ("gone", "mild", "left", "shown", "moved", "strange", "strength", "anchor")}
    return {
        "concept": concept,
        "method": name,
        "seconds": seconds,
        **place.measured(edit, concept, seeds),
        "found": facts,
    }


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
                str(row["seconds"]),
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
    seconds = f"{statistics.mean(row['seconds'] for row in rows):.0f}"
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
    parser.add_argument("--worlds", nargs="+", default=["canvas"], help="canvas, or folders of siblings")
    parser.add_argument("--methods", nargs="+", default=METHODS[:6], choices=METHODS)
    parser.add_argument("--concepts", type=int, default=8, help="styles, and as many objects, of each world")
    parser.add_argument("--names", nargs="+", help="these concepts, in place of --concepts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[701], help="seeds of the reported images")
    parser.add_argument("--out", type=Path, default=Path("outputs/generalise"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    one_thread()
    options.out.mkdir(parents=True, exist_ok=True)
    keep_recipe(parser, options.out, {"seeds": options.seeds})
    result: dict[str, Any] = {"seeds": options.seeds, "worlds": {}}
    for world in options.worlds:
        place = Place.open(world)
        rows = []
        for name in options.methods:
            for concept in options.names or concepts_of(place, options.concepts, options.seeds):
                path = options.out / f"{place.world.name}_{name}_{slug(concept)}.json"
                rows.append(made_once(path, lambda: measured(place, name, concept, options.seeds)))  # noqa: B023
                print(rows[-1], flush=True)
        result["worlds"][f"{place.world.name} ({place.model.prediction_type})"] = rows
    keep_result(options.json, result, table)
    if options.json:
        with atomic_path(options.json.with_suffix(".png")) as path:
            path.write_bytes(picture(result))


if __name__ == "__main__":
    main()
