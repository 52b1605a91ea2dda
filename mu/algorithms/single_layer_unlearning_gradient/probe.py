"""Forget accuracy and retained accuracy of a model while one tensor changes along a line of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mu.algorithms.single_layer_unlearning_gradient.configs import ImagesConfig
from mu.core.config import filled
from mu.core.errors import quoted, titled
from mu.data.questions import question_about
from mu.diffusion.sampling import generate
from mu.edits.edit import shifted
from mu.evaluation.metrics.accuracy import hits
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.judge import Judge
from mu.models.parameters import find_parameter
from mu.models.towers import Hidden, Which, tower_of, towers_of
from mu.models.vision_language import VisionLanguageModel
from mu.models.zero_shot import Target, ZeroShot, logits

Direction = Mapping[str, Tensor]
"""The tensors that change together, by full name, and what a step of 1 adds to each."""
Rows = Mapping[str, Tensor]
"""For each task, by name: the indices (n,) of the images to evaluate."""


@dataclass(frozen=True)
class Outcome:
    """Accuracies at one step. ``fa1``, ``fa5``: accuracy at 1 and at 5 on the erased class.

    ``retained``: macro accuracy at 1 of each task, by name, over all classes except the erased one and
    `ZeroShot.beyond`. Tasks that were not evaluated are missing.
    """

    fa1: float
    fa5: float
    retained: Mapping[str, float]

    @property
    def utility(self) -> float:
        return sum(self.retained.values()) / max(len(self.retained), 1)

    def kept(self, base: Outcome) -> float:
        """The mean share of the base's retained accuracies; a gain on one task does not make up for a loss on
        another."""
        shares = [
            min(1.0, now / base.retained[name]) if base.retained[name] else 1.0 for name, now in self.retained.items()
        ]
        return sum(shares) / max(len(shares), 1)


def stays(task: ZeroShot, target: Target) -> Tensor:
    """(n,) bool: the task's images of classes to retain."""
    labels, gone = torch.tensor(task.labels), set(task.beyond) | ({target.label} if task is target.task else set())
    return ~torch.isin(labels, labels.new_tensor(sorted(gone)))


class Tally:
    """Records which images of each task were classified correctly so far; the others are unknown (nan)."""

    def __init__(self, target: Target, tasks: Sequence[ZeroShot]):
        self.target, self.tasks = target, tasks
        self.right = {task.name: torch.full((2, len(task.labels)), torch.nan) for task in tasks}

    def add(self, scores: Mapping[str, Tensor], rows: Rows) -> Tally:
        """Add logits (n, c) of the images ``rows`` of each task, at 1 and at 5 (at 1 twice if there are fewer
        classes)."""
        for task in self.tasks:
            if task.name in scores:
                found, seen = scores[task.name], rows[task.name]
                labels, classes = torch.tensor(task.labels, device=found.device)[seen], found.shape[1]
                right = torch.stack([hits(found, labels, k if k < classes else 1) for k in (1, 5)])
                self.right[task.name][:, seen.cpu()] = right.cpu()
        return self

    def outcome(self, *, at_best: bool = False) -> Outcome:
        """The accuracies so far; with ``at_best``, all other retained images count as classified correctly."""
        forgotten, retained = torch.full((2,), torch.nan), {}
        for task in self.tasks:
            labels, right, counted = torch.tensor(task.labels), self.right[task.name], stays(task, self.target)
            if task is self.target.task:
                forgotten = right[:, labels == self.target.label].nanmean(dim=1)
            if not at_best:
                counted &= ~right[0].isnan()
            if counted.any():
                images = labels[counted].bincount()
                known = labels[counted].bincount(weights=right[0, counted].nan_to_num(1.0).double())
                retained[task.name] = float((known / images)[images > 0].mean())
        return Outcome(float(forgotten[0]), float(forgotten[1]), retained)


class Probe(ABC):
    """Evaluates a model with one tensor changed.

    ``at_once``: steps to evaluate before checking whether one of them forgets. ``PORTION``: retained images to evaluate
    before checking whether a step can still be the best.
    """

    at_once = 4
    PORTION = 32
    instead = "it was erased before or never learned, name another concept"
    """What to do if the base model does not show the concept."""

    def __init__(self, target: Target, tasks: Sequence[ZeroShot]):
        self.target, self.tasks = target, tasks

    @abstractmethod
    def scores(self, rows: Rows) -> dict[str, Tensor]:
        """Logits (n, c) of the images ``rows`` of each task, from the model in its current state."""

    @abstractmethod
    def scores_along(self, name: str, along: Direction, steps: Sequence[float], rows: Rows) -> list[dict[str, Tensor]]:
        """The same for each of ``steps`` along the direction ``along`` of the searched tensor ``name``."""

    def prepare(self, names: Collection[str]) -> None:  # noqa: B027  # most have nothing to prepare
        """Prepare for the parameters ``names``. Call it before `base`."""

    def base(self) -> Outcome:
        """The outcome of the base model. Call it while no edit is on."""
        return self.now()

    def not_shown(self, model: str) -> str:
        """What was seen of the model named ``model`` if it does not show the concept."""
        return f"{titled(model)} does not recognise {quoted(self.target.concept)}"

    def now(self, *, forget_only: bool = False) -> Outcome:
        """The outcome of the model with all edits that are on."""
        rows = self._rows(forget_only)
        return Tally(self.target, self.tasks).add(self.scores(rows), rows).outcome()

    def look(self, name: str, along: Direction, steps: Sequence[float], *, forget_only: bool = False) -> list[Outcome]:
        """The outcome at each step; with ``forget_only``, on the erased class only."""
        rows = self._rows(forget_only)
        found = self.scores_along(name, along, steps, rows)
        return [Tally(self.target, self.tasks).add(each, rows).outcome() for each in found]

    def portions(self, name: str) -> list[Rows]:
        """The images to retain, in portions with a share of every task; ``name`` is the changed parameter."""
        rows = self._staying()
        n = -(-sum(map(len, rows.values())) // self.PORTION)
        return [{task: each[k::n] for task, each in rows.items() if len(each[k::n])} for k in range(n)]

    def _staying(self) -> Rows:
        rows = {task.name: stays(task, self.target).nonzero()[:, 0] for task in self.tasks}
        return {task: each for task, each in rows.items() if len(each)}

    def _rows(self, forget_only: bool) -> Rows:
        if not forget_only:
            return {task.name: torch.arange(len(task.labels)) for task in self.tasks}
        task = self.target.task
        return {task.name: (torch.tensor(task.labels) == self.target.label).nonzero()[:, 0]}


class ClipProbe(Probe):
    """CLIP's zero-shot classification. The base model encodes everything once, and the input of the changed stage is
    kept. K steps then cost K times the changed stage and the stages after it.

    The inputs of the stages given to `prepare` are kept for all images and prompts, up to ``keep_bytes``. Beyond that
    the base tower runs again from the last stage kept. The last stage needs one token of each row and is always kept.
    """

    def __init__(
        self,
        clip: ClipModel,
        target: Target,
        tasks: Sequence[ZeroShot],
        rows_at_once: int = 256,
        keep_bytes: int = 2**32,
    ):
        super().__init__(target, tasks)
        self.clip, self.rows_at_once, self.keep_bytes = clip, rows_at_once, keep_bytes
        self.towers = towers_of(clip)
        self._stages: set[tuple[Which, int]] = set()
        self._kept: dict[tuple[Which, str, int], Hidden] = {}
        self._entered: tuple[tuple[Which, str, int, bytes], Hidden] | None = None

    def prepare(self, names: Collection[str]) -> None:
        for name in names:
            which = tower_of(name)
            assert which is not None, "candidates are in towers"
            self._stages.add((which, self.towers[which].stage_of(name)))

    @cached_property
    def _inputs(self) -> dict[Which, dict[str, Hidden]]:
        """The inputs of both towers, by task."""
        return {
            "language": {t.name: self.towers["language"].texts(t.prompts) for t in self.tasks},
            "vision": {t.name: self.towers["vision"].images(p.image() for p in t.images) for t in self.tasks},
        }

    @cached_property
    def _features(self) -> dict[Which, dict[str, Tensor]]:
        """Unit vectors (n, d) of the base model's towers. Computing them also stores the hidden states to keep."""
        with torch.no_grad():
            return {
                which: {task: self._untouched(which, task) for task in each} for which, each in self._inputs.items()
            }

    def _untouched(self, which: Which, task: str) -> Tensor:
        tower, inputs, features = self.towers[which], self._inputs[which][task], list[Tensor]()
        last, size = tower.stages - 1, len(inputs.x) * tower.run(inputs[torch.arange(1)], 0, 1).x.nbytes
        stages = sorted({stage for of, stage in self._stages if of == which} - {0, last})[: self.keep_bytes // size]
        self.keep_bytes -= len(stages) * size
        states: dict[int, list[Hidden]] = {stage: [] for stage in (*stages, last)}
        for part in self._parts(inputs):
            hidden, at = inputs[part], 0
            for stage, kept in states.items():
                hidden, at = tower.run(hidden, at, stage), stage
                kept.append(tower.leaving(hidden) if stage == last else hidden)
            features.append(tower.leave(hidden))
        self._kept |= {(which, task, stage): Hidden.cat(kept) for stage, kept in states.items()}
        return torch.cat(features)

    def base(self) -> Outcome:
        seen, rows = self._features, self._rows(forget_only=False)
        scores = {t.name: logits(seen["vision"][t.name], t.weights(seen["language"][t.name])) for t in self.tasks}
        return Tally(self.target, self.tasks).add(scores, rows).outcome()

    @torch.no_grad()
    def scores(self, rows: Rows) -> dict[str, Tensor]:
        found = {}
        for task in (task for task in self.tasks if task.name in rows):
            images, texts = self._inputs["vision"][task.name][rows[task.name]], self._inputs["language"][task.name]
            found[task.name] = logits(self._encoded("vision", images), task.weights(self._encoded("language", texts)))
        return found

    @torch.no_grad()
    def scores_along(self, name: str, along: Direction, steps: Sequence[float], rows: Rows) -> list[dict[str, Tensor]]:
        which = tower_of(name)
        assert which is not None, "candidates are in towers"
        found: list[dict[str, Tensor]] = [{} for _ in steps]
        untouched = self._features
        for task in (task for task in self.tasks if task.name in rows):
            chosen = rows[task.name]
            changed = self._changed(name, along, steps, task.name, chosen if which == "vision" else None)
            if which == "vision":
                each = logits(changed, task.weights(untouched["language"][task.name]))
            else:
                each = logits(untouched["vision"][task.name][chosen], task.weights(changed))
            for scores, values in zip(found, each, strict=True):
                scores[task.name] = values
        return found

    def portions(self, name: str) -> list[Rows]:
        """For a text tensor, one portion for each task: every image needs all prompts of its task."""
        if tower_of(name) == "vision":
            return super().portions(name)
        return [{task: rows} for task, rows in self._staying().items()]

    def _changed(self, name: str, along: Direction, steps: Sequence[float], task: str, rows: Tensor | None) -> Tensor:
        """Unit vectors (K, n, d) of ``rows`` (None: all) for each of K ``steps``."""
        which = tower_of(name)
        assert which is not None, "candidates are in towers"
        tower, stage = self.towers[which], self.towers[which].stage_of(name)
        changes = [(find_parameter(self.clip, each), shift) for each, shift in along.items()]
        hidden = self._entering(which, task, stage, rows)
        parts = self._parts(hidden, len(steps))
        return torch.cat([tower.along(hidden[part], stage, changes, steps) for part in parts], dim=1)

    def _entering(self, which: Which, task: str, stage: int, rows: Tensor | None) -> Hidden:
        """The input of ``stage`` in the base tower; that of the last call is reused for the same rows."""
        asked = (which, task, stage, b"" if rows is None else rows.cpu().numpy().tobytes())
        if self._entered is None or self._entered[0] != asked:
            tower, start = (
                self.towers[which],
                max((s for of, t, s in self._kept if (of, t) == (which, task) and s <= stage), default=0),
            )
            hidden = self._kept[which, task, start] if start else self._inputs[which][task]
            hidden = hidden if rows is None else hidden[rows]
            if start < stage:
                hidden = Hidden.cat([tower.run(hidden[part], start, stage) for part in self._parts(hidden)])
            self._entered = asked, hidden
        return self._entered[1]

    def _encoded(self, which: Which, hidden: Hidden) -> Tensor:
        return torch.cat([self.towers[which].features(hidden[part]) for part in self._parts(hidden)])

    def _parts(self, hidden: Hidden, copies: int = 1) -> Sequence[Tensor]:
        return torch.arange(len(hidden.x), device=hidden.x.device).split(max(1, self.rows_at_once // copies))


class _Outputs(Probe):
    """A probe of the outputs of a model that uses one of CLIP's towers: each step is one batch of outputs."""

    def __init__(self, model: DiffusionModel | VisionLanguageModel, target: Target, tasks: Sequence[ZeroShot]):
        super().__init__(target, tasks)
        self.model = model

    @abstractmethod
    def scores_of(self, task: ZeroShot, rows: Tensor) -> Tensor:
        """Scores (n, c) of the outputs ``rows`` of the task: one generated image or one answer each."""

    @torch.no_grad()
    def scores(self, rows: Rows) -> dict[str, Tensor]:
        return {task.name: self.scores_of(task, rows[task.name]) for task in self.tasks if task.name in rows}

    def scores_along(self, name: str, along: Direction, steps: Sequence[float], rows: Rows) -> list[dict[str, Tensor]]:
        found = []
        for step in steps:
            with shifted(self.model, {each: step * shift for each, shift in along.items()}):
                found.append(self.scores(rows))
        return found


class ImageProbe(_Outputs):
    """The images that a diffusion model makes of each class, classified by the base CLIP or by a ``judge`` with a head
    for the task. Prompts and seeds are fixed."""

    instead = "set search.images.templates to prompts that show it, search.images.guidance or search.on=clip"

    def __init__(
        self,
        model: DiffusionModel,
        clip: ClipModel,
        target: Target,
        tasks: Sequence[ZeroShot],
        settings: ImagesConfig,
        seed: int,
        judge: Judge | None = None,
    ):
        drawn = [_drawn(task, target, settings) for task in tasks]
        own = next(new for new, task in zip(drawn, tasks, strict=True) if task is target.task)
        super().__init__(model, replace(target, task=own), drawn)
        self.clip, self.settings, self.seed, self.judge = clip, settings, seed, judge

    def scores_of(self, task: ZeroShot, rows: Tensor) -> Tensor:
        assert isinstance(self.model, DiffusionModel)
        templates = self._templates(task)
        chosen = rows.tolist()
        prompts = [filled(templates[row % len(templates)], task.classes[task.labels[row]]) for row in chosen]
        seeds = [self.seed + row for row in chosen]
        images = generate(self.model, prompts, seeds, steps=self.settings.steps, guidance=self.settings.guidance)
        if self.judge and task.name in self.judge.heads:
            return _said(self.judge.look(images)[0][task.name], task, str.__eq__)
        return logits(self.clip.encode_images(images), task.weights(self._texts[task.name]))

    def _templates(self, task: ZeroShot) -> Sequence[str]:
        return self.settings.templates.get(task.name) or task.templates[:1]

    def not_shown(self, model: str) -> str:
        prompt = filled(self._templates(self.target.task)[0], self.target.task.classes[self.target.label])
        judge = "the judge" if self.judge else "the CLIP"
        seen = f"does not recognise {quoted(self.target.concept)} in what {titled(model)} makes of {quoted(prompt)}"
        return f"{judge} {seen}"

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        return {task.name: self.clip.encode_text(task.prompts) for task in self.tasks}


def _drawn(task: ZeroShot, target: Target, settings: ImagesConfig) -> ZeroShot:
    """The task for generated images: its labels are the classes to draw, as often as the settings state.

    Classes without images, and those that are `ZeroShot.beyond`, are skipped.
    """
    own = {target.label} if task is target.task else set()
    counts = {label: settings.retained for label in sorted(set(task.labels) - (task.beyond - own))}
    counts |= dict.fromkeys(own, settings.forget)
    return replace(task, images=(), labels=tuple(label for label, n in counts.items() for _ in range(n)))


class AnswerProbe(_Outputs):
    """The answers of a vision-language model: correct if they contain the class's name, in any case. ``rows_at_once``
    images are opened and asked about together."""

    rows_at_once = 32
    PORTION = 96
    instead = "set search.on=clip, or name a concept that the answers name"

    def not_shown(self, model: str) -> str:
        question = question_about(self.target.task.name)
        return f"the answers of {titled(model)} to {quoted(question)} do not name {quoted(self.target.concept)}"

    def scores_of(self, task: ZeroShot, rows: Tensor) -> Tensor:
        assert isinstance(self.model, VisionLanguageModel)
        question = question_about(task.name)
        answers: list[str] = []
        for part in rows.split(self.rows_at_once):
            images = [task.images[int(row)].image() for row in part]
            answers += self.model.answer(images, [question] * len(images), batch_size=len(images))
        told = _said(answers, task, lambda answer, name: name.casefold() in answer.casefold())
        told[torch.arange(len(rows)), torch.tensor(task.labels)[rows]] *= (
            2  # correct even if it names other classes too
        )
        return told


def _said(answers: Sequence[str], task: ZeroShot, names: Callable[[str, str], bool]) -> Tensor:
    """Scores (n, c + 1): 1 for a class that the answer names, 0 for the others; the last column means no class."""
    told = [[float(names(answer, name)) for name in task.classes] for answer in answers]
    return torch.cat([torch.tensor(told), torch.full((len(told), 1), 0.5)], dim=1)
