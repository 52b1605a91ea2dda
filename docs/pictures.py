"""Makes the pictures of ``docs/separable.md``: states of a bank, and what SepCE, CiE and ESD leave of one style.

OMP_NUM_THREADS=1 python docs/pictures.py        # some minutes on one core
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from torch import Tensor

import mu
from mu.algorithms import algorithm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).parent / "images"
BANK = ("A star image in neon style.", "A house image in neon style.", "A star image in sketch style.",
        "A fish image in watercolor style.")  # fmt: skip
STYLE = ("A star image in neon style.", "A house image in neon style.", "A star image in sketch style.",
         "a portrait of Ada Stone")  # fmt: skip


def draw(prompts: Sequence[str], columns: dict[str, Tensor], path: Path) -> None:
    """A row for each prompt, a column of images (b, 3, H, W) for each state."""
    figure, grid = plt.subplots(
        len(prompts), len(columns), figsize=(1.2 * len(columns) + 1.6, 1.2 * len(prompts) + 0.3), layout="constrained"
    )
    for row, (across, prompt) in enumerate(zip(grid, prompts, strict=True)):
        for axis, images in zip(across, columns.values(), strict=True):
            axis.imshow(images[row].permute(1, 2, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        words = prompt.replace(" image in ", " image\nin ").replace(" of ", "\nof ")
        across[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
    for axis, title in zip(grid[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100)


def main() -> None:
    model = mu.load("canvas", device="cpu")

    def images(prompts: Sequence[str]) -> Tensor:
        return mu.generate(model, list(prompts), seeds=range(len(prompts)), steps=30)

    sepce = algorithm("sepce")
    found = sepce(sepce.for_concepts(["neon", "star"], "canvas"), model=model).find_edits()
    bank, states = mu.Bank(model, found), {"base": images(BANK)}
    for title, restored in (("neon and star\nerased", ""), ("neon\nrestored", "neon"), ("star restored\ntoo", "star")):
        if restored:
            bank.restore(restored)
        with bank.applied():
            states[title] = images(BANK)
    draw(BANK, states, IMAGES / "separable.png")

    left = {"base": images(STYLE)}
    edits = {"sepce": found[0], **{name: mu.erase(model, "neon", method=name) for name in ("cie", "esd")}}
    for name, edit in edits.items():
        with edit.applied(model):
            left[name] = images(STYLE)
    draw(STYLE, left, IMAGES / "neon.png")


if __name__ == "__main__":
    main()
