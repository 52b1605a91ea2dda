"""Zero-shot classification: find the named class that an image shows, by the text closest to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mu.core.config import filled
from mu.core.errors import ConfigError, DataError, quoted, titled
from mu.data.celeba import read_celeba
from mu.data.class_folders import read_classes
from mu.data.clip_sets import class_of
from mu.data.imagenet import read_imagenet
from mu.data.pairs import decode
from mu.data.shards import Extent

if TYPE_CHECKING:
    from mu.data.canvas import World

IMAGENET_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
CLASS_TEMPLATES = ("{}", "a picture of {}")
"""For the user's own classes, which may be of any kind: objects, people, styles."""


class Shown(Protocol):
    def image(self) -> Image.Image: ...


@dataclass(frozen=True)
class ImageFile:
    path: Path

    def image(self) -> Image.Image:
        return decode(Extent(self.path).read(), str(self.path))


@dataclass(frozen=True)
class ZeroShot:
    """A classification task: images, each with the number of the class that it shows."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    images: Sequence[Shown]
    labels: tuple[int, ...]
    beyond: frozenset[int] = frozenset()
    """Labels whose images are shown only to measure forgetting; excluded from the task's accuracy."""

    @property
    def prompts(self) -> list[str]:
        """Every class in every template; the prompts of one class are consecutive."""
        return [filled(template, name) for name in self.classes for template in self.templates]

    def weights(self, texts: Tensor) -> Tensor:
        """Class vectors (c, d) from unit vectors of `prompts` (..., c * templates, d): the mean, normalised again."""
        return F.normalize(texts.unflatten(-2, (len(self.classes), -1)).mean(dim=-2), dim=-1)

    def label_of(self, concept: str) -> int | None:
        """The class that ``concept`` names, ignoring case and underscores; "neon style" names the class "neon"."""
        return class_of(concept, self.classes)


def canvas_tasks(per_class: int, seed: int, world: World | None = None) -> list[ZeroShot]:
    """Styles, objects and people of ``world``, with ``per_class`` newly rendered images of each class.

    Default: the embedded world."""
    from mu.data.canvas import CANVAS, rendered_pairs

    world, tasks = world or CANVAS, []
    for kind, classes in world.classes().items():
        pairs, labels = [], []
        for label, name in enumerate(classes):
            pairs += rendered_pairs(per_class, seed * 1000 + label, name, world)
            labels += [label] * per_class
        tasks.append(ZeroShot(kind, classes, (world.template(kind),), pairs, tuple(labels)))
    return tasks


def celeba_task(folder: Path | str, concepts: Sequence[str] = ()) -> ZeroShot:
    """Images of `mu.data.celeba.CelebA.classified` and of people in ``concepts``, classified among all names of CelebA.

    The template is the name alone. People in ``concepts`` who are not classified are `ZeroShot.beyond`."""
    celeba = read_celeba(folder)
    names = tuple(name.replace("_", " ") for name in celeba.identities)
    classified = set(celeba.classified)
    counted = {label for label, name in enumerate(celeba.identities) if name in classified}
    named = {label for concept in concepts if (label := class_of(concept, names)) is not None}
    rows = [
        (ImageFile(path), label)
        for label in sorted(counted | named)
        for path in celeba.images[celeba.identities[label]]
    ]
    images, labels = [image for image, _ in rows], tuple(label for _, label in rows)
    return ZeroShot("identity", names, ("{}.",), images, labels, frozenset(named - counted))


def imagenet_task(folder: Path | str) -> ZeroShot:
    """Classify a fixed 5 % of ImageNet's validation images, with the seven simple templates."""
    found = read_imagenet(folder).subset()
    return ZeroShot(
        "imagenet", found.names, IMAGENET_TEMPLATES, [ImageFile(path) for path in found.images], found.labels
    )


def classes_task(folder: Path | str) -> ZeroShot:
    """The user's own images in a folder for each class, see `mu.data.class_folders.read_classes`."""
    found = read_classes(folder)
    return ZeroShot("classes", found.names, CLASS_TEMPLATES, [ImageFile(path) for path in found.images], found.labels)


class TaskSource(NamedTuple):
    open: Callable[[str, int, int, Sequence[str]], list[ZeroShot]]
    """Open tasks, given the folder, the number of rendered images of each class, the seed and the concepts."""
    in_folder: bool = True
    """False: images are rendered, different ones for each seed."""


TASK_SOURCES = {
    "canvas": TaskSource(lambda folder, per_class, seed, concepts: canvas_tasks(per_class, seed), in_folder=False),
    "celeba": TaskSource(lambda folder, per_class, seed, concepts: [celeba_task(folder, concepts)]),
    "imagenet": TaskSource(lambda folder, per_class, seed, concepts: [imagenet_task(folder)]),
    "classes": TaskSource(lambda folder, per_class, seed, concepts: [classes_task(folder)]),
}


def task_source(name: str) -> TaskSource:
    """The source for a task's name: ``KIND``, or ``KIND:FOLDER``. Raises `ConfigError` for another name."""
    kind, _, folder = name.partition(":")
    found = TASK_SOURCES.get(kind)
    if found is None or found.in_folder != bool(folder):
        *known, last = (f"{each}:FOLDER" if source.in_folder else each for each, source in TASK_SOURCES.items())
        raise ConfigError(f"unknown task {titled(name)}: write {', '.join(known)} or {last}")
    return found


def open_tasks(names: Sequence[str], per_class: int, seed: int, concepts: Sequence[str] = ()) -> list[ZeroShot]:
    """Open tasks by name: ``canvas``, ``celeba:FOLDER``, ``imagenet:FOLDER``, ``classes:FOLDER``.

    With images of their ``concepts``.

    Raises `ConfigError` for an unknown name and for two names that give the same task, as results are kept by task.
    """
    tasks: dict[str, ZeroShot] = {}
    given: dict[str, str] = {}
    for name in names:
        for task in task_source(name).open(name.partition(":")[2], per_class, seed, concepts):
            if task.name in tasks:
                raise ConfigError(
                    f"{quoted(given[task.name])} and {titled(name)} both give the task {titled(task.name)}: "
                    "name only one"
                )
            tasks[task.name], given[task.name] = task, name
    if not tasks:
        raise DataError("no task is named, so forgetting cannot be measured: name at least one")
    return list(tasks.values())


REPORT_SEED = 9
"""Last digit of a report's seeds. Methods learn and search on rendered images of seeds that end in 1, 2 and 3."""


def report_tasks(
    names: Sequence[str],
    per_class: int,
    seeds: Sequence[int],
    concepts: Sequence[str] = (),
) -> list[ZeroShot]:
    """Open tasks as `open_tasks` does, with the rendered images of all ``seeds``, which no method's search used.

    Images of a folder are the same for all seeds."""
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
    """The class with images that ``concept`` names. Raises `ConfigError` if no task has it."""
    for task in tasks:
        label = task.label_of(concept)
        if label is not None and label in task.labels:
            return Target(concept, task, label)
    known = ", ".join(f"{task.name} ({len(task.classes)})" for task in tasks)
    raise ConfigError(
        f"{quoted(concept)} has images in none of the tasks ({known}), so forgetting cannot be measured: add a "
        "task with some"
    )


def logits(features: Tensor, weights: Tensor) -> Tensor:
    """Similarities (..., n, c) of images (..., n, d) and classes (..., c, d)."""
    return features @ weights.transpose(-1, -2)
