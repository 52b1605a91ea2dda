"""SLUG on every person, object and style of the embedded world: on CLIP, in images of the diffusion model, in answers.

    python benchmarks/canvas_slug.py --out outputs/canvas_slug --json docs/results/canvas_slug.json

Settings: the presets ``canvas-clip``, ``canvas``, ``canvas-vlm`` and ``canvas-vlm-styles``, chosen on images of seed
777; reported on other images (``--seed``), which no search saw. An interrupted benchmark goes on where it stopped.

CLIP and LLaVA: forget accuracy and macro accuracy of the rest, of the same kind and of the other kinds. Diffusion
model: the judge reads one image of each style x object and style x person; UA = 1 - accuracy on the concept's prompts,
the rest likewise.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import fmean

from _shared import keep_recipe, keep_result, made_once
from matplotlib.figure import Figure

import mu
from mu.algorithms import algorithm
from mu.algorithms.single_layer_unlearning_gradient.probe import AnswerProbe, ClipProbe
from mu.core.errors import MuError
from mu.core.run import RunDirectory
from mu.data import canvas as world
from mu.edits.edit import Edit
from mu.edits.files import open_edit
from mu.models import EMBEDDED
from mu.models.clip import ClipModel
from mu.models.judge import Judge
from mu.models.zero_shot import canvas_tasks, target_of

MODELS = ("canvas-clip", "canvas", "canvas-vlm")
KINDS = {"identity": world.IDENTITIES, "object": world.OBJECTS, "style": world.STYLES}


class Drawn:
    """What the judge reads in the diffusion model's images; looks like a probe. The images are the same for every
    concept, so those of the untouched model are made once."""

    judge = Judge.open(EMBEDDED["canvas-judge"])
    scenes = tuple(scene for scene in world.every_scene() if scene.style)

    def __init__(self, model, seed: int):
        self.model, self.seed = model, seed
        self.base = self.look()

    def look(self) -> dict[str, list[str]]:
        prompts = [scene.prompt for scene in self.scenes]
        return self.judge.look(mu.generate(self.model, prompts, [self.seed] * len(prompts), steps=20, guidance=4.0))[0]

    def scores(self, seen: dict[str, list[str]], concept: str, kind: str) -> dict[str, float]:
        def share(head: str, gone: bool) -> float:
            rows = [
                k
                for k, scene in enumerate(self.scenes)
                if getattr(scene, head) and (getattr(scene, kind) == concept) == gone
            ]
            return sum(seen[head][k] == getattr(self.scenes[k], head) for k in rows) / len(rows)

        return {"forget": share(kind, True), **{head: share(head, False) for head in KINDS}}

    def measured(self, concept: str, kind: str, edit: Edit) -> dict[str, dict[str, float]]:
        with edit.applied(self.model):
            return {"base": self.scores(self.base, concept, kind), "edited": self.scores(self.look(), concept, kind)}


class Probed:
    """SLUG's own probes, on images that its search did not see."""

    def __init__(self, model, seed: int):
        self.model, self.tasks = model, canvas_tasks(10, seed)

    def measured(self, concept: str, kind: str, edit: Edit) -> dict[str, dict[str, float]]:
        chosen = ClipProbe if isinstance(self.model, ClipModel) else AnswerProbe
        probe = chosen(self.model, target_of(concept, self.tasks), self.tasks)
        before = self.scores(probe)
        with edit.applied(self.model):
            return {"base": before, "edited": self.scores(probe)}

    def scores(self, probe) -> dict[str, float]:
        seen = probe.now()
        return {"forget": seen.fa1, "forget@5": seen.fa5, **seen.retained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/canvas_slug"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--image", type=Path, help="a chart of all rows, as PNG")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS])
    parser.add_argument("--concepts", nargs="*", help="only these")
    parser.add_argument("--seed", type=int, default=188)
    options = parser.parse_args()
    slug, rows = algorithm("slug"), []
    settings = {
        name: preset.model_dump(mode="json") for name, preset in slug.presets.items() if name.startswith("canvas")
    }
    keep_recipe(parser, options.out, settings)
    for name in options.models:
        model = mu.load(name)
        meter = (Drawn if name == "canvas" else Probed)(model, options.seed)
        for kind, concept in [
            (each, concept)
            for each in options.kinds
            for concept in KINDS[each]
            if concept in (options.concepts or KINDS[each])
        ]:
            folder = options.out / name / concept.replace(" ", "_")
            file = folder / f"measured-{options.seed}.json"
            rows.append(made_once(file, partial(row_of, slug, meter, name, kind, concept, folder)))
            print(name, concept, rows[-1].get("edited", rows[-1].get("failed")), flush=True)
    keep_result(options.json, {"mean": means(rows), "rows": rows, "seed": options.seed}, table_of)
    if options.image:
        chart(rows).savefig(options.image, dpi=110)


def chart(rows: list[dict]) -> Figure:
    """Of each model: what is left of every forgotten concept, and of the rest; the bars are means."""
    done = [row for row in rows if "edited" in row]
    names = list(dict.fromkeys(row["model"] for row in done))
    figure = Figure(figsize=(3.4 * len(names), 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for kind, colour in zip(KINDS, ("#2b6cb0", "#c05621", "#2f855a"), strict=True):
            own = [row for row in done if (row["model"], row["kind"]) == (name, kind)]
            for column, values in enumerate(
                ([row["edited"]["forget"] for row in own], *zip(*map(kept, own), strict=True))
            ):
                jitter = [
                    column + 0.25 * ([*KINDS].index(kind) - 1) + 0.012 * (k - len(own) / 2) for k in range(len(own))
                ]
                axes.plot(jitter, values, "o", color=colour, alpha=0.6, ms=4, mew=0, label=None if column else kind)
        for column, values in enumerate(
            (
                [row["edited"]["forget"] for row in done if row["model"] == name],
                *zip(*(kept(row) for row in done if row["model"] == name), strict=True),
            )
        ):
            axes.hlines(fmean(values), column - 0.4, column + 0.4, color="black", lw=1)
        axes.set_title(name, fontsize=10)
        axes.set_xticks(
            range(3), ["forgotten:\naccuracy", "same kind:\nshare kept", "other kinds:\nshare kept"], fontsize=8
        )
        axes.set_ylim(-0.04, 1.08)
    panels[0].legend(fontsize=8, loc="center left")
    return figure


def kept(row: dict) -> tuple[float, float]:
    """The share of the base's accuracy that stays: on the concept's kind, and on the mean of the other kinds."""
    shares = {kind: row["edited"][kind] / row["base"][kind] for kind in KINDS}
    return shares[row["kind"]], fmean(share for kind, share in shares.items() if kind != row["kind"])


def row_of(slug, meter: Drawn | Probed, name: str, kind: str, concept: str, folder: Path) -> dict:
    row = {"model": name, "kind": kind, "concept": concept}
    run = RunDirectory(folder)
    try:
        if not run.edit.exists():
            preset = f"{name}-{kind}s" if f"{name}-{kind}s" in slug.presets else None
            slug(slug.for_concepts([concept], name, preset), model=meter.model, output_dir=str(folder)).run(
                overwrite=True
            )
    except MuError as error:
        return {**row, "failed": str(error)}
    edit = open_edit(run.edit)
    return {
        **row,
        "tensor": edit.parameters[0],
        "seconds": run.read_environment()["seconds"],
        "bytes": run.edit.stat().st_size,
        **meter.measured(concept, kind, edit),
    }


def means(rows: list[dict]) -> dict[str, dict[str, float]]:
    """By model and kind: forget accuracy, and what stays of the base's accuracy, of the same kind and of the others."""
    found = {}
    for name, kind in dict.fromkeys((row["model"], row["kind"]) for row in rows):
        all_rows = [row for row in rows if (row["model"], row["kind"]) == (name, kind)]
        done = [row for row in all_rows if "edited" in row]
        if done:
            found[f"{name}, {kind}"] = {
                "concepts": len(all_rows),
                "failed": len(all_rows) - len(done),
                "forget, base": fmean(row["base"]["forget"] for row in done),
                "forget": fmean(row["edited"]["forget"] for row in done),
                "same kind kept": fmean(kept(row)[0] for row in done),
                "other kinds kept": fmean(kept(row)[1] for row in done),
                "seconds": fmean(row["seconds"] for row in done),
            }
    return found


def table_of(result: dict) -> str:
    lines = [
        "| model, kind | concepts (failed) | forget accuracy (base) | same kind kept | other kinds kept | seconds |"
    ]
    lines.append("| --- " * 6 + "|")
    for name, row in result["mean"].items():
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("same kind kept", "other kinds kept"))
        forget = f"{100 * row['forget']:.1f} % ({100 * row['forget, base']:.1f})"
        lines.append(f"| {name} | {row['concepts']} ({row['failed']}) | {forget} | {shares} | {row['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
