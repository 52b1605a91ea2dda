"""SPM on every style and object of the embedded world: UA, IRA, CRA, time, peak memory, size.

    python benchmarks/canvas_spm.py --out outputs/canvas_spm --json docs/results/canvas_spm.json

Settings: the preset ``canvas``, chosen on neon, star, fish and photo at seeds 1 and 2; reported on seeds 188, 288, 588,
688 (``--seeds``). Its templates hold the suite's own form of prompt, so UA is also measured on
`_shared.OTHER_PHRASINGS`, which the preset does not hold. An interrupted benchmark goes on where it stopped. ``--set
key=value`` tries settings.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

from _shared import keep_recipe, keep_result, kind_of, other_phrasings

import mu
from mu.algorithms import algorithm
from mu.core.program import parsed
from mu.core.run import RunDirectory
from mu.data import canvas as world
from mu.edits.files import open_edit
from mu.evaluation.suites import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/canvas_spm"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--concepts", nargs="*", default=[*world.STYLES, *world.OBJECTS])
    parser.add_argument(
        "--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[188, 288, 588, 688]
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings on top of the preset")
    options = parser.parse_args()
    model, spm = mu.load("canvas"), algorithm("spm")
    settings = parsed(spm.config_class, dict(pair.split("=", 1) for pair in options.set))
    keep_recipe(parser, options.out, {"seeds": options.seeds, "set": options.set})
    rows = {}
    for concept in options.concepts:
        folder = options.out / concept.replace(" ", "-")
        run = RunDirectory(folder)
        if not run.edit.exists():
            config = spm.for_concepts([concept], model.name)
            method = spm(config, model=model, output_dir=str(options.out), run_dir=str(folder), **settings)
            method.run(resume=run.config.exists())
        table = run.read_scores().get("canvas") or evaluate(
            run, "canvas", model, open_edit(run.edit), seeds=options.seeds, base_answers=options.out / "base"
        )
        rows[concept] = {
            "kind": kind_of(concept),
            "UA, other phrasings": other_phrasings(
                model, open_edit(run.edit), concept, options.seeds[0], options.out / "phrasings"
            ),
            "seconds": run.read_environment()["seconds"],
            "bytes": run.edit.stat().st_size,
            **{column: {score.name: score.value for score in scores} for column, scores in table.items()},
        }
        print(concept, {name: round(value, 3) for name, value in rows[concept]["edited"].items()}, flush=True)
    keep_result(options.json, summary(rows, options), table_of)


def summary(rows: dict, options: argparse.Namespace) -> dict:
    means = {}
    for kind in ("style", "object"):
        chosen = [row for row in rows.values() if row["kind"] == kind]
        for column in ("base", "edited"):
            if chosen:
                names = chosen[0][column]
                means[f"{kind}, {column}"] = {
                    name: sum(row[column][name] for row in chosen) / len(chosen) for name in names
                }
    both = [row["edited"] for row in rows.values()]
    means["all, edited"] = {name: sum(row[name] for row in both) / len(both) for name in both[0]}
    for column in ("base", "edited"):
        means[f"UA, other phrasings, {column}"] = sum(
            row["UA, other phrasings"][column] for row in rows.values()
        ) / len(rows)
    means["seconds"] = sum(row["seconds"] for row in rows.values()) / len(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.json and options.json.exists():  # a run that went on did not train what was there
        peak = max(peak, json.loads(options.json.read_text(encoding="utf-8"))["peak_memory_MiB"])
    return {
        "mean": means,
        "concepts": rows,
        "peak_memory_MiB": round(peak),
        "seeds": options.seeds,
        "settings": options.set,
    }


def table_of(result: dict) -> str:
    lines = [
        "| erased | UA | IRA | CRA | UA, other phrasings | CLIP score (base) | Fréchet distance (base) | seconds |"
    ]
    lines.append("| --- " * 8 + "|")
    for concept, row in result["concepts"].items():
        edited, base = row["edited"], row["base"]
        shares = " | ".join(f"{100 * edited[name]:.1f}" for name in ("UA", "IRA", "CRA"))
        rest = " | ".join(f"{edited[name]:.3f} ({base[name]:.3f})" for name in ("CLIP score", "Fréchet distance"))
        phrased = f"{100 * row['UA, other phrasings']['edited']:.1f}"
        lines.append(f"| {concept} | {shares} | {phrased} | {rest} | {row['seconds']:.0f} |")
    mean = result["mean"]["all, edited"]
    shares = " | ".join(f"{100 * mean[name]:.1f}" for name in ("UA", "IRA", "CRA"))
    phrased = f"{100 * result['mean']['UA, other phrasings, edited']:.1f}"
    lines.append(f"| **mean** | {shares} | {phrased} | | | {result['mean']['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
