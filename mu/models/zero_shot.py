"""Zero-shot classification: which of the named classes does a image show, by the text that is closest to it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mu.core.errors import ConfigError, DataError
from mu.data.celeba import read_celeba
from mu.data.clip_sets import class_of
from mu.data.imagenet import read_imagenet
from mu.data.pairs import decode

IMAGENET_TEMPLATES = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
CANVAS_TEMPLATES = {"style": ("an image in {} style",), "object": ("a {} image",), "identity": ("a portrait of {}",)}


class Shown(Protocol):
    def image(self) -> Image.Image: ...


@dataclass(frozen=True)
class ImageFile:
    path: Path

    def image(self) -> Image.Image:
        return decode(self.path.read_bytes(), str(self.path))


@dataclass(frozen=True)
class ZeroShot:
    """Images with the number of the class that each shows."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    images: Sequence[Shown]
    labels: tuple[int, ...]
    beyond: frozenset[int] = frozenset()
    """Labels whose images are there to see a concept go, and are no part of the task's accuracy."""

    @property
    def prompts(self) -> list[str]:
        """Every class in every template; the templates of one class stand together."""
        return [template.format(name) for name in self.classes for template in self.templates]

    def weights(self, texts: Tensor) -> Tensor:
        """Class vectors (c, d) from the unit vectors of `prompts` (..., c * templates, d): their mean, normalised again."""
        return F.normalize(texts.unflatten(-2, (len(self.classes), -1)).mean(dim=-2), dim=-1)

    def label_of(self, concept: str) -> int | None:
        """The class that ``concept`` names, case and underscores aside; "neon style" names the class "neon"."""
        return class_of(concept, self.classes)


def canvas_tasks(per_class: int, seed: int) -> list[ZeroShot]:
    """Styles, objects and people of the embedded world on freshly rendered images, ``per_class`` of each class."""
    from mu.data import canvas as world

    tasks = []
    for kind, templates in CANVAS_TEMPLATES.items():
        classes = {"style": world.STYLES, "object": world.OBJECTS, "identity": world.IDENTITIES}[kind]
        pairs, labels = [], []
        for label, name in enumerate(classes):
            pairs += world.rendered_pairs(per_class, seed * 1000 + label, name)
            labels += [label] * per_class
        tasks.append(ZeroShot(kind, classes, templates, pairs, tuple(labels)))
    return tasks


def celeba_task(folder: Path | str, concepts: Sequence[str] = ()) -> ZeroShot:
    """All images of `mu.data.celeba.CelebA.classified`, and of the people whom ``concepts`` name, among all names of CelebA; the
    template is the bare name. Who is named and is not one of the classified is `ZeroShot.beyond`."""
    celeba = read_celeba(folder)
    names = tuple(name.replace("_", " ") for name in celeba.identities)
    classified = set(celeba.classified)
    counted = {label for label, name in enumerate(celeba.identities) if name in classified}
    named = {label for concept in concepts if (label := class_of(concept, names)) is not None}
    rows = [(ImageFile(path), label) for label in sorted(counted | named) for path in celeba.images[celeba.identities[label]]]
    images, labels = [image for image, _ in rows], tuple(label for _, label in rows)
    return ZeroShot("identity", names, ("{}.",), images, labels, frozenset(named - counted))


def imagenet_task(folder: Path | str) -> ZeroShot:
    """The fixed 5 % of ImageNet's validation images, with the seven simple templates."""
    found = read_imagenet(folder).subset()
    return ZeroShot("imagenet", found.names, IMAGENET_TEMPLATES, [ImageFile(path) for path in found.images], found.labels)


class TaskSource(NamedTuple):
    open: Callable[[str, int, int, Sequence[str]], list[ZeroShot]]
    """From the folder, the number of rendered images of each class, the seed and the concepts."""
    in_folder: bool = True
    """Otherwise images are rendered: others for each seed."""


TASK_SOURCES = {
    "canvas": TaskSource(lambda folder, per_class, seed, concepts: canvas_tasks(per_class, seed), in_folder=False),
    "celeba": TaskSource(lambda folder, per_class, seed, concepts: [celeba_task(folder, concepts)]),
    "imagenet": TaskSource(lambda folder, per_class, seed, concepts: [imagenet_task(folder)]),
}


def task_source(name: str) -> TaskSource:
    """Of a task's name: ``KIND``, or ``KIND:FOLDER``. `ConfigError` where there is none."""
    kind, _, folder = name.partition(":")
    found = TASK_SOURCES.get(kind)
    if found is None or found.in_folder != bool(folder):
        *known, last = (f"{each}:FOLDER" if source.in_folder else each for each, source in TASK_SOURCES.items())
        raise ConfigError(f"unknown task {name!r}: write {', '.join(known)} or {last}")
    return found


def open_tasks(names: Sequence[str], per_class: int, seed: int, concepts: Sequence[str] = ()) -> list[ZeroShot]:
    """Tasks by name: ``canvas``, ``celeba:FOLDER``, ``imagenet:FOLDER``; with images of the ``concepts`` among their classes.

    Raises `ConfigError` for an unknown name and for two that give the same task: what is seen of tasks is kept by their names.
    """
    tasks: dict[str, ZeroShot] = {}
    given: dict[str, str] = {}
    for name in names:
        for task in task_source(name).open(name.partition(":")[2], per_class, seed, concepts):
            if task.name in tasks:
                raise ConfigError(f"{given[task.name]!r} and {name!r} both give the task {task.name!r}: name one of them")
            tasks[task.name], given[task.name] = task, name
    if not tasks:
        raise DataError("no task is named: the search could not see what is forgotten")
    return list(tasks.values())


REPORT_SEED = 9
"""Methods learn and search on rendered images of seeds that end in 1, 2 and 3: a report's end in 9."""


def report_tasks(names: Sequence[str], per_class: int, seeds: Sequence[int], concepts: Sequence[str] = ()) -> list[ZeroShot]:
    """`open_tasks` with the rendered images of all ``seeds`` together, which no method's search saw. CelebA's and ImageNet's are
    the same for all."""
    first, *others = (seed * 10 + REPORT_SEED for seed in seeds)
    tasks = open_tasks(names, per_class, first, concepts)
    rendered = [name for name in names if not task_source(name).in_folder]
    more = [task for seed in others for name in rendered for task in open_tasks([name], per_class, seed)]
    return [_pooled([task, *(other for other in more if other.classes == task.classes)]) for task in tasks]


def _pooled(tasks: Sequence[ZeroShot]) -> ZeroShot:
    images = [image for task in tasks for image in task.images]
    return replace(tasks[0], images=images, labels=tuple(label for task in tasks for label in task.labels))


@dataclass(frozen=True)
class Target:
    """The forgotten class: its task and its label."""

    concept: str
    task: ZeroShot
    label: int


def target_of(concept: str, tasks: Sequence[ZeroShot]) -> Target:
    """The class with images that ``concept`` names; `ConfigError` where no task has it."""
    for task in tasks:
        label = task.label_of(concept)
        if label is not None and label in task.labels:
            return Target(concept, task, label)
    known = ", ".join(f"{task.name} ({len(task.classes)})" for task in tasks)
    raise ConfigError(
        f"{concept!r} is a class with pictures in none of the tasks ({known}): nothing could tell whether it went"
    )


def logits(features: Tensor, weights: Tensor) -> Tensor:
    """Similarities (..., n, c) of images (..., n, d) and classes (..., c, d)."""
    return features @ weights.transpose(-1, -2)
