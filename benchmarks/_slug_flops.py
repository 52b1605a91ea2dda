"""What SLUG's searches cost in encoder FLOPs, from what a probe was asked: see slug_speed.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mu.algorithms.single_layer_unlearning_gradient.probe import ClipProbe, Direction, Rows
from mu.models.clip import ClipModel
from mu.models.towers import Hidden, Tower, tower_of
from mu.models.zero_shot import ZeroShot, target_of


def padded(clip: ClipModel, texts: Sequence[str]) -> Tensor:
    context = clip.model.config.text_config.max_position_embeddings
    options = {"padding": "max_length", "max_length": context, "truncation": True, "return_tensors": "pt"}
    return clip.tokenizer(list(texts), **options).input_ids


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of matrix products, attention and convolutions in ``work``; torch leaves the CPU's attention kernel out by
    itself."""

    def attention(query, key, value, *_, **__) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        work()
    return counter.get_total_flops()


@dataclass
class Prices:
    """FLOPs of each stage of a tower for one row: a image, or a prompt of a task at its own and at its full length."""

    stages: dict[tuple[str, str], list[int]]

    @classmethod
    def of(cls, clip: ClipModel, tasks: Sequence[ZeroShot]) -> Prices:
        found, vision, language = {}, Tower(clip, "vision"), Tower(clip, "language")
        for task in tasks:
            text = language.texts(task.prompts)[torch.arange(1)]
            found["vision", task.name] = cls._along(vision, vision.images([task.images[0].image()]))
            found["language", task.name] = cls._along(language, text)
            found["padded", task.name] = cls._along(language, Hidden(padded(clip, task.prompts[:1]), text.ends))
        return cls(found)

    @staticmethod
    def _along(tower: Tower, row: Hidden) -> list[int]:
        stages = []
        for stage in range(tower.stages - 1):
            stages.append(counted(lambda s=stage, h=row: tower.run(h, s, s + 1)))
            row = tower.run(row, stage, stage + 1)
        return [*stages, counted(lambda: tower.leave(row))]


@dataclass
class Bill:
    """What passes through the towers: FLOPs, and rows in whole passes (half of the stages is half a pass)."""

    flops: float = 0.0
    passes: dict[str, float] = field(default_factory=lambda: {"vision": 0.0, "language": 0.0})

    def add(self, prices: Prices, which: str, task: str, rows: float, start: int = 0, stop: int | None = None) -> None:
        stages = prices.stages[which, task]
        part = sum(stages[start:stop])
        self.flops += rows * part
        self.passes["vision" if which == "vision" else "language"] += rows * part / sum(stages)

    def times(self, n: int) -> Bill:
        return Bill(self.flops * n, {which: n * rows for which, rows in self.passes.items()})

    def to_json(self) -> dict[str, float]:
        return {"TFLOP": self.flops / 1e12, **{f"{which} passes": round(n, 1) for which, n in self.passes.items()}}


@dataclass
class Sizes:
    """Of each task, and of the forgotten class alone."""

    images: dict[str, int]
    prompts: dict[str, int]
    forget: int

    @classmethod
    def of(cls, tasks: Sequence[ZeroShot], target) -> Sizes:
        images, prompts = ({t.name: len(each(t)) for t in tasks} for each in (lambda t: t.images, lambda t: t.prompts))
        return cls(images, prompts, target.task.labels.count(target.label))

    def everything(self, prices: Prices, texts: str) -> Bill:
        bill = Bill()
        for task in self.images:
            bill.add(prices, "vision", task, self.images[task])
            bill.add(prices, texts, task, self.prompts[task])
        return bill


@dataclass
class Look:
    """What a probe was asked: of each task the share of its images, or the forgotten class alone."""

    name: str
    steps: int
    forget_only: bool
    shares: dict[str, float]


class Noted(ClipProbe):
    """A `ClipProbe` that notes what it was asked."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.looks: list[Look] = []

    def scores_along(self, name: str, along: Direction, steps: Sequence[float], rows: Rows) -> list[dict[str, Tensor]]:
        own, shares = (
            self.target.task,
            {task.name: len(rows[task.name]) / len(task.labels) for task in self.tasks if task.name in rows},
        )
        gone = list(rows) == [own.name] and all(own.labels[k] == self.target.label for k in rows[own.name].tolist())
        self.looks.append(Look(name, len(steps), gone, shares))
        return super().scores_along(name, along, steps, rows)


def kept_stages(
    clip: ClipModel, tasks: Sequence[ZeroShot], sizes: Sizes, names: Sequence[str]
) -> dict[tuple[str, str], list[int]]:
    """By tower and task, the stages whose inputs `ClipProbe` keeps of the untouched model."""
    found, left = {}, ClipProbe(clip, target_of(tasks[0].classes[0], tasks), tasks).keep_bytes
    for which, rows in (("language", sizes.prompts), ("vision", sizes.images)):
        tower = Tower(clip, which)
        last, wanted = (
            tower.stages - 1,
            sorted({tower.stage_of(name) for name in names if tower_of(name) == which} - {0}),
        )
        for task in tasks:
            row = (
                tower.texts(task.prompts)[torch.arange(1)]
                if which == "language"
                else tower.images([task.images[0].image()])
            )
            size = rows[task.name] * tower.run(row, 0, 1).x.nbytes
            fit = [stage for stage in wanted if stage != last][: left // size]
            left -= len(fit) * size
            found[which, task.name] = [0, *fit, last]
    return found


def bill_of(
    looks: Sequence[Look], clip: ClipModel, prices: Prices, sizes: Sizes, kept: dict[tuple[str, str], list[int]]
) -> Bill:
    """The untouched model once; then ``looks`` as `ClipProbe` works: from the last kept stage to the changed tensor's
    once, from there on once for each step. A share of the images is the same share at other ``sizes``, though there a
    tensor that loses is known sooner."""
    bill = sizes.everything(prices, "language")
    for look in looks:
        which = tower_of(look.name)
        assert which is not None
        stage = Tower(clip, which).stage_of(look.name)
        for task, share in look.shares.items():
            images = sizes.forget if look.forget_only else share * sizes.images[task]
            rows = sizes.prompts[task] if which == "language" else images
            bill.add(prices, which, task, rows, max(s for s in kept[which, task] if s <= stage), stage)
            bill.add(prices, which, task, rows * look.steps, stage)
    return bill
