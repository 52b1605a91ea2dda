"""What a model still knows while one tensor changes: forget accuracy and retained accuracy along a line of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mu.algorithms.single_layer_unlearning_gradient.configs import PicturesConfig
from mu.data.canvas import QUESTIONS
from mu.diffusion.sampling import generate
from mu.edits.edit import shifted
from mu.evaluation.metrics.accuracy import hits
from mu.evaluation.zero_shot import Target, ZeroShot, logits
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.judge import Judge
from mu.models.parameters import find_parameter
from mu.models.towers import Hidden, Tower, tower_of
from mu.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class Outcome:
    """``fa1``, ``fa5``: accuracy on the forgotten class. ``retained``: macro accuracy at 1 over the other classes of its task,
    and over all classes of each other task, by task, without those that are `ZeroShot.beyond`; empty where only forgetting was
    looked at."""

    fa1: float
    fa5: float
    retained: Mapping[str, float]

    @property
    def utility(self) -> float:
        return sum(self.retained.values()) / max(len(self.retained), 1)

    def kept(self, base: Outcome) -> float:
        """The mean share of the base's retained accuracies; more than the base on one task does not make up for another."""
        shares = [min(1.0, now / base.retained[name]) if base.retained[name] else 1.0 for name, now in self.retained.items()]
        return sum(shares) / max(len(shares), 1)


class Probe(Protocol):
    """``look(name, shift, steps)``: one outcome for each ``parameter + step * shift``. ``forget_only`` looks at less.
    ``base()``: of the model untouched, and to be asked while it is; ``now()``: of the model with whatever is on it.
    ``at_once`` is how many steps are worth a look before it is known whether one of them forgets."""

    at_once: int

    def look(self, name: str, shift: Tensor, steps: Sequence[float], *, forget_only: bool = False) -> list[Outcome]: ...
    def base(self) -> Outcome: ...
    def now(self, *, forget_only: bool = False) -> Outcome: ...


def outcome(scores: Mapping[str, Tensor], target: Target, tasks: Sequence[ZeroShot], rows: Mapping[str, Tensor]) -> Outcome:
    """From logits (n, c) of each task's pictures ``rows`` (indices)."""
    forgotten, retained = {}, {}
    for task in tasks:
        if task.name not in scores:
            continue
        labels = torch.tensor(task.labels, device=scores[task.name].device)[rows[task.name]]
        classes = scores[task.name].shape[1]
        right = {k: hits(scores[task.name], labels, k if k < classes else 1) for k in (1, 5)}
        gone = labels == target.label if task is target.task else torch.zeros_like(labels, dtype=torch.bool)
        if gone.any():
            forgotten = {k: float(each[gone].mean()) for k, each in right.items()}
        counted = ~gone & ~torch.isin(labels, labels.new_tensor(sorted(task.beyond)))
        if counted.any():
            kept = labels[counted]
            retained[task.name] = sum(float(right[1][counted][kept == label].mean()) for label in kept.unique()) / len(
                kept.unique()
            )
    return Outcome(forgotten[1], forgotten[5], retained)


class ClipProbe:
    """CLIP's zero-shot classification. The tower that does not change is encoded once; of the other, the input of the
    changed stage is kept, so that K steps cost K times one stage and what follows it, and tensors in the order of
    their stages cost one pass of the untouched tower between them."""

    at_once = 4

    def __init__(self, clip: ClipModel, target: Target, tasks: Sequence[ZeroShot], rows_at_once: int = 256):
        self.clip, self.target, self.tasks, self.rows_at_once = clip, target, tasks, rows_at_once
        self.towers = {which: Tower(clip, which) for which in ("vision", "language")}
        self._reached: dict[tuple[str, str], tuple[int, Hidden]] = {}

    @cached_property
    def _inputs(self) -> dict[str, dict[str, Hidden]]:
        """Of both towers, each task's."""
        return {
            "vision": {t.name: self.towers["vision"].pictures(p.picture() for p in t.pictures) for t in self.tasks},
            "language": {t.name: self.towers["language"].texts(t.prompts) for t in self.tasks},
        }

    @cached_property
    def _features(self) -> dict[str, dict[str, Tensor]]:
        with torch.no_grad():
            return {which: {name: self._encoded(which, h) for name, h in each.items()} for which, each in self._inputs.items()}

    def _encoded(self, which: str, hidden: Hidden) -> Tensor:
        rows = torch.arange(len(hidden.x), device=hidden.x.device).split(self.rows_at_once)
        return torch.cat([self.towers[which].features(hidden[part]) for part in rows])

    @torch.no_grad()
    def look(self, name: str, shift: Tensor, steps: Sequence[float], *, forget_only: bool = False) -> list[Outcome]:
        which = tower_of(name)
        assert which is not None, "candidates are in towers"
        tower, parameter = self.towers[which], find_parameter(self.clip, name)
        stage = tower.stage_of(name)
        scores: list[dict[str, Tensor]] = [{} for _ in steps]
        rows = {task.name: self._rows(task, forget_only) for task in self.tasks}
        for task in self.tasks:
            if forget_only and task is not self.target.task:
                continue
            hidden = self._entering(tower, task, stage)
            kept = self._features["language" if which == "vision" else "vision"][task.name]
            if which == "vision":
                hidden = hidden[rows[task.name]]
            changed = torch.cat(list(self._along(tower, hidden, parameter, stage, shift, steps)), dim=1)
            if which == "vision":
                found = logits(changed, task.weights(kept))
            else:
                found = logits(kept[rows[task.name]], task.weights(changed))
            for each, values in zip(scores, found, strict=True):
                each[task.name] = values
        return [outcome(each, self.target, self.tasks, rows) for each in scores]

    def _along(
        self, tower: Tower, hidden: Hidden, parameter, stage: int, shift: Tensor, steps: Sequence[float]
    ) -> Iterator[Tensor]:
        few = max(1, self.rows_at_once // len(steps))
        for part in torch.arange(len(hidden.x), device=hidden.x.device).split(few):
            yield tower.along(hidden[part], parameter, stage, shift, steps)

    def _entering(self, tower: Tower, task: ZeroShot, stage: int) -> Hidden:
        """What enters ``stage`` for all rows of ``task``, from the last stage asked for where that was not a later one."""
        start, hidden = self._reached.get((tower.which, task.name), (0, self._inputs[tower.which][task.name]))
        if start > stage:
            start, hidden = 0, self._inputs[tower.which][task.name]
        if start < stage:
            parts = torch.arange(len(hidden.x), device=hidden.x.device).split(self.rows_at_once)
            hidden = Hidden(torch.cat([tower.run(hidden[part], start, stage).x for part in parts]), hidden.ends)
        self._reached[tower.which, task.name] = stage, hidden
        return hidden

    def _rows(self, task: ZeroShot, forget_only: bool) -> Tensor:
        labels = torch.tensor(task.labels, device=self.clip.device)
        if forget_only and task is self.target.task:
            return (labels == self.target.label).nonzero()[:, 0]
        return torch.arange(len(labels), device=self.clip.device)

    def base(self) -> Outcome:
        seen, rows = self._features, {task.name: self._rows(task, False) for task in self.tasks}
        scores = {t.name: logits(seen["vision"][t.name], t.weights(seen["language"][t.name])) for t in self.tasks}
        return outcome(scores, self.target, self.tasks, rows)

    @torch.no_grad()
    def now(self, *, forget_only: bool = False) -> Outcome:
        tasks = [self.target.task] if forget_only else self.tasks
        scores, rows = {}, {task.name: self._rows(task, forget_only) for task in tasks}
        for task in tasks:
            inputs = {
                "vision": self._inputs["vision"][task.name][rows[task.name]],
                "language": self._inputs["language"][task.name],
            }
            seen = {which: self._encoded(which, hidden) for which, hidden in inputs.items()}
            scores[task.name] = logits(seen["vision"], task.weights(seen["language"]))
        return outcome(scores, self.target, tasks, rows)


class _Outputs(ABC):
    """A probe of a model that uses one of CLIP's towers, by what it gives out: each step is one batch of outputs."""

    at_once = 4

    def __init__(self, model: DiffusionModel | VisionLanguageModel, target: Target, tasks: Sequence[ZeroShot]):
        self.model, self.target, self.tasks = model, target, tasks

    @abstractmethod
    def scores(self, task: ZeroShot, rows: Tensor) -> Tensor:
        """(n, c) for the outputs ``rows`` of the task: a picture of each, or an answer about each."""

    def look(self, name: str, shift: Tensor, steps: Sequence[float], *, forget_only: bool = False) -> list[Outcome]:
        outcomes = []
        for step in steps:
            with shifted(self.model, {name: step * shift}):
                outcomes.append(self._outcome(forget_only))
        return outcomes

    def base(self) -> Outcome:
        return self._outcome(forget_only=False)

    def now(self, *, forget_only: bool = False) -> Outcome:
        return self._outcome(forget_only)

    @torch.no_grad()
    def _outcome(self, forget_only: bool) -> Outcome:
        tasks = [self.target.task] if forget_only else self.tasks
        rows = {task.name: torch.arange(len(task.labels)) for task in tasks}
        if forget_only:
            rows[self.target.task.name] = (torch.tensor(self.target.task.labels) == self.target.label).nonzero()[:, 0]
        scores = {task.name: self.scores(task, rows[task.name]) for task in tasks}
        return outcome(scores, self.target, tasks, rows)


class PictureProbe(_Outputs):
    """The pictures that a diffusion model makes of each class, as the untouched CLIP classifies them, or a ``judge`` with a head for
    the task. Prompts and seeds are fixed."""

    def __init__(
        self, model: DiffusionModel, clip: ClipModel, target: Target, tasks: Sequence[ZeroShot], settings: PicturesConfig, seed: int,
        judge: Judge | None = None,
    ):  # fmt: skip
        drawn = [_drawn(task, target, settings) for task in tasks]
        own = next(new for new, task in zip(drawn, tasks, strict=True) if task is target.task)
        super().__init__(model, replace(target, task=own), drawn)
        self.clip, self.settings, self.seed, self.judge = clip, settings, seed, judge

    def scores(self, task: ZeroShot, rows: Tensor) -> Tensor:
        assert isinstance(self.model, DiffusionModel)
        templates = self.settings.templates.get(task.name) or task.templates[:1]
        chosen = rows.tolist()
        prompts = [templates[row % len(templates)].format(task.classes[task.labels[row]]) for row in chosen]
        seeds = [self.seed + row for row in chosen]
        pictures = generate(self.model, prompts, seeds, steps=self.settings.steps, guidance=self.settings.guidance)
        if self.judge and task.name in self.judge.heads:
            return _said(self.judge.look(pictures)[0][task.name], task, str.__eq__)
        return logits(self.clip.encode_pictures(pictures), task.weights(self._texts[task.name]))

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        return {task.name: self.clip.encode_text(task.prompts) for task in self.tasks}


def _drawn(task: ZeroShot, target: Target, settings: PicturesConfig) -> ZeroShot:
    """The task on pictures to be drawn: its labels say what, each class that has pictures and counts so often as the settings say."""
    own = {target.label} if task is target.task else set()
    counts = {label: settings.retained for label in sorted(set(task.labels) - (task.beyond - own))}
    counts |= dict.fromkeys(own, settings.forget)
    return replace(task, pictures=(), labels=tuple(label for label, n in counts.items() for _ in range(n)))


class AnswerProbe(_Outputs):
    """The answers of a vision-language model: right where they hold the class's name, whatever the case. ``rows_at_once`` pictures
    are opened and asked about together."""

    rows_at_once = 32

    def scores(self, task: ZeroShot, rows: Tensor) -> Tensor:
        assert isinstance(self.model, VisionLanguageModel)
        question, *_ = QUESTIONS.get(task.name, QUESTIONS["object"])
        answers: list[str] = []
        for part in rows.split(self.rows_at_once):
            pictures = [task.pictures[int(row)].picture() for row in part]
            answers += self.model.answer(pictures, [question] * len(pictures), batch_size=len(pictures))
        told = _said(answers, task, lambda answer, name: name.casefold() in answer.casefold())
        told[torch.arange(len(rows)), torch.tensor(task.labels)[rows]] *= 2  # right also where other names are said beside it
        return told


def _said(answers: Sequence[str], task: ZeroShot, names: Callable[[str, str], bool]) -> Tensor:
    """(n, c + 1): 1 for a class that the answer names, 0 for the others; the last column stands for none of them."""
    told = [[float(names(answer, name)) for name in task.classes] for answer in answers]
    return torch.cat([torch.tensor(told), torch.full((len(told), 1), 0.5)], dim=1)
