"""What three options of SLUG forget and keep on CLIPs of two worlds, by the published search rule: paired by concept.

    mu canvas train --world 5 --out outputs/world-5      # its CLIP: outputs/world-5/clip
    python benchmarks/canvas_slug_options.py --json docs/results/canvas_slug_options.json

The options: ``gradients.precondition`` none, 0.3 and 1.0; ``search.margin`` 1.1 with none and 0.3; q, k and v of an
attention as one tensor (``layers.compat in_proj``). Everything else is the preset ``clip``, the paper's settings, with pairs and search images of the CLIP's own
world (seed 7): accuracy at 5 down to 0, no margin. Concepts: every fourth person, every third object and style. Forget
accuracy and what is kept are measured on images of another seed (4327), which no search and no other result saw. An
interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from _shared import keep_recipe, keep_result, made_once, markdown

import mu
from mu.algorithms import algorithm
from mu.algorithms.single_layer_unlearning_gradient.probe import ClipProbe
from mu.core.errors import MuError
from mu.core.files import slug
from mu.core.run import RunDirectory
from mu.data import canvas as world
from mu.data.clip_sets import FORGET_SEED, RETAIN_SEED, SOURCES, Source
from mu.edits.edit import base_fingerprint
from mu.models.canvas.folder import world_of
from mu.models.zero_shot import TASK_SOURCES, TaskSource, canvas_tasks, target_of

SEARCH_SEED, REPORT_SEED, REPORTED = 7, 4327, 20
SETS = {"n_forget": 128, "n_retain": 256, "per_class": 12}
PAPER = "along g_f"
OPTIONS: dict[str, dict[str, Any]] = {
    PAPER: {"gradients": {"precondition": None}},
    "preconditioned, 0.3": {"gradients": {"precondition": 0.3}},
    "preconditioned, 1.0": {"gradients": {"precondition": 1.0}},
    "along g_f, margin 1.1": {"gradients": {"precondition": None}, "search": {"margin": 1.1}},
    "preconditioned, 0.3, margin 1.1": {"gradients": {"precondition": 0.3}, "search": {"margin": 1.1}},
    "along g_f, in_proj": {"gradients": {"precondition": None}, "layers": {"compat": ["in_proj"]}},
}


class Meter:
    """Erases a concept from one CLIP, and measures what is left on images of its world that no search saw."""

    def __init__(self, model: str):
        self.world = world.CANVAS if model == "canvas-clip" else world_of(model).world
        self.model = mu.load(model, device="cpu")
        tasks = canvas_tasks(REPORTED, REPORT_SEED, self.world)
        self.probe = ClipProbe(self.model, target_of(self.world.styles[0], tasks), tasks)
        offer(self.world)

    @property
    def concepts(self) -> list[str]:
        return [*self.world.identities[::4], *self.world.objects[::3], *self.world.styles[::3]]

    def row(self, concept: str, options: Mapping[str, Any]) -> dict[str, Any]:
        method, name = algorithm("slug"), self.world.name
        sources = {"forget": name, "retain": name, "tasks": [name], **SETS}
        config = method.for_concepts([concept], None, "clip", {"data": sources, "seed": SEARCH_SEED}, options)
        self.probe.target = target_of(concept, self.probe.tasks)
        with TemporaryDirectory() as folder:
            run, started = RunDirectory(Path(folder)), time.perf_counter()
            try:
                edit: Any = method(config, model=self.model).find_edit(run)
            except MuError as error:
                return {"failed": str(error)}
            seconds = time.perf_counter() - started
            (record,) = (json.loads(file.read_text()) for file in run.folder.glob("slug_*.json"))
        base = self.probe.now()
        with edit.applied(self.model):
            seen = self.probe.now()
        return {
            "FA@1": seen.fa1,
            "FA@5": seen.fa5,
            "FA@1, base": base.fa1,
            "kept": seen.kept(base),
            "retained": {kind: [base.retained[kind], now] for kind, now in seen.retained.items()},
            "tensor": record["chosen"],
            "rho": record["rho"],
            "searched": len(record["curves"]),
            "steps": sum(len(curve["rho"]) for curve in record["curves"]),
            "seconds": seconds,
        }


def offer(drawn: world.World) -> None:
    """Let settings name the world ``drawn`` as a source of pairs and of tasks, as ``canvas`` is."""

    def pairs(n: int, seed: int, concept: str | None = None) -> list[world.RenderedPair]:
        return world.rendered_pairs(n, seed, concept, drawn)

    SOURCES[drawn.name] = Source(
        lambda data, concept, seed: pairs(data.n_forget, seed * 10 + FORGET_SEED, concept),
        lambda data, seed: pairs(data.n_retain, seed * 10 + RETAIN_SEED),
    )
    TASK_SOURCES[drawn.name] = TaskSource(
        lambda _folder, per_class, seed, _concepts: canvas_tasks(per_class, seed, drawn), in_folder=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/canvas_slug_options"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=["canvas-clip", "outputs/world-5/clip"])
    options = parser.parse_args()
    recipe = {"options": OPTIONS, "sets": SETS, "seeds": [SEARCH_SEED, REPORT_SEED], "reported": REPORTED}
    meters = [Meter(model) for model in options.models]
    recipe["models"] = {meter.world.name: base_fingerprint(meter.model) for meter in meters}
    keep_recipe(parser, options.out, recipe)
    worlds: dict[str, dict[str, Any]] = {}
    for meter in meters:
        found = worlds[meter.world.name] = {}
        for concept in meter.concepts:
            for name, changes in OPTIONS.items():
                file = options.out / f"{slug(f'{meter.world.name}-{concept}-{name}')}.json"
                row = made_once(file, partial(meter.row, concept, changes))
                found.setdefault(concept, {})[name] = row
                print(f"{concept}; {name}: {row}", flush=True)
    keep_result(options.json, {**recipe, "worlds": worlds}, table_of)


def table_of(result: Mapping[str, Any]) -> str:
    """The means of each world, then every search. Higher, less kept: for so many concepts, beside `PAPER`."""
    parts = []
    for name, found in result["worlds"].items():
        means = [mean_row(option, list(found.values())) for option in result["options"]]
        head = ["FA@1", "FA@5", "higher", "kept", "least kept", "less kept", "steps tried", "seconds"]
        parts.append(f"CLIP of {name}, mean of {len(found)} concepts\n\n" + markdown(["", "concepts", *head], means))
    searches = [
        [name, concept, option, *cells(row)]
        for name, found in result["worlds"].items()
        for concept, rows in found.items()
        for option, row in rows.items()
    ]
    head = ["CLIP of", "concept", "", "FA@1", "FA@5", "kept", "tensor", "step (rho)", "steps tried", "seconds"]
    return "\n".join([*parts, "Every search\n\n" + markdown(head, searches)])


def mean_row(option: str, found: list[dict[str, Any]]) -> list[str]:
    pairs = [(rows[option], rows[PAPER]) for rows in found]
    done = [row for row, _ in pairs if "failed" not in row]

    def share(key: str, of: Callable[[list[float]], float] = fmean) -> str:
        return f"{100 * of([row[key] for row in done]):.1f} %"

    def beside(key: str, sign: int) -> str:
        both = [(row[key], paper[key]) for row, paper in pairs if "failed" not in {*row, *paper}]
        return str(sum(sign * (now - then) > 1e-6 for now, then in both))

    told = f"{len(done)} of {len(found)}"
    if not done:
        return [option, told, *[""] * 8]
    steps, seconds = (fmean(row[key] for row in done) for key in ("steps", "seconds"))
    forget, kept = [share("FA@1"), share("FA@5"), beside("FA@5", 1)], [share("kept"), share("kept", min)]
    return [option, told, *forget, *kept, beside("kept", -1), f"{steps:.0f}", f"{seconds:.1f}"]


def cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", *[""] * 6]
    shares = (f"{100 * row[key]:.1f} %" for key in ("FA@1", "FA@5", "kept"))
    return [*shares, f"`{row['tensor']}`", f"{row['rho']:.3f}", str(row["steps"]), f"{row['seconds']:.1f}"]


if __name__ == "__main__":
    main()
