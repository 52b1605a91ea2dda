"""Turn settings into pairs for the gradients and tasks for the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mu.algorithms.single_layer_unlearning_gradient.configs import SlugConfig
from mu.data.clip_sets import Recaptioned, forget_pairs, forget_source, is_gradient_file, retain_pairs
from mu.models.contrastive import Captioned
from mu.models.zero_shot import Target, ZeroShot, open_tasks, target_of
from mu.training.gradient_files import Kind

SEARCH_SEED = 3
"""Differs from the seeds of `mu.data.clip_sets`."""


class SingleLayerUnlearningGradientDataHandler:
    def __init__(self, config: SlugConfig):
        self.config = config

    def forget_pairs(self, concept: str) -> Sequence[Captioned]:
        return forget_pairs(self.config.data, concept, self.config.seed)

    def retain_pairs(self, concept: str) -> Sequence[Captioned]:
        """The same pairs for every concept, unless ``constant_retain_caption`` captions all of them with its name."""
        pairs = retain_pairs(self.config.data, self.config.seed)
        constant = "constant_retain_caption" in self.config.gradients.compat
        return [Recaptioned(pair, concept) for pair in pairs] if constant else pairs

    def gradient_file(self, kind: Kind, concept: str) -> str | None:
        """The gradient file that the settings name, or None if they name images."""
        source = forget_source(self.config.data, concept) if kind == "forget" else self.config.data.retain
        return source if is_gradient_file(source) else None

    def pairs(self, kind: Kind, concept: str) -> Sequence[Captioned]:
        return self.forget_pairs(concept) if kind == "forget" else self.retain_pairs(concept)

    def tasks(self) -> list[ZeroShot]:
        """The search tasks, on images that neither the gradients nor any report use."""
        data = self.config.data
        return open_tasks(data.tasks, data.per_class, self.config.seed * 10 + SEARCH_SEED, self.config.concepts)

    def targets(self) -> tuple[list[Target], list[ZeroShot]]:
        """The concepts and all tasks, in which none of the concepts counts as retained.

        Raises `ConfigError` for a concept that is not a class of any task.
        """
        concepts, tasks = self.config.concepts, self.tasks()
        gone = [target_of(concept, tasks) for concept in concepts]
        tasks = [
            replace(task, beyond=task.beyond | {each.label for each in gone if each.task is task}) for task in tasks
        ]
        return [target_of(concept, tasks) for concept in concepts], tasks
