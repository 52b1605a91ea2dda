"""Judges with fixed classes: any transformers image classifier, and those that `mu classifier train` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mu.core.errors import DataError, quoted
from mu.data.clip_sets import class_of
from mu.evaluation.judges import Seen
from mu.models.judge import Judge as Classifier
from mu.models.parameters import fingerprint, select

RESNET50 = "microsoft/resnet-50"
ADVICE = "name its folder with --judge classifier:FOLDER, or another judge, like clip:FOLDER"


class ClassifierJudge:
    """Answers with the classifier's class. Labels of the form ``head/class`` make several kinds of concepts.

    A label with several names, like ImageNet's "tench, Tinca tinca", is known by each of them. ``nothing`` are classes
    that mean that an image shows no concept.
    """

    def __init__(self, network: Classifier, name: str, nothing: Sequence[str] = ()):
        self.network, self.name, self.nothing = network, name, frozenset(nothing)
        self.names: Mapping[str, list[list[str]]] = {
            head: [[each.strip() for each in label.split(",")] for label in labels]
            for head, labels in network.classes.items()
        }

    def known(self, concept: str) -> str:
        return self._place(concept)[1]

    def rivals(self, concept: str) -> list[str]:
        head, own = self._place(concept)
        return [names[0] for names in self.names[head] if names[0] not in {own, *self.nothing}]

    def _place(self, concept: str) -> tuple[str, str]:
        """The head that knows ``concept``, and its name there."""
        for head, labels in self.names.items():
            for names in labels:
                if names[0] not in self.nothing and class_of(concept, names) is not None:
                    return head, names[0]
        shown = [names[0] for labels in self.names.values() for names in labels if names[0] not in self.nothing]
        some = ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
        raise DataError(
            f"the judge {self.name} has no class for {quoted(concept)} (it knows {some}): "
            "choose another judge, like clip:MODEL, which knows any concept"
        )

    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        head = self._place(among[0])[0]
        answers, features = self.network.look(images)
        index = {label: names[0] for label, names in zip(self.network.classes[head], self.names[head], strict=True)}
        named = [index[answer] for answer in answers[head]]
        return Seen(["" if name in self.nothing else name for name in named], features.float().cpu())

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        head = self._place(among[0])[0]
        classes = [names[0] for names in self.names[head]]
        weights = fingerprint(self.network, select(self.network, "*"))
        return {"judge": self.name, "weights": weights, "classes": classes}


def open_classifier(place: str, device: torch.device | str) -> ClassifierJudge:
    """Raises `ModelError` if ``place``, a folder or a hub id, holds no image classifier."""
    where = Path(place) if Path(place).is_dir() else place
    return ClassifierJudge(Classifier.open(where, device, ADVICE), f"classifier:{place}")


def open_resnet50(_: str, device: torch.device | str) -> ClassifierJudge:
    """The ImageNet classifier of UnlearnDiffAtk and of ESD's object table."""
    return ClassifierJudge(Classifier.open(RESNET50, device, ADVICE), "resnet50")
