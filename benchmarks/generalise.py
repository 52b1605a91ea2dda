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

from _shared import keep_recipe, keep_result, made_once
from _worlds import Place, one_thread

from mu.algorithms import algorithm, method
from mu.core.files import slug

METHODS = ("uce", "spm", "sepce", "esd", "ca", "cie", "fmn")
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
    told = {key: found.get(key) for key in ("gone", "mild", "left", "shown", "moved", "strange", "strength", "anchor")}
    return {
        "concept": concept,
        "method": name,
        "seconds": seconds,
        **place.measured(edit, concept, seeds),
        "found": told,
    }


def table(result: dict[str, Any]) -> str:
    lines = []
    for world, rows in result["worlds"].items():
        lines += [
            f"\n{world}: edited (base), percent\n",
            "| method | concept | UA | IRA | CRA | unasked | gone | seconds |",
        ]
        lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for row in rows:
            scores = " | ".join(f"{100 * row['edited'][s]:.1f} ({100 * row['base'][s]:.1f})" for s in SCORES)
            gone = "yes" if row["found"]["gone"] else "no"
            lines.append(f"| {row['method']} | {row['concept']} | {scores} | {gone} | {row['seconds']} |")
        for name in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == name]
            means = [statistics.mean(100 * row["edited"][s] for row in own) for s in SCORES]
            bases = [statistics.mean(100 * row["base"][s] for row in own) for s in SCORES]
            both = " | ".join(f"{a:.1f} ({b:.1f})" for a, b in zip(means, bases, strict=True))
            gone = sum(row["found"]["gone"] for row in own)
            seconds = statistics.mean(row["seconds"] for row in own)
            lines.append(f"| **{name}** | mean of {len(own)} | {both} | {gone} of {len(own)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["canvas"], help="canvas, or folders of siblings")
    parser.add_argument("--methods", nargs="+", default=METHODS[:5], choices=METHODS)
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


if __name__ == "__main__":
    main()
