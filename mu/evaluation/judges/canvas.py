"""The embedded world's own judge. It was trained on rendered images only, and knows nothing of other models."""

from __future__ import annotations

import torch

from mu.evaluation.judges.classifier import ClassifierJudge
from mu.models.judge import Judge as Classifier
from mu.models.places import EMBEDDED


def open_canvas(_: str, device: torch.device | str) -> ClassifierJudge:
    return ClassifierJudge(Classifier.open(EMBEDDED["canvas-judge"], device), "canvas", nothing=["none"])
