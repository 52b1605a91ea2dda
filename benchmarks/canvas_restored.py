"""What restoring one concept of a bank leaves: how far the images of sentences with its word are from the base's.

    python benchmarks/canvas_restored.py --json docs/results/canvas_restored.json

SepCE erases neon, star and sketch one after another into a bank, with ``--preset``. Each is then restored
alone, while the others stay erased. The cells are mean and largest of the images' mean differences, in 1/255:

- on phrasings outside every list and preset (`PHRASINGS`), and on those of `mu bank restore`;
- with the edits' gates and without, as in a merged file;
- of the first search alone, with several weights of ``protect.sentences`` (``--weights``).

``erased`` is the share of the images of a concept's own prompts on which the world's judge does not see it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import GUIDANCE, STEPS, judge, keep_recipe, keep_result, kind_of, made_once, markdown

import mu
from mu.algorithms import algorithm
from mu.core.config import filled
from mu.data import canvas as world
from mu.diffusion.restored import left_over
from mu.edits.bank import Bank
from mu.edits.bank_folder import BankFolder
from mu.edits.gates import OPEN, Gate

CONCEPTS = ("neon", "star", "sketch")
PHRASINGS = {
    "style": ("my house in {} colours", "a drawing of a fish as {}", "look at this {} tree", "one fish shown in {} style",
              "the {} house of my friend", "a tree all in {}"),
    "object": ("my {} in a drawer", "look at this {} over there", "one {} shown on a wall", "the {} of my friend",
               "a {} seen in blueprint", "thermal view of one {}"),
}  # fmt: skip
SEED = 5


def run(places: Sequence[str | Path], words: Sequence[str]) -> None:
    """Type a command of mu."""
    subprocess.run([sys.executable, "-W", "ignore", "-m", "mu", *words, *map(str, places)], check=True)


class Bench:
    def __init__(self, out: Path, preset: str):
        self.out, self.preset, self.model, self.judge = out, preset, mu.load("canvas"), judge()

    @torch.no_grad()
    def images(self, prompts: Sequence[str], seed: int = SEED) -> torch.Tensor:
        return mu.generate(self.model, prompts, [seed] * len(prompts), steps=STEPS, guidance=GUIDANCE)

    def distance(self, bank: Bank, concept: str, gate: Gate | None = None) -> list[float]:
        prompts = [filled(template, concept) for template in PHRASINGS[kind_of(concept)]]
        base = self.images(prompts)
        with bank.applied(gate=gate):
            each = (self.images(prompts) - base).abs().flatten(1).mean(1) * 255
        return [float(each.mean()), float(each.max())]

    def gone(self, bank: Bank, concept: str, gate: Gate | None = None) -> float:
        kind = kind_of(concept)
        prompts = [filled(template, concept) for template in world.SENTENCES_OF[kind]]
        with bank.applied(gate=gate):
            seen = self.judge.look(self.images(prompts, 11))[0][kind]
        return sum(answer != concept for answer in seen) / len(seen)

    def bank(self) -> dict[str, Any]:
        folder = BankFolder(self.out / "bank")
        for concept in CONCEPTS:
            if not folder.json.exists() or concept not in {entry.concept for entry in folder.read().edits}:
                words = ["erase", "sepce", "--concept", concept, "--preset", self.preset, "--no-images", "--overwrite"]
                run(["--bank", folder.folder, "--out", self.out / concept], words)
        bank, found = folder.open(self.model), {}
        for concept in CONCEPTS:
            row: dict[str, Any] = {
                "erased": self.gone(bank, concept),
                "erased, ungated": self.gone(bank, concept, OPEN),
            }
            bank.restore(concept)
            told = left_over(bank, concept)
            row |= {"phrasings": self.distance(bank, concept), "mu bank restore": [told.mean, told.largest]}
            row["ungated"] = self.distance(bank, concept, OPEN)
            bank.erase(concept)
            found[concept] = row
        return found

    def alone(self, weight: float) -> dict[str, Any]:
        """``star`` searched beside a bank's neon, without gates."""
        folder = self.out / f"star-{weight:g}"
        chosen = algorithm("sepce")
        settings = chosen.for_concepts(["star"], self.preset).merged(
            {"output_dir": str(folder), "protect": {"prompts": ["neon"], "sentences": weight, "gate": "never"}}
        )
        work = chosen(settings, model=self.model)
        work.restorable = ["neon"]
        bank = Bank(self.model, [work.run(resume=(folder / "config.yaml").exists()).edit])
        return {"erased": self.gone(bank, "star"), "phrasings": self.distance(bank, "neon")}


def table(result: dict[str, Any]) -> str:
    def cell(pair: Sequence[float]) -> str:
        return f"{pair[0]:.2f} / {pair[1]:.2f}"

    header = ["restored", "erased before", "erased, ungated", "phrasings", "of `mu bank restore`", "phrasings, ungated"]
    rows = [
        [
            c,
            f"{100 * r['erased']:.0f}",
            f"{100 * r['erased, ungated']:.0f}",
            cell(r["phrasings"]),
            cell(r["mu bank restore"]),
            cell(r["ungated"]),
        ]
        for c, r in result["bank"].items()
    ]
    weights = [[w, f"{100 * r['erased']:.0f}", cell(r["phrasings"])] for w, r in result["weights"].items()]
    return (
        markdown(header, rows)
        + "\n\n"
        + markdown(["`protect.sentences`", "star erased", "neon's phrasings, ungated"], weights)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/canvas_restored"), help="what is there is not made again"
    )
    parser.add_argument("--preset", default="canvas")
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 0.5, 3.0])
    parser.add_argument("--json", type=Path, help="the result; a table of the same name is written beside it")
    options = parser.parse_args()
    keep_recipe(parser, options.out, {"preset": options.preset})
    bench = Bench(options.out, options.preset)
    result: dict[str, Any] = {
        "preset": options.preset,
        "bank": made_once(options.out / "bank.json", bench.bank),
        "weights": {},
    }
    for weight in options.weights:
        make = lambda weight=weight: bench.alone(weight)  # noqa: E731
        result["weights"][f"{weight:g}"] = made_once(options.out / f"star-{weight:g}.json", make)
    keep_result(options.json, result, table)


if __name__ == "__main__":
    main()
