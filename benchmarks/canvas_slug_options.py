"""What two options of SLUG keep on canvas-clip, at the search rule of the published presets: paired by concept.

    python benchmarks/canvas_slug_options.py --json outputs/canvas_slug_options.json

The options: ``gradients.precondition`` 0.3 against none, and q, k and v searched apart against ``layers.compat
in_proj``. Each concept is erased with each of the four, from the same pairs and search images (seed 7), by the rule of
the published presets: accuracy at 5 down to 0, no margin, the exclusions of the default. What is kept is measured on
images of another seed (4249), with which no other result of this folder was made.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from canvas_clip_methods import Meter

import mu
from mu.algorithms.single_layer_unlearning_gradient.configs import SlugConfig

CONCEPTS = ("Ada Rivers", "Boris Vale", "Ada Stone", "heart", "moon", "tree")
SEARCH_SEED, REPORT_SEED = 7, 4249
PUBLISHED = {"search": {"criterion": "fa5", "margin": 1.0}, "layers": {"exclude": SlugConfig().layers.exclude}}
OPTIONS = {
    f"{'in_proj' if compat else 'q, k, v apart'}, precondition {precondition}": {
        "search": PUBLISHED["search"],
        "layers": {**PUBLISHED["layers"], "compat": compat},
        "gradients": {"precondition": precondition},
    }
    for compat, precondition in product(([], ["in_proj"]), (None, 0.3))
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("outputs/canvas_slug_options.json"))
    parser.add_argument("--concepts", nargs="*", default=[*CONCEPTS])
    options = parser.parse_args()
    meter = Meter(mu.load("canvas-clip"), REPORT_SEED)
    found: dict[str, dict[str, Any]] = {name: {} for name in OPTIONS}
    for concept, (name, settings) in product(options.concepts, OPTIONS.items()):
        row = found[name][concept] = meter.row("slug", concept, settings, SEARCH_SEED)
        print(f"{concept}; {name}: {row}", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))
    for name, rows in found.items():
        done = [row for row in rows.values() if "failed" not in row]
        kept = fmean(fmean(row["kept"].values()) for row in done)
        forget = " and ".join(f"{100 * fmean(row[each] for row in done):.1f} %" for each in ("FA@1", "FA@5"))
        print(f"{name}: {len(done)} of {len(rows)} concepts, FA@1 and FA@5 {forget}, kept {100 * kept:.1f} %")


if __name__ == "__main__":
    main()
