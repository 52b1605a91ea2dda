"""SLUG beside the methods it is compared with, on a CLIP, with the same care in tuning for all.

    python benchmarks/canvas_clip_methods.py --out outputs/canvas_clip_methods --json docs/results/canvas_clip_methods.json

Every method has the same number of settings to choose from, on the same two persons, by the same rule, on images of
seed 777: forget accuracy at most 5 % first, then the largest mean share of what stays; where nothing forgets, the
largest difference of both. SLUG also searches its tensor and step for each concept, on images of its own: that is the
method, and the others have nothing like it. What was chosen is then measured on every person, on images (``--seed``)
that neither training nor choice saw. ``_o`` stands for CLIP's contrastive loss on the forget pairs in place of 1 - cos.
An interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from _shared import keep_result, made_once

import mu
from mu.algorithms import algorithm
from mu.algorithms.single_layer_unlearning_gradient.probe import ClipProbe
from mu.core.errors import MuError
from mu.data import canvas as world
from mu.models.zero_shot import canvas_tasks, target_of

TUNED_ON = ("Boris Stone", "Elena Moss")
TUNING_SEED = 777


def trained(*rates: float, **more: Any) -> list[dict]:
    return [{"train": {"epochs": epochs, "lr": lr}, **more} for lr in rates for epochs in (1, 2)]


CONTRASTIVE = {"forget_loss": "contrastive"}
SETTINGS: dict[str, list[dict]] = {
    "clip-ft": trained(1e-4, 3e-4),
    "clip-ga": trained(2e-5, 5e-5),
    "clip-ga_o": trained(2e-5, 5e-5, **CONTRASTIVE),
    "clip-gaft": trained(1e-4, 2e-4),
    "clip-gaft_o": trained(1e-4, 2e-4, **CONTRASTIVE),
    "clip-salun": trained(1e-4, 2e-4),
    "clip-salun_o": trained(1e-4, 2e-4, **CONTRASTIVE),
    "clip-ssd": [{"forget_loss": "cosine", "selection": a, "dampening": d} for a in (2.0, 5.0) for d in (0.1, 1.0)],
    "clip-ssd_o": [{**CONTRASTIVE, "selection": a, "dampening": d} for a in (2.0, 5.0) for d in (0.1, 1.0)],
    "slug": [{"search": {"margin": m}, "gradients": {"precondition": p}} for m in (1.1, 1.2) for p in (None, 0.3)],
}


class Meter:
    def __init__(self, model: Any, seed: int):
        self.model, self.tasks = model, canvas_tasks(10, seed)

    def row(self, name: str, concept: str, settings: dict, seed: int) -> dict[str, Any]:
        method = algorithm(name.removesuffix("_o"))
        config = method.for_concepts([concept], self.model.name).merged(settings, {"seed": seed})
        started = time.perf_counter()
        try:
            edit = method(config, model=self.model).find_edit()
        except MuError as error:
            return {"failed": str(error)}
        seconds = time.perf_counter() - started
        probe = ClipProbe(self.model, target_of(concept, self.tasks), self.tasks)
        base = probe.now()
        with edit.applied(self.model):
            seen = probe.now()
        kept = {task: seen.retained[task] / base.retained[task] for task in base.retained}
        numbers = sum(shift.numel() for shift in edit.shifts.values())
        return {"FA@1": seen.fa1, "FA@5": seen.fa5, "kept": kept, "seconds": seconds, "numbers": numbers}


def stem(settings: dict, seed: int, concept: str) -> str:
    """A row's file: other settings are another row."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{digest}-{seed}-{concept.replace(' ', '_')}.json"


def merit(rows: list[dict]) -> tuple[float, float]:
    """Larger is better."""
    if any("failed" in row for row in rows):
        return (-1.0, 0.0)
    forget, kept = fmean(row["FA@1"] for row in rows), fmean(fmean(row["kept"].values()) for row in rows)
    return (1.0, kept) if forget <= 0.05 else (0.0, kept - forget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/canvas_clip_methods"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--methods", nargs="*", default=[*SETTINGS])
    parser.add_argument("--concepts", nargs="*", default=[*world.IDENTITIES])
    parser.add_argument("--seed", type=int, default=188)
    options = parser.parse_args()
    model = mu.load("canvas-clip")
    meters = {seed: Meter(model, seed) for seed in (TUNING_SEED * 10 + 9, options.seed)}
    found: dict[str, Any] = {}

    def kept(path: Path, meter: Meter, *what: Any) -> dict:
        return made_once(path, lambda: meter.row(*what))

    for name in options.methods:
        tuning, report = meters.values()
        tried = [
            [kept(options.out / name / stem(s, TUNING_SEED, c), tuning, name, c, s, TUNING_SEED) for c in TUNED_ON]
            for s in SETTINGS[name]
        ]
        chosen = max(range(len(tried)), key=lambda k: merit(tried[k]))
        settings = SETTINGS[name][chosen]
        rows = {
            c: kept(options.out / name / stem(settings, options.seed, c), report, name, c, settings, 0)
            for c in options.concepts
        }
        found[name] = {
            "chosen": settings,
            "tuning": [merit(each) for each in tried],
            "mean": mean(rows),
            "concepts": rows,
        }
        print(name, settings, found[name]["mean"], flush=True)
    keep_result(options.json, {"methods": found, "seed": options.seed}, table_of)


def mean(rows: dict[str, dict]) -> dict[str, float]:
    done = [row for row in rows.values() if "failed" not in row]
    if not done:
        return {"failed": len(rows)}
    return {
        "failed": len(rows) - len(done),
        **{name: fmean(row[name] for row in done) for name in ("FA@1", "FA@5", "seconds", "numbers")},
        **{f"{task} kept": fmean(row["kept"][task] for row in done) for task in ("identity", "object", "style")},
    }


def table_of(result: dict[str, Any]) -> str:
    columns = ("FA@1", "FA@5", "identity kept", "object kept", "style kept")
    lines = ["| method | " + " | ".join(columns) + " | numbers changed | seconds | settings |", "| --- " * 9 + "|"]
    for name, each in result["methods"].items():
        row = each["mean"]
        if "FA@1" not in row:
            lines.append(f"| {name} | found no edit for any concept |" + " |" * 7)
            continue
        shares = " | ".join(f"{100 * row[column]:.1f} %" for column in columns)
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        chosen = json.dumps(each["chosen"]).replace('"', "")
        lines.append(f"| {name}{failed} | {shares} | {row['numbers']:,.0f} | {row['seconds']:.1f} | `{chosen}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
