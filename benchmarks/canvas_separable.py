"""CiE and SepCE beside seven other methods on the embedded world: one concept, eight, all, one given back, scenes.

    python benchmarks/canvas_separable.py --out outputs/canvas_separable --json docs/results/canvas_separable.json

Every method with its preset ``canvas``, or where it has none with ``calibrated``, on every style and object; the judge
reads the images. Five parts (``--parts``):

- ``single``: each concept alone, by suite canvas: UA, IRA, CRA, the Fréchet distance, and what happens on neutral
  prompts, which do not name the concept; what came instead of the concept; LPIPS-like distance, in the
  judge's maps, of the images from the base's of the same prompt and seed; UA in `_shared.OTHER_PHRASINGS`; seconds,
  peak memory, size.
- ``phrasings``: what is left of all else where the words are put otherwise than anybody trained on or protected.
- ``multi``: eight concepts, found ``together`` (one call) and ``added`` (the eight single edits); then one of them
  given back: how far its images, and those of the other seven, are from what they are to be.
- ``capacity``: SepCE with 8, 16 and all 28 concepts (``--capacity``), each found alone with the others in
  ``protect.others``, before what the preset has there.
- ``scenes``: the scenes of the paper (its Fig. 7), the concepts of a kind as c0 .. c7, bare words as prompts, its
  protected sets exactly. What every shift that is on protects must look as the base has it: ``broken`` counts where it
  does not.

One JSON for each method and concept lies in ``--out``; what is there is not made again. ``--set METHOD.KEY=VALUE``
tries settings. An SPM edit of benchmarks/canvas_spm.py (``--spm``) is taken where there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _canvas_separable_tables import tables
from _shared import (
    GUIDANCE,
    KINDS,
    STEPS,
    closeness,
    differences,
    drawn,
    grid,
    judge,
    keep_recipe,
    keep_result,
    kept_in_other_phrasings,
    kind_of,
    made_once,
    mean,
    other_phrasings,
    peak_memory,
    shares,
)
from torch import Tensor

import mu
from mu.algorithms import algorithm
from mu.core.algorithm import Algorithm
from mu.core.config import BaseConfig
from mu.core.errors import MuError
from mu.core.files import slug
from mu.core.program import parsed
from mu.core.run import RunDirectory
from mu.data import canvas as world
from mu.edits.bank import Bank
from mu.edits.edit import Edit
from mu.edits.files import open_edit
from mu.evaluation.suites import evaluate
from mu.evaluation.suites.canvas import answers, row_of

METHODS = ("sepce", "cie", "spm", "esd", "ca", "fmn", "uce", "speed", "slug")
PARTS = ("single", "phrasings", "multi", "capacity", "scenes")
SECONDS = {"sepce": 20, "cie": 45, "spm": 62, "esd": 22, "ca": 17, "fmn": 8, "uce": 1, "speed": 2, "slug": 20}
"""Of one search on two cores, for the estimate; what a finished search took counts instead."""
OTHER = {"photo": "sketch", "house": "star"}
"""In the place of a concept that is its preset's anchor itself."""
EIGHT = ["neon", "star", "sketch", "heart", "pop art", "ring", "watercolor", "cross"]
ALL = [*world.STYLES, *world.OBJECTS, *world.IDENTITIES]
SCENES = {
    1: ("012345", "01", "", "2"),
    2: ("012345", "34", "", "5"),
    3: ("024", "02", "13", "1", "5"),
    4: ("012", "0", "34", "1", "5", "2"),
}
"""Indices of the concepts that are erased at even times and restored at odd ones."""


@dataclass
class Unit:
    """A piece of work that is done once: its result's file, what makes it, and what that costs."""

    path: Path
    make: Callable[[], dict[str, Any]]
    method: str
    searches: int
    images: int


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.options, self.out, self.seeds = options, options.out, options.seeds
        self.model, self.judge = mu.load("canvas"), judge()
        self.cells = [world.Scene(style, object=name) for style, name in product(world.STYLES, world.OBJECTS)]
        self._base: dict[str, Tensor] = {}

    # -- searches
    # -------------------------------------------------------------------------------------------------------

    def search(
        self, method: str, concepts: Sequence[str], folder: Path, **overrides: Any
    ) -> tuple[RunDirectory, list[Edit]]:
        """The run of ``method`` and its edits, one for each concept where the method finds them apart."""
        run, chosen = RunDirectory(folder), algorithm(method)
        places = {name: str(folder) for name in ("output_dir", "run_dir") if name in chosen.config_class.model_fields}
        given = {key.partition(".")[2]: text for key, text in self.options.set.items() if key.startswith(f"{method}.")}
        settings = parsed(chosen.config_class, given)
        base = self.preset(chosen, concepts).merged(places, overrides, settings)
        work = chosen(base, model=self.model)
        if not run.edit.exists():
            with peak_memory() as peak:
                work.run(resume=run.config.exists())
            run.describe({"peak_memory_MiB": peak.MiB})
        return run, list(work.separate(open_edit(run.edit)))

    def preset(self, method: type[Algorithm], concepts: Sequence[str]) -> BaseConfig:
        """The method's ``canvas``, or without one ``calibrated``; of objects ``canvas-objects``, where there is one."""
        presets = method.presets
        if not hasattr(presets.get("canvas"), "anchors"):
            return method.for_concepts(list(concepts), self.model.name)
        found = [presets.get(f"canvas-{kind_of(concept)}s", presets["canvas"]).anchors[0] for concept in concepts]
        anchors = [OTHER[each] if each == concept else each for each, concept in zip(found, concepts, strict=True)]
        return presets["canvas"].merged({"concepts": list(concepts), "anchors": anchors})

    def alone(self, method: str, concept: str) -> tuple[RunDirectory, list[Edit]]:
        found = RunDirectory(self.options.spm / slug(concept))
        if method == "spm" and found.edit.exists():
            return found, [open_edit(found.edit)]
        return self.search(method, [concept], self.out / method / slug(concept))

    # -- one concept
    # ----------------------------------------------------------------------------------------------------

    def single(self, method: str, concept: str) -> dict[str, Any]:
        run = self.alone(method, concept)[0]
        edit, kind, measured = open_edit(run.edit), kind_of(concept), RunDirectory(self.out / method / slug(concept))
        table = evaluate(measured, "canvas", self.model, edit, seeds=self.seeds, base_answers=self.out / "base")
        asked = [(scene, seed) for scene in self.cells for seed in self.seeds]
        rows = [row_of(*each) for each in asked]
        (before,) = answers(self.model, self.out / "base", [rows], "base answers")
        (after,) = answers(self.model, measured.folder / "answers" / "edited", [rows], "edited answers")
        named = torch.tensor([getattr(scene, kind) == concept for scene, _ in asked])
        replaced = next(score for score in table["edited"] if score.name == "replacement")
        facts = run.read_environment()
        return {
            "kind": kind,
            "seconds": facts["seconds"],
            "peak_memory_MiB": facts.get("peak_memory_MiB"),
            "bytes": run.edit.stat().st_size,
            "UA, other phrasings": other_phrasings(self.model, edit, concept, self.seeds[0], self.out / "phrasings"),
            "instead": dict(replaced.per_item),
            "LPIPS, erased": closeness(self.judge, before[named], after[named]),
            "LPIPS, retained": closeness(self.judge, before[~named], after[~named]),
            **{column: {score.name: score.value for score in scores} for column, scores in table.items()},
        }

    def phrased(self, method: str, concept: str) -> dict[str, float]:
        edit = open_edit(self.alone(method, concept)[0].edit)
        return kept_in_other_phrasings(self.model, edit, concept, self.seeds[0], self.out / "phrasings")

    # -- several
    # --------------------------------------------------------------------------------------------------------

    def base(self, prompts: Sequence[str]) -> Tensor:
        for prompt in prompts:
            if prompt not in self._base:
                self._base[prompt] = drawn(self.model, [prompt], self.seeds)
        return torch.cat([self._base[prompt] for prompt in prompts])

    def scenes_of(self, concepts: Sequence[str]) -> list[world.Scene]:
        people = set(concepts) & set(world.IDENTITIES)
        return [*self.cells, *(scene for scene in world.every_scene() if people and scene.identity)]

    def several(self, edits: Sequence[Edit], concepts: Sequence[str]) -> dict[str, Any]:
        scenes = self.scenes_of(concepts)
        prompts, each = [scene.prompt for scene in scenes], [scene for scene in scenes for _ in self.seeds]
        before = self.base(prompts)
        with Bank(self.model, edits).applied():
            after = drawn(self.model, prompts, self.seeds)
        kept = torch.tensor([not set(concepts) & {scene.style, scene.object, scene.identity} for scene in each])
        return {
            "base": shares(self.judge, before, each, set(concepts)),
            "edited": shares(self.judge, after, each, set(concepts)),
            "LPIPS, kept": closeness(self.judge, before[kept], after[kept]) if kept.any() else None,
        }

    def restored(self, edits: Sequence[Edit], concepts: Sequence[str], back: str) -> dict[str, Any]:
        """Images of ``back`` against the base's, those of the others against what they were with it erased."""
        others, bank = [concept for concept in concepts if concept != back], Bank(self.model, edits)
        naming = [
            scene.prompt
            for scene in self.cells
            if back in (scene.style, scene.object) and not {scene.style, scene.object} & set(others)
        ]
        groups = {"bare": [back], "sentences": naming, "others": others}
        found = {}
        for name, prompts in groups.items():
            if not prompts:
                continue  # every sentence with it names something erased as well
            bank.erase(back)
            with bank.applied():
                erased = drawn(self.model, prompts, self.seeds)
            bank.restore(back)
            with bank.applied():
                after = drawn(self.model, prompts, self.seeds)
            base = self.base(prompts)
            found[name] = differences(self.judge, erased if name == "others" else base, after)
            found[f"{name}, while erased"] = differences(self.judge, base, erased)
        return found

    def multi(self, method: str, way: str) -> dict[str, Any]:
        concepts, facts = self.options.eight, {}
        if way == "together":
            run, edits = self.search(method, concepts, self.out / method / "together")
            facts = {name: run.read_environment().get(name) for name in ("seconds", "peak_memory_MiB")}
            files = [run.edit]
        else:
            files = [self.alone(method, concept)[0].edit for concept in concepts]
            edits = [open_edit(file) for file in files]
        return {
            **facts,
            "bytes": sum(file.stat().st_size for file in files),
            **self.several(edits, concepts),
            "restored": self.restored(edits, concepts, concepts[0]) if len(edits) == len(concepts) else None,
        }

    def capacity(self, count: int) -> dict[str, Any]:
        concepts = (EIGHT + [name for name in ALL if name not in EIGHT])[:count]
        others = [other for other in algorithm("sepce").presets["canvas"].protect.others if other not in concepts]
        edits, rooms, seconds = [], [], 0.0
        for concept in concepts:
            folder = self.out / "capacity" / str(count) / slug(concept)
            run, (edit,) = self.search("sepce", [concept], folder, **{"protect.others": [*concepts, *others]})
            facts = run.read_environment()
            edits, rooms, seconds = [*edits, edit], [*rooms, facts["capacity"][0]], seconds + facts["seconds"]
        return {
            "concepts": count,
            "seconds": seconds,
            "free": min(room["free"] for room in rooms),
            "left out": max(len(room["left_out"]) for room in rooms),
            "erasability": mean([room["erasability"] for room in rooms]),
            **self.several(edits, concepts),
            "restored": self.restored(edits, concepts, concepts[0]),
        }

    # -- scenes
    # ---------------------------------------------------------------------------------------------------------

    def protecting(self, concept: str, protected: Sequence[str]) -> Edit:
        """The shift of ``concept`` with exactly these prompts protected; found once, whatever scene asks for it."""
        key = hashlib.sha256("|".join(sorted(protected)).encode()).hexdigest()[:8]
        exact = {"protect.prompts": sorted(protected), "protect.others": []}
        return self.search("sepce", [concept], self.out / "scenes" / f"{slug(concept)}-{key}", **exact)[1][0]

    def scene(self, kind: str, number: int) -> dict[str, Any]:
        names, watermark = KINDS[kind], world.WATERMARK_PROMPT
        known: list[str] = []
        on: dict[str, Edit] = {}
        last: dict[str, Tensor] = {}
        rows = {}
        for time_, indices in enumerate(SCENES[number]):
            changed, gone = [names[int(index)] for index in indices], []
            if not changed:
                continue
            if time_ % 2:
                gone = [on.pop(concept) for concept in changed]
            else:
                known += changed
                for concept in changed:
                    on[concept] = self.protecting(concept, [watermark, *(other for other in known if other != concept)])
            cells, broken, shown = {}, [], (*names, watermark, "")
            base_images = {name: self.base([name]) for name in shown}  # before the shifts are on
            with Bank(self.model, list(on.values())).applied():
                for name in shown:
                    before, after = base_images[name], drawn(self.model, [name], self.seeds)
                    change = differences(self.judge, before, after)
                    spared = all(name in edit.info.protects for edit in on.values())
                    same_as_before = name in last and time_ % 2 and all(name in edit.info.protects for edit in gone)
                    if (spared and change["max"] > 1) or (
                        same_as_before and differences(self.judge, last[name], after)["max"] > 1
                    ):
                        broken.append(name)
                    state = "forgotten" if name in on else "recovered" if name in known else "regular"
                    if name in names:
                        seen = [self.judge.look(images)[0][kind] for images in (before, after)]
                        base, now = (sum(answer == name for answer in each) / len(each) for each in seen)
                        cells[name] = {"state": state, "base": base, "accuracy": now, "spared": spared, **change}
                    else:
                        cells[name or "(empty)"] = {"state": "protected", "spared": spared, **change}
                    last[name] = after
            rows[f"t{time_}"] = {"cells": cells, "broken": broken}
        return rows

    # -- all of it
    # ------------------------------------------------------------------------------------------------------

    def units(self) -> dict[str, list[Unit]]:
        options, cells = self.options, len(self.cells) * len(self.seeds)
        found: dict[str, list[Unit]] = {part: [] for part in PARTS}
        for method, concept in product(options.methods, options.concepts):
            path = self.out / method / f"{slug(concept)}.json"
            searches = 0 if self.edit_exists(method, concept) else 1
            found["single"].append(
                Unit(
                    path,
                    lambda m=method, c=concept: {"method": m, "concept": c, **self.single(m, c)},
                    method,
                    searches,
                    cells,
                )
            )
            found["phrasings"].append(
                Unit(
                    self.out / method / f"phrasings-{slug(concept)}.json",
                    lambda m=method, c=concept: {"method": m, "concept": c, "kind": kind_of(c), **self.phrased(m, c)},
                    method,
                    0,
                    32,
                )
            )
        for method in options.methods:
            for way in ("together", "added"):
                if way == "together" and method == "spm":
                    continue  # SPM is composed of single membranes
                alone = (
                    [] if "single" in options.parts else [c for c in options.eight if not self.edit_exists(method, c)]
                )
                searches = len(alone) if way == "added" else len(options.eight) if method in ("sepce", "uce") else 1
                path = self.out / method / f"multi-{way}.json"
                found["multi"].append(
                    Unit(
                        path,
                        lambda m=method, w=way: {"method": m, "way": w, **self.multi(m, w)},
                        method,
                        searches,
                        2 * cells,
                    )
                )
        if "sepce" in options.methods:
            for count in options.capacity:
                path = self.out / "capacity" / f"{count}.json"
                found["capacity"].append(
                    Unit(path, lambda n=count: {"method": "sepce", **self.capacity(n)}, "sepce", count, 2 * cells)
                )
            for kind, number in product(("style", "object"), options.scenes):
                path, times = self.out / "scenes" / f"{kind}-{number}.json", sum(map(bool, SCENES[number]))
                searches = sum(len(indices) for indices in SCENES[number][::2])
                found["scenes"].append(
                    Unit(
                        path,
                        lambda k=kind, n=number: {"kind": k, "scene": n, "times": self.scene(k, n)},
                        "sepce",
                        searches,
                        10 * times * len(self.seeds),
                    )
                )
        return {part: found[part] for part in PARTS if part in options.parts}

    def edit_exists(self, method: str, concept: str) -> bool:
        there = RunDirectory(self.out / method / slug(concept)).edit.exists()
        return there or (method == "spm" and RunDirectory(self.options.spm / slug(concept)).edit.exists())

    def estimate(self, units: Sequence[Unit]) -> str:
        missing = [unit for unit in units if not unit.path.exists()]
        known: dict[str, list[float]] = {}
        for path in self.out.glob("*/*/environment.json"):
            seconds = json.loads(path.read_text(encoding="utf-8")).get("seconds")
            if path.parent.parent.name in SECONDS and seconds and path.parent.name != "together":
                known.setdefault(path.parent.parent.name, []).append(seconds)
        began = time.monotonic()
        drawn(self.model, ["a picture"], range(16))
        image = (time.monotonic() - began) / 16
        images = sum(unit.images for unit in missing)
        searching = sum(unit.searches * (mean(known.get(unit.method, [])) or SECONDS[unit.method]) for unit in missing)
        hours = (searching + images * image) / 3600
        return (
            f"{len(missing)} of {len(units)} parts are to be made: "
            f"{sum(unit.searches for unit in missing)} searches and "
            f"{images} pictures, about {hours:.1f} hours"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/canvas_separable"))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--spm", type=Path, default=Path("outputs/canvas_spm"), help="where canvas_spm.py left its runs"
    )
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--concepts", nargs="*", default=[*world.STYLES, *world.OBJECTS], help="of part single")
    parser.add_argument(
        "--eight", nargs="*", default=EIGHT, metavar="CONCEPT", help="of part multi; the first is given back"
    )
    parser.add_argument("--capacity", nargs="*", type=int, default=[8, 16, len(ALL)])
    parser.add_argument("--scenes", nargs="*", type=int, choices=SCENES, default=list(SCENES))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[188, 288])
    parser.add_argument("--made", action="store_true", help="search nothing: the tables of what has been made so far")
    parser.add_argument(
        "--set", action="append", default=[], metavar="METHOD.KEY=VALUE", help="settings on top of a preset"
    )
    options = parser.parse_args()
    options.set = dict(pair.split("=", 1) for pair in options.set)
    presets = {
        method: {
            name: p.model_dump(mode="json")
            for name, p in algorithm(method).presets.items()
            if name.startswith("canvas")
        }
        for method in METHODS
    }
    recipe = {
        "seeds": options.seeds,
        "set": options.set,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "eight": options.eight,
        "presets": presets,
    }
    keep_recipe(parser, options.out, recipe)
    bench = Bench(options)
    parts = bench.units()
    if options.made:
        parts = {part: [unit for unit in units if unit.path.exists()] for part, units in parts.items()}
    print(bench.estimate([unit for units in parts.values() for unit in units]), flush=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for part, units in parts.items():
        for unit in units:
            rows.setdefault(part, []).append(tried(unit))
            print(
                unit.path,
                {key: value for key, value in rows[part][-1].items() if key in ("edited", "failed")},
                flush=True,
            )
    keep_result(options.json, {**rows, "seeds": options.seeds, "settings": options.set}, tables)
    if options.json and "single" in rows:
        imaged(bench, options.json.with_suffix(".png"))


def tried(unit: Unit) -> dict[str, Any]:
    """What failed is not kept: it is tried again by the next run."""
    try:
        return made_once(unit.path, unit.make)
    except MuError as error:
        return {"method": unit.method, "concept": unit.path.stem, "failed": str(error)}


def imaged(bench: Bench, path: Path) -> None:
    """Each concept in a sentence: the base above, each method below it."""
    scenes = [
        world.Scene(concept, object="house" if concept != "photo" else "star")
        if kind_of(concept) == "style"
        else world.Scene("photo", object=concept)
        for concept in bench.options.concepts
    ]
    rows: list[tuple[str, list[Tensor | None]]] = [
        ("base", list(bench.base([scene.prompt for scene in scenes])[:: len(bench.seeds)]))
    ]
    for method in bench.options.methods:
        row: list[Tensor | None] = []
        for concept, scene in zip(bench.options.concepts, scenes, strict=True):
            edit = bench.alone(method, concept)[1][0] if bench.edit_exists(method, concept) else None
            if edit is None:
                row.append(None)
                continue
            with Bank(bench.model, [edit]).applied():
                row.append(drawn(bench.model, [scene.prompt], bench.seeds[:1])[0])
        rows.append((method, row))
    grid(path, bench.options.concepts, rows)


if __name__ == "__main__":
    main()
