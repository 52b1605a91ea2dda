"""What a model still knows while one tensor changes: forget accuracy and retained accuracy along a line of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mu.core.errors import ConfigError
from mu.diffusion.sampling import generate
from mu.edits.edit import shifted
from mu.evaluation.zero_shot import ZeroShot, hits, logits
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter
from mu.models.towers import Hidden, Tower, tower_of
from mu.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class Outcome:
    """``fa1``, ``fa5``: accuracy on the forgotten class. ``retained``: macro accuracy at 1 over the other classes of its task,
    and over all classes of each other task, by task; empty where only forgetting was looked at."""

    fa1: float
    fa5: float
    retained: Mapping[str, float]

    @property
    def utility(self) -> float:
        return sum(self.retained.values()) / max(len(self.retained), 1)


class Probe(Protocol):
    """``look(name, shift, steps)``: one outcome for each ``parameter + step * shift``. ``forget_only`` looks at less."""

    def look(self, name: str, shift: Tensor, steps: Sequence[float], *, forget_only: bool = False) -> list[Outcome]: ...
    def now(self) -> Outcome: ...


@dataclass(frozen=True)
class Target:
    """The forgotten class: its task and its label."""

    concept: str
    task: ZeroShot
    label: int


def target_of(concept: str, tasks: Sequence[ZeroShot]) -> Target:
    for task in tasks:
        label = task.label_of(concept)
        if label is not None and label in task.labels:
            return Target(concept, task, label)
    known = ", ".join(f"{task.name} ({len(task.classes)})" for task in tasks)
    raise ConfigError(f"{concept!r} is a class with pictures in none of the tasks ({known}): the search could not see it go")


def outcome(scores: Mapping[str, Tensor], target: Target, tasks: Sequence[ZeroShot], rows: Mapping[str, Tensor]) -> Outcome:
    """From logits (n, c) of each task's pictures ``rows`` (indices)."""
    forgotten, retained = {}, {}
    for task in tasks:
        if task.name not in scores:
            continue
        labels = torch.tensor(task.labels, device=scores[task.name].device)[rows[task.name]]
        right = {k: hits(scores[task.name], labels, k) for k in (1, 5)}
        gone = labels == target.label if task is target.task else torch.zeros_like(labels, dtype=torch.bool)
        if gone.any():
            forgotten = {k: float(each[gone].mean()) for k, each in right.items()}
        if not gone.all():
            kept = labels[~gone]
            retained[task.name] = sum(float(right[1][~gone][kept == label].mean()) for label in kept.unique()) / len(
                kept.unique()
            )
    return Outcome(forgotten[1], forgotten[5], retained)


class ClipProbe:
    """CLIP's zero-shot classification. The tower that does not change is encoded once; of the other, the input of the
    changed stage is kept, so that K steps cost K times one stage and what follows it."""

    def __init__(self, clip: ClipModel, target: Target, tasks: Sequence[ZeroShot], rows_at_once: int = 256):
        self.clip, self.target, self.tasks, self.rows_at_once = clip, target, tasks, rows_at_once
        self.towers = {which: Tower(clip, which) for which in ("vision", "language")}

    @cached_property
    def _inputs(self) -> dict[str, dict[str, Hidden]]:
        """Of both towers, each task's."""
        return {
            "vision": {t.name: self.towers["vision"].pictures([p.picture() for p in t.pictures]) for t in self.tasks},
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
            hidden, kept = (
                self._inputs[which][task.name],
                self._features["language" if which == "vision" else "vision"][task.name],
            )
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
            yield tower.along(tower.run(hidden[part], 0, stage), parameter, stage, shift, steps)

    def _rows(self, task: ZeroShot, forget_only: bool) -> Tensor:
        labels = torch.tensor(task.labels, device=self.clip.device)
        if forget_only and task is self.target.task:
            return (labels == self.target.label).nonzero()[:, 0]
        return torch.arange(len(labels), device=self.clip.device)

    @torch.no_grad()
    def now(self) -> Outcome:
        """Of the model as it stands, with whatever edits are on."""
        scores, rows = {}, {task.name: self._rows(task, False) for task in self.tasks}
        for task in self.tasks:
            seen = {which: self._encoded(which, self._inputs[which][task.name]) for which in ("vision", "language")}
            scores[task.name] = logits(seen["vision"], task.weights(seen["language"]))
        return outcome(scores, self.target, self.tasks, rows)


class _Outputs:
    """A probe of a model that uses one of CLIP's towers, by what it gives out: each step is one batch of outputs."""

    def __init__(self, model: DiffusionModel | VisionLanguageModel, target: Target, tasks: Sequence[ZeroShot]):
        self.model, self.target, self.tasks = model, target, tasks

    def scores(self, task: ZeroShot, rows: Tensor) -> Tensor:
        """(n, c) for the task's pictures (or classes) ``rows``."""
        raise NotImplementedError

    def look(self, name: str, shift: Tensor, steps: Sequence[float], *, forget_only: bool = False) -> list[Outcome]:
        outcomes = []
        for step in steps:
            with shifted(self.model, {name: step * shift}):
                outcomes.append(self._outcome(forget_only))
        return outcomes

    def now(self) -> Outcome:
        return self._outcome(False)

    @torch.no_grad()
    def _outcome(self, forget_only: bool) -> Outcome:
        tasks = [self.target.task] if forget_only else self.tasks
        rows = {task.name: torch.arange(len(task.labels)) for task in tasks}
        if forget_only:
            rows[self.target.task.name] = (torch.tensor(self.target.task.labels) == self.target.label).nonzero()[:, 0]
        scores = {task.name: self.scores(task, rows[task.name]) for task in tasks}
        return outcome(scores, self.target, tasks, rows)


class PictureProbe(_Outputs):
    """The pictures that a diffusion model makes of each class, as the untouched CLIP classifies them. Seeds are fixed."""

    def __init__(
        self, model: DiffusionModel, clip: ClipModel, target: Target, tasks: Sequence[ZeroShot], seed: int, steps: int = 20
    ):
        super().__init__(model, target, tasks)
        self.clip, self.seed, self.steps = clip, seed, steps

    def scores(self, task: ZeroShot, rows: Tensor) -> Tensor:
        assert isinstance(self.model, DiffusionModel)
        prompts = [task.templates[0].format(task.classes[task.labels[int(row)]]) for row in rows]
        pictures = generate(self.model, prompts, [self.seed + int(row) for row in rows], steps=self.steps)
        return logits(self.clip.encode_pictures(pictures), task.weights(self.clip.encode_text(task.prompts)))


QUESTIONS = {
    "identity": "What is the name of the person in this image?", "object": "What object is shown?", "style": "What style is it?",
}  # fmt: skip


class AnswerProbe(_Outputs):
    """The answers of a vision-language model: right where they hold the class's name, whatever the case."""

    def scores(self, task: ZeroShot, rows: Tensor) -> Tensor:
        assert isinstance(self.model, VisionLanguageModel)
        question = QUESTIONS.get(task.name, QUESTIONS["object"])
        pictures = [task.pictures[int(row)].picture() for row in rows]
        answers = self.model.answer(pictures, [question] * len(pictures))
        told = [[float(name.casefold() in answer.casefold()) for name in task.classes] for answer in answers]
        return torch.cat([torch.tensor(told), torch.full((len(told), 1), 0.5)], dim=1)  # the last column: none of them
