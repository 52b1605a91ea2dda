"""Worlds to measure on: canvas, and siblings in folders that `mu canvas train --world SEED` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import mu
from mu.data.canvas.grammar import sibling
from mu.data.canvas.scenes import Scene
from mu.data.canvas.world import CANVAS, World
from mu.edits.bank import Bank
from mu.edits.edit import Edit
from mu.evaluation.metrics.unlearning import Prediction, unlearning_scores
from mu.models import EMBEDDED
from mu.models.canvas.architecture import Sizes
from mu.models.canvas.training import RECIPE
from mu.models.diffusion import DiffusionModel
from mu.models.judge import Judge

Kind = Literal["style", "object"]
STEPS = 20
UNNAMED = ("an image", "a person", "a drawing")
"""Prompts that name neither a style nor an object."""


@dataclass
class Place:
    """A world with its model and its judge, and the base's answers by seeds."""

    world: World
    model: DiffusionModel
    judge: Judge
    guidance: float
    recipe: dict[str, Any]
    _base: dict[tuple[str, ...], Answers] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str) -> Place:
        """``canvas``, or the folder of a sibling."""
        if name == "canvas":
            judge = Judge.open(EMBEDDED["canvas-judge"])
            return cls(CANVAS, mu.load("canvas", device="cpu"), judge, Sizes().guidance, {"world": "canvas"})
        recipe = json.loads((Path(name) / RECIPE).read_text(encoding="utf-8"))
        model = mu.load(str(Path(name) / "diffusion"), device="cpu")
        world, guidance = sibling(recipe["world"]), recipe["sizes"]["guidance"]
        return cls(world, model, Judge.open(Path(name) / "judge"), guidance, recipe)

    def kind_of(self, concept: str) -> Kind:
        return "style" if concept in self.world.styles else "object"

    def cells(self) -> list[Scene]:
        return [Scene(style, object=name) for style, name in product(self.world.styles, self.world.objects)]

    def neutral(self, kind: Kind) -> list[str]:
        """Prompts that name nothing of ``kind``: none at all, or one concept of the other kind."""
        others = self.world.objects if kind == "style" else self.world.styles
        return [*UNNAMED, *others, *(f"a {name}" for name in others)]

    def answers(self, kind: Kind, seeds: Sequence[int]) -> Answers:
        """What the judge sees in the images of the model as it is now."""
        cells, neutral = self.cells(), self.neutral(kind)
        prompts = [*map(self.world.prompt, cells), *neutral]
        asked = [(prompt, seed) for seed in seeds for prompt in prompts]
        texts, numbers = zip(*asked, strict=True)
        images = mu.generate(self.model, texts, numbers, steps=STEPS, guidance=self.guidance)
        seen, _ = self.judge.look(images)
        rows = len(prompts)
        told = [
            Prediction(str(cell.style), str(cell.object), seen["style"][at], seen["object"][at])
            for k in range(len(seeds))
            for at, cell in enumerate(cells, start=k * rows)
        ]
        unasked = [seen[kind][k * rows + len(cells) + j] for k in range(len(seeds)) for j in range(len(neutral))]
        return Answers(told, unasked, images)

    def base(self, kind: Kind, seeds: Sequence[int]) -> Answers:
        key = (kind, *map(str, seeds))
        if key not in self._base:
            self._base[key] = self.answers(kind, seeds)
        return self._base[key]

    def measured(self, edit: Edit, concept: str, seeds: Sequence[int]) -> dict[str, Any]:
        """UA, IRA, CRA and the concept's share on neutral prompts, of the base and of the edited model."""
        kind = self.kind_of(concept)
        before = self.base(kind, seeds)
        with Bank(self.model, [edit]).applied():
            after = self.answers(kind, seeds)
        return {"base": before.scores(concept, kind), "edited": after.scores(concept, kind)}


@dataclass
class Answers:
    """What the judge saw: of every style x object, and of the neutral prompts."""

    told: list[Prediction]
    unasked: list[str]
    images: Tensor

    def scores(self, concept: str, kind: Kind) -> dict[str, float]:
        ua, ira, cra = unlearning_scores(self.told, concept, kind, protocol="worlds/1")
        unasked = sum(seen == concept for seen in self.unasked) / len(self.unasked)
        return {"UA": ua.value, "IRA": ira.value, "CRA": cra.value, "unasked": unasked}


def one_thread() -> None:
    """Small models are slower on two threads than on one."""
    torch.set_num_threads(1)
