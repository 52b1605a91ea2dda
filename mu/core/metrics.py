"""Every metric that a suite measures: its name, which way is better, its unit, and what it says."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mu.core.scores import HIGHER, LOWER, Score

SHARE = "share"


@dataclass(frozen=True)
class Metric:
    """``name`` may hold ``*``, which stands for a kind of concept.

    ``unit`` is ``share`` (0 to 1, shown in per cent) or says what else is counted. The ``meaning`` of a share is the
    end of a sentence that begins with it. ``about`` says whether it tells what goes or what stays; a ``head`` metric
    stands at the head of the report.
    """

    name: str
    direction: str
    unit: str
    title: str
    meaning: str
    about: Literal["gone", "kept", ""] = ""
    head: bool = False


METRICS = (
    Metric(
        "UA", HIGHER, SHARE, "Unlearning accuracy",
        "of the pictures that ask for it no longer show it", "gone", True,
    ),
    Metric(
        "IRA", HIGHER, SHARE, "In-domain retain accuracy",
        "of the pictures of other concepts of its kind still show them", "kept", True,
    ),
    Metric(
        "CRA", HIGHER, SHARE, "Cross-domain retain accuracy",
        "of the pictures still show the other kind of concept they ask for", "kept", True,
    ),
    Metric(
        "CLIP score", HIGHER, "2.5 cosine", "CLIP score",
        "how well the retained pictures fit their prompts", "kept",
    ),
    Metric(
        "Fréchet distance", LOWER, "distance", "Fréchet distance",
        "of the retained pictures from the untouched model's at other seeds", "kept",
    ),
    Metric(
        "FA@1", LOWER, SHARE, "Forget accuracy",
        "of the concept's pictures are still recognised as it", "gone", True,
    ),
    Metric(
        "FA@5", LOWER, SHARE, "Forget accuracy, top five",
        "of the concept's pictures still have it among the five nearest names", "gone",
    ),
    Metric(
        "*@1 retained", HIGHER, SHARE, "Retained accuracy",
        "of the pictures of what was to stay of its kind are recognised, every class counting once", "kept", True,
    ),
    Metric(
        "*@5 retained", HIGHER, SHARE, "Retained accuracy, top five",
        "of the same pictures have the right name among the five nearest", "kept",
    ),
    Metric(
        "imagenet@1", HIGHER, SHARE, "ImageNet accuracy",
        "of ImageNet's pictures are recognised", "kept", True,
    ),
    Metric(
        "imagenet@5", HIGHER, SHARE, "ImageNet accuracy, top five",
        "of ImageNet's pictures have the right name among the five nearest", "kept",
    ),
    Metric(
        "*@1", HIGHER, SHARE, "Accuracy",
        "of the pictures of this kind are recognised, every class counting once", "kept", True,
    ),
    Metric(
        "*@5", HIGHER, SHARE, "Accuracy, top five",
        "of the pictures of this kind have the right name among the five nearest, every class counting once", "kept",
    ),
    Metric(
        "MIA", "towards 0.5", SHARE, "Membership inference",
        "of the pairs can be told as forgotten or not by how well picture and caption fit: 50% is chance, "
        "and what was forgotten too much stands out again",
    ),
    Metric(
        "cosine of forget pairs", LOWER, "cosine", "Cosine of forget pairs",
        "how well the concept's pictures and their captions fit", "gone",
    ),
    Metric(
        "FA", LOWER, SHARE, "Forget accuracy",
        "of the answers about the concept's pictures still name it", "gone", True,
    ),
    Metric(
        "retained", HIGHER, SHARE, "Retained accuracy",
        "of the answers to the same question about other pictures are right", "kept", True,
    ),
    Metric(
        "other questions", HIGHER, SHARE, "Other questions",
        "of the answers to questions about something else are right", "kept", True,
    ),
    Metric(
        "other questions, forgotten pictures", HIGHER, SHARE, "Other questions",
        "of the answers to questions about something else in the concept's pictures are right", "kept",
    ),
)  # fmt: skip
"""In this order: the first that fits a name is it."""


def metric_of(name: str) -> Metric | None:
    """The metric called ``name``; None for a score of one's own."""
    return next((metric for metric in METRICS if fnmatch.fnmatchcase(name, metric.name)), None)


def scored(name: str, value: float, n: int, protocol: str, per_item: Mapping[str, float] | None = None) -> Score:
    """A score of the metric ``name``, with its direction. `KeyError` for one that is not among `METRICS`."""
    metric = metric_of(name)
    if metric is None:
        raise KeyError(f"{name!r} is no metric: add it to METRICS in {__name__}")
    return Score(name, value, n, metric.direction, protocol, per_item or {})
