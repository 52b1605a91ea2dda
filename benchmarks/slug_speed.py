"""What SLUG costs, beside a search that classifies everything anew at each step: FLOPs, encodings, seconds, memory.

    python benchmarks/slug_speed.py --json docs/results/slug_speed.json

``naive`` is how the released program searches: at each of ten steps along each front tensor all images and all prompts
of all tasks go through their towers, prompts filled up to the whole context. ``here`` is `ClipProbe` with both
searches: ``reference``, the same ten steps, and ``grid``, the default. Both must come to equal outcomes, or the
benchmark stops.

Models: canvas-clip on its own world, where the naive search runs in full; and one of ViT-B/32's shapes with random
weights, whose visual projection is fitted to synthetic images and names so that it knows them. There the naive side is
one evaluation, times the number of its steps.

FLOPs are counted stage by stage (one image, one prompt of its task's length; torch.utils.flop_counter) and multiplied
by the rows that pass; on canvas-clip the counter runs through the search too and must agree. The same plan is then
priced at the sizes of the paper.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import keep_result, peak_memory
from _slug_flops import Bill, Noted, Prices, Sizes, bill_of, counted, kept_stages, padded
from _synthetic_clip import vit_b_32

import mu
from mu.algorithms import algorithm
from mu.algorithms.single_layer_unlearning_gradient.configs import SlugConfig, SlugMethod
from mu.algorithms.single_layer_unlearning_gradient.model import candidates, layer_scores, to_search
from mu.algorithms.single_layer_unlearning_gradient.probe import ClipProbe, Direction, Tally
from mu.algorithms.single_layer_unlearning_gradient.trainer import Curve, best, gradients, search
from mu.data.canvas import IDENTITIES, rendered_pairs
from mu.edits.edit import shifted
from mu.models.clip import ClipModel
from mu.models.towers import Tower, tower_of
from mu.models.zero_shot import ZeroShot, canvas_tasks, logits, target_of

STEPS = 10
"""Evaluations of the naive search along one tensor."""
PAPER = {
    "pictures": {"identity": 2200, "imagenet": 2500},
    "prompts": {"identity": 10_177, "imagenet": 7000},
    "forget": 18,
}
"""The frequent people's images of CelebA among all its names, ImageNet's 5 %, and one person's images."""


# -- the naive side ----------------------------------------------------------------------------------------------------


class Naive:
    """The released way: the weight is changed, and everything is classified."""

    at_once = 1

    def __init__(self, clip: ClipModel, target, tasks: Sequence[ZeroShot]):
        self.clip, self.target, self.tasks = clip, target, tasks
        self.pixels = {task.name: clip.preprocess([p.image() for p in task.images]) for task in tasks}
        self.tokens = {task.name: padded(clip, task.prompts) for task in tasks}

    @torch.no_grad()
    def now(self):
        scores, rows = {}, {}
        for task in self.tasks:
            v = torch.cat([self.clip.encode_pixels(part) for part in self.pixels[task.name].split(64)])
            pooled = [
                self.clip.model.text_model(input_ids=part).pooler_output for part in self.tokens[task.name].split(64)
            ]
            t = torch.nn.functional.normalize(self.clip.model.text_projection(torch.cat(pooled)).float(), dim=-1)
            scores[task.name] = logits(v, task.weights(t))
            rows[task.name] = torch.arange(len(task.labels))
        return Tally(self.target, self.tasks).add(scores, rows).outcome()

    def look(self, name: str, along: Direction, steps: Sequence[float], *, forget_only: bool = False):
        found = []
        for step in steps:
            with shifted(self.clip, {each: step * shift for each, shift in along.items()}):
                found.append(self.now())
        return found

    base = now


def mib(tensors) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


# -- measuring ---------------------------------------------------------------------------------------------------------


class Case:
    """A concept's search on one model: its gradients, the tensors that are searched, and what looks at them cost."""

    def __init__(
        self, clip: ClipModel, tasks: list[ZeroShot], concept: str, forget: list, retain: list, config: SlugConfig
    ):
        self.clip, self.tasks, self.target, self.config = clip, tasks, target_of(concept, tasks), config
        parameters = candidates(clip, clip, config.layers.tower, config.layers.exclude)
        sets = ((forget, "cosine"), (retain, "contrastive"))
        with peak_memory() as held:
            spent, (g_f, g_r) = seconds(
                lambda: [gradients(clip, pairs, parameters, loss, config.gradients)[0] for pairs, loss in sets]
            )
        self.gradients = {
            "pairs": len(forget) + len(retain),
            "seconds": spent,
            "MiB a set": mib(g_f.values()),
            "MiB of the model": mib(clip.model.parameters()),
            "MiB at most": held.MiB,
        }
        self.front = to_search(clip, layer_scores(parameters, g_f, g_r), config.layers.max_front)
        self.names = [score.name for score in self.front]
        self.g_f = {name: {name: g_f[name]} for name in self.names}
        self.prices, self.sizes = Prices.of(clip, tasks), Sizes.of(tasks, self.target)

    def curves(self, probe: Any, method: str) -> list[Curve]:
        """The released ten steps have no margin."""
        asked = self.config.search.merged({"method": method}, {"margin": 1.0} if method == "reference" else {})
        return [search(probe, score, self.g_f[score.name], asked) for score in self.front]

    def found(self, method: str) -> tuple[Noted, list[Curve], Curve]:
        probe = Noted(self.clip, self.target, self.tasks)
        probe.prepare(self.names)
        assert probe.base().fa1 == 1.0, "control: the model knows the concept"
        curves = self.curves(probe, method)
        return probe, curves, best(probe, curves, self.g_f, probe.base(), self.config.search)

    def naive(self, sizes: Sizes) -> Bill:
        return sizes.everything(self.prices, "padded").times(STEPS * len(self.front))

    def bill(self, probe: Noted, sizes: Sizes) -> Bill:
        kept = kept_stages(self.clip, self.tasks, sizes, self.names)
        return bill_of(probe.looks, self.clip, self.prices, sizes, kept)


def measured(case: Case, in_full: bool) -> dict:
    front, sizes, naive = case.front, case.sizes, case.naive(case.sizes)
    result: dict[str, Any] = {
        "gradients": case.gradients,
        "sizes": vars(sizes),
        "front": {which: [name for name in case.names if tower_of(name) == which] for which in ("vision", "language")},
        "search": {"naive": {"evaluations": STEPS * len(front), **naive.to_json()}},
    }
    found, bills = {}, {}
    for method in ("reference", "grid"):
        with peak_memory() as held:
            spent, found[method] = seconds(lambda m=method: case.found(m))
        probe, curves, _ = found[method]
        bills[method] = bill = case.bill(probe, sizes)
        result["search"][method] = {
            **bill.to_json(),
            "times fewer FLOPs": naive.flops / bill.flops,
            "seconds": spent,
            "MiB at most": held.MiB,
            "forgotten on": sum(curve.chosen is not None for curve in curves),
            "share of the pictures looked at": {curve.score.name: curve.seen for curve in curves},
        }
    rival = Naive(case.clip, case.target, case.tasks)
    result["step"] = stepped(case.clip, front, case.g_f, rival, probe)
    once = max(each["naive seconds"] for each in result["step"].values())
    result["search"]["naive"]["seconds, one evaluation times their number"] = once * STEPS * len(front)
    if in_full:
        result["search"]["naive"]["seconds"], theirs = seconds(lambda: case.curves(rival, "reference"))
        _, ours, chosen = found["reference"]
        assert all(
            (a.rho, a.forget, a.chosen) == (b.rho, b.forget, b.chosen) for a, b in zip(ours, theirs, strict=True)
        )
        base = rival.now()
        first = max((c for c in theirs if c.outcome), key=lambda c: (c.outcome.kept(base), -c.chosen))
        assert (chosen.score, chosen.outcome) == (first.score, first.outcome), "the two searches saw other outcomes"
        full = counted(lambda: case.found("grid"))
        assert abs(full / bills["grid"].flops - 1) < 0.02, "the count stage by stage is not the counter's"
    else:
        paper = Sizes(PAPER["pictures"], PAPER["prompts"], PAPER["forget"])
        there = {method: case.bill(each[0], paper).flops / 1e12 for method, each in found.items()}
        result["TFLOP at the paper's sizes"] = {**vars(paper), **there, "naive": case.naive(paper).flops / 1e12}
    return result


def stepped(
    clip: ClipModel, front, g_f: dict[str, Direction], rival: Naive, probe: ClipProbe, times: int = 3
) -> dict[str, dict]:
    """One step of the search along text tensors of the front, the first and the last block's, by turns with the naive
    step.

    Of the first tensors of both towers all outcomes must be equal, not the forgotten class's alone.
    """
    texts = sorted(
        (s for s in front if tower_of(s.name) == "language"), key=lambda s: Tower(clip, "language").stage_of(s.name)
    )
    for score in (next(s for s in front if tower_of(s.name) == "vision"), texts[0]):
        at = score.name, g_f[score.name], [score.step(0.1)]
        assert probe.look(*at) == rival.look(*at), "the two ways saw other outcomes"
    found = {}
    for score in {s.name: s for s in (texts[0], texts[-1])}.values():
        at, spent = (score.name, g_f[score.name], [score.step(0.1)]), []
        for _ in range(times):
            ours, (mine,) = seconds(lambda at=at: probe.look(*at, forget_only=True))
            theirs, (other,) = seconds(lambda at=at: rival.look(*at))
            assert (mine.fa1, mine.fa5) == (other.fa1, other.fa5)
            spent.append((ours, theirs))
        ours, theirs = (min(each) for each in zip(*spent, strict=True))
        found[score.name] = {"seconds": ours, "naive seconds": theirs, "times faster": theirs / ours}
    return found


def canvas(options) -> dict:
    clip, config, tasks = (
        mu.load("canvas-clip", device="cpu"),
        SlugMethod.presets["canvas-clip"],
        canvas_tasks(options.per_class, 3),
    )
    assert isinstance(clip, ClipModel)

    def case(concept: str) -> Case:
        pairs = rendered_pairs(options.pairs, 1, concept), rendered_pairs(2 * options.pairs, 2)
        return Case(clip, tasks, concept, *pairs, config)

    def fewer(each: Case) -> dict[str, float]:
        ours = {method: each.bill(each.found(method)[0], each.sizes).flops for method in ("reference", "grid")}
        return {method: each.naive(each.sizes).flops / flops for method, flops in ours.items()}

    first, *others = IDENTITIES
    result = measured(case(first), in_full=True)
    slug = algorithm("slug")
    run = slug(slug.for_concepts([first], clip.name), model=clip)
    return {
        **result,
        "times fewer FLOPs for the other people": {name: fewer(case(name)) for name in others},
        "whole run, seconds": seconds(run.find_edit)[0],
    }


def large(options) -> dict:
    clip, tasks, forget, retain = vit_b_32(options.names, options.images)
    config = SlugMethod.presets["clip"].merged(
        {"gradients": {"chunk": 16}, "layers": {"max_front": options.max_front}, "search": {"criterion": "fa1"}}
    )
    return measured(Case(clip, tasks, tasks[0].classes[0], forget, retain, config), in_full=False)


MODELS = {"canvas-clip": canvas, "ViT-B/32": large}


def table_of(result: dict) -> str:
    lines = []
    for name in (name for name in MODELS if name in result):
        side, searches = result[name], result[name]["search"]
        images, prompts = (sum(side["sizes"][what].values()) for what in ("pictures", "prompts"))
        towers = " and ".join(f"{len(names)} {which}" for which, names in side["front"].items())
        lines += [f"**{name}**: {images} pictures, {prompts} prompts; {towers} tensors searched.", ""]
        lines += ["| search | encoder TFLOP | times fewer | passes of pictures, texts | seconds |", "| --- " * 5 + "|"]
        for method, title in (
            ("naive", "naive, ten steps"),
            ("reference", "the same steps here"),
            ("grid", "the default here"),
        ):
            each = searches[method]
            told = (
                f"{each['seconds']:.1f}"
                if "seconds" in each
                else f"about {each['seconds, one evaluation times their number']:.0f}"
            )
            cells = (
                f"{each['TFLOP']:.3g}",
                f"{each.get('times fewer FLOPs', 1):.1f}",
                "{vision passes:.0f}, {language passes:.0f}".format(**each),
                told,
            )
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines += [
            "",
            "Both gradients: {pairs} pairs in {seconds:.1f} s; each set {MiB a set:.0f} MiB, the model "
            "{MiB of the model:.0f} MiB, the process at most "
            "{MiB at most:.0f} MiB.".format(**side["gradients"])
            + f" The search: at most {searches['grid']['MiB at most']:.0f} MiB.",
        ]
        lines += [
            "A step along {0}: {seconds:.3g} s, the naive step {naive seconds:.3g} s, {times faster:.0f} times faster.".format(
                tensor, **each
            )
            for tensor, each in side["step"].items()
        ]
        if people := side.get("times fewer FLOPs for the other people"):
            told = (
                "{} {:.0f} to {:.0f}".format(m, *(f(p[m] for p in people.values()) for f in (min, max)))
                for m in ("reference", "grid")
            )
            lines.append(f"Encoder FLOPs for the other {len(people)} people, times fewer: {', '.join(told)}.")
        if "whole run, seconds" in side:
            lines.append(f"A whole run with the preset: {side['whole run, seconds']:.1f} s.")
        if paper := side.get("TFLOP at the paper's sizes"):
            told = ", ".join(
                f"{method} {paper[method]:.0f} ({paper['naive'] / paper[method]:.1f} times fewer)"
                for method in ("reference", "grid")
            )
            lines.append(f"The same searches at the paper's sizes, encoder TFLOP: naive {paper['naive']:.0f}, {told}.")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--pairs", type=int, default=128, help="canvas-clip: forget pairs, and half the retain pairs")
    parser.add_argument("--per-class", type=int, default=12, help="canvas-clip: pictures of each class")
    parser.add_argument("--names", type=int, default=60, help="ViT-B/32: people")
    parser.add_argument("--pictures", type=int, default=200, help="ViT-B/32: pictures, half of them of people")
    parser.add_argument("--max-front", type=int, default=8, help="ViT-B/32: tensors of each tower's front")
    options = parser.parse_args()
    result: dict[str, Any] = {"load when it began": os.getloadavg()[0]}
    for name in options.models:
        result[name] = MODELS[name](options)
        print(json.dumps({name: result[name]}, indent=2), flush=True)
    result |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    keep_result(options.json, result, table_of)


if __name__ == "__main__":
    main()
