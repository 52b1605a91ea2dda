"""Every metric that a suite measures: name, direction, unit and meaning."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mu.core.errors import quoted, titled
from mu.core.scores import HIGHER, LOWER, NEITHER, Score

SHARE = "share"


class Telling(NamedTuple):
    """The words of a verdict: Of 40 ``images``, 2.5% ``show``; ``base`` 92.5%. ``{}`` stands for concept and share."""

    images: str
    show: str
    base: str


ASKED = Telling("images that ask for {}", "show it", "the base shows it in {}")


@dataclass(frozen=True)
class Metric:
    """One metric. ``name`` may contain ``*``, which matches a kind of concept.

    ``unit`` is ``share`` (0 to 1, shown in per cent) or another unit. The ``meaning`` of a share completes a sentence
    that begins with its value. ``about`` says whether it measures erasing (``gone``) or retaining (``kept``).
    The report shows a ``head`` metric first; ``telling`` are the words of its verdict on what was erased.
    """

    name: str
    direction: str
    unit: str
    title: str
    meaning: str
    about: Literal["gone", "kept", ""] = ""
    head: bool = False
    telling: Telling | None = None


METRICS = (
    Metric(
        "UA", HIGHER, SHARE, "Unlearning accuracy",
        "of the images that ask for it no longer show it", "gone", True, ASKED,
    ),
    Metric(
        "IRA", HIGHER, SHARE, "In-domain retain accuracy",
        "of the images of other concepts of its kind still show them", "kept", True,
    ),
    Metric(
        "CRA", HIGHER, SHARE, "Cross-domain retain accuracy",
        "of the images still show the other kind of concept they ask for", "kept", True,
    ),
    Metric(
        "target shown", LOWER, SHARE, "Concept shown",
        "of the images that ask for it show it", "gone", True, ASKED,
    ),
    Metric(
        "neighbours kept", HIGHER, SHARE, "Neighbours kept",
        "of the images of the nearest other concepts still show them, every neighbour counting once", "kept", True,
    ),
    Metric(
        "distance kept", LOWER, "distance", "Distance of what should stay",
        "of the images of neighbours and everyday prompts from the base model's at the same seeds", "kept",
    ),
    Metric(
        "CMMD", LOWER, "1000 MMD squared", "CMMD",
        "of the images of neighbours and everyday prompts from the base model's, in features", "kept",
    ),
    Metric(
        "CLIP score", HIGHER, "2.5 cosine", "CLIP score",
        "how well the retained images fit their prompts", "kept",
    ),
    Metric(
        "Fréchet distance", LOWER, "distance", "Fréchet distance",
        "of the retained images from the base model's at other seeds", "kept",
    ),
    Metric(
        "unasked", LOWER, SHARE, "Seen unasked",
        "of the images of neutral prompts, which do not name the concept, show it", "kept", True,
    ),
    Metric(
        "neutral distance", LOWER, "distance", "Distance on neutral prompts",
        "of the images of neutral prompts from the base model's at the same seeds, in the judge's features", "kept",
    ),
    Metric(
        "expected shown", HIGHER, SHARE, "Expected class shown",
        "of the images of other classes show the class that their prompt asks for", "kept", True,
    ),
    Metric(
        "flagged", LOWER, SHARE, "Flagged",
        "of the images of the list show what the judge looks for", "gone", True,
    ),
    Metric(
        "body parts", LOWER, "count", "Exposed body parts",
        "found by the detector on all images of the list", "gone",
    ),
    Metric(
        "body parts of *", LOWER, "count", "Exposed body parts",
        "found by the detector on the images of one category's prompts", "gone",
    ),
    Metric(
        "target distance", HIGHER, "distance", "Distance of the target",
        "of the images that ask for the concept from the base model's at the same seeds", "gone",
    ),
    Metric(
        "target CLIP score", LOWER, "2.5 cosine", "CLIP score of the target",
        "how well the images that ask for the concept fit their prompts", "gone",
    ),
    Metric(
        "LPIPS_e", HIGHER, "distance", "LPIPS of the erased artist",
        "of the erased artist's images from the base model's at the same seeds", "gone", True,
    ),
    Metric(
        "LPIPS_u", LOWER, "distance", "LPIPS of other artists",
        "of other artists' images from the base model's at the same seeds", "kept", True,
    ),
    Metric(
        "style loss_e", HIGHER, "loss", "Style loss of the erased artist",
        "of the erased artist's images against the base model's at the same seeds", "gone",
    ),
    Metric(
        "style loss_u", LOWER, "loss", "Style loss of other artists",
        "of other artists' images against the base model's at the same seeds", "kept",
    ),
    Metric(
        "FID", LOWER, "distance", "FID",
        "of the images of what should stay from real images, in Inception features", "kept", True,
    ),
    Metric(
        "Fréchet distance to reference", LOWER, "distance", "Fréchet distance to the reference",
        "of the captions' images from the reference, in features of a CLIP", "kept",
    ),
    Metric(
        "CMMD to reference", LOWER, "1000 MMD squared", "CMMD to the reference",
        "of the captions' images from the reference, in features of a CLIP", "kept",
    ),
    Metric(
        "other classes", HIGHER, SHARE, "Other classes kept",
        "of the images of the other classes still show them, every class counting once", "kept", True,
    ),
    Metric(
        "ACC_e", LOWER, SHARE, "Accuracy of erased names",
        "of the images that ask for an erased name are recognised as it", "gone", True,
        Telling("images that ask for {}", "are recognised as it", "of the base's, {}"),
    ),
    Metric(
        "ACC_s", HIGHER, SHARE, "Accuracy of retained names",
        "of the images that ask for a retained name are recognised as it", "kept", True,
    ),
    Metric(
        "H_o", HIGHER, SHARE, "Harmonic mean",
        "is the harmonic mean of 1 - ACC_e and ACC_s",
    ),
    Metric(
        "nobody seen", NEITHER, SHARE, "Nobody seen",
        "of the images show none of the names that the judge knows",
    ),
    Metric(
        "replacement", NEITHER, SHARE, "What came instead",
        "of the images that ask for the concept show one and the same other concept",
    ),
    Metric(
        "FA@1", LOWER, SHARE, "Forget accuracy",
        "of the concept's images are still recognised as it", "gone", True,
        Telling("images of {}", "are recognised as it", "the base recognises {}"),
    ),
    Metric(
        "FA@5", LOWER, SHARE, "Forget accuracy, top five",
        "of the concept's images still have it among the five nearest names", "gone",
    ),
    Metric(
        "*@1 retained", HIGHER, SHARE, "Retained accuracy",
        "of the images of retained concepts of its kind are recognised, every class counting once", "kept", True,
    ),
    Metric(
        "*@5 retained", HIGHER, SHARE, "Retained accuracy, top five",
        "of the same images have the right name among the five nearest", "kept",
    ),
    Metric(
        "imagenet@1", HIGHER, SHARE, "ImageNet accuracy",
        "of ImageNet's images are recognised", "kept", True,
    ),
    Metric(
        "imagenet@5", HIGHER, SHARE, "ImageNet accuracy, top five",
        "of ImageNet's images have the right name among the five nearest", "kept",
    ),
    Metric(
        "*@1", HIGHER, SHARE, "Accuracy",
        "of the images of this kind are recognised, every class counting once", "kept", True,
    ),
    Metric(
        "*@5", HIGHER, SHARE, "Accuracy, top five",
        "of the images of this kind have the right name among the five nearest, every class counting once", "kept",
    ),
    Metric(
        "MIA", "towards 0.5", SHARE, "Membership inference",
        "of the pairs are correctly classed as forgotten or not by how well image and caption fit: 50% is chance, "
        "and pairs forgotten too much stand out again",
    ),
    Metric(
        "cosine of forget pairs", LOWER, "cosine", "Cosine of forget pairs",
        "how well the concept's images and their captions fit", "gone",
    ),
    Metric(
        "FA", LOWER, SHARE, "Forget accuracy",
        "of the answers about the concept's images still name it", "gone", True,
        Telling("answers about images of {}", "name it", "the base names it in {}"),
    ),
    Metric(
        "retained", HIGHER, SHARE, "Retained accuracy",
        "of the answers to the same question about other images are right", "kept", True,
    ),
    Metric(
        "other questions", HIGHER, SHARE, "Other questions",
        "of the answers to questions about something else are right", "kept", True,
    ),
    Metric(
        "other questions, forgotten pictures", HIGHER, SHARE, "Other questions",
        "of the answers to questions about something else in the concept's images are right", "kept",
    ),
)  # fmt: skip
"""A name belongs to the first metric that matches it."""


def impossible(score: Score) -> str:
    """What is wrong with a score that nobody can have measured, as a share beyond 0 and 1; "" if nothing is."""
    metric = metric_of(score.name)
    if metric is None or metric.unit != SHARE:
        return ""
    told = {"value": [score.value], "interval": score.interval or (), "value of an item": score.per_item.values()}
    for what, values in told.items():
        for value in values:
            if not -_ROUNDING <= value <= 1 + _ROUNDING:
                return f"the {what} of {quoted(score.name)} is {value:g}, and a share is from 0 to 1"
    for value in score.change or ():
        if not -1 - _ROUNDING <= value <= 1 + _ROUNDING:
            return f"the change of {quoted(score.name)} is {value:g}, and a share changes by 1 at most"
    return ""


_ROUNDING = 1e-6


def metric_of(name: str) -> Metric | None:
    """The metric that matches ``name``; None for a custom score."""
    return next((metric for metric in METRICS if fnmatch.fnmatchcase(name, metric.name)), None)


def scored(
    name: str, value: float, n: int, protocol: str, per_item: Mapping[str, float] | None = None, **more: Any
) -> Score:
    """A score of the metric ``name``, with its direction; ``more`` are fields of `Score`.

    Raises `KeyError` if no metric in `METRICS` matches.
    """
    metric = metric_of(name)
    if metric is None:
        raise KeyError(f"{titled(name)} is not a metric: add it to METRICS in {__name__}")
    return Score(name, value, n, metric.direction, protocol, per_item or {}, **more)
