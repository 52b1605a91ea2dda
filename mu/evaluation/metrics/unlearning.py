"""UA, IRA and CRA: the scores of UnlearnCanvas (arXiv 2402.11846) for erasing one style or object."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mu.core.errors import DataError, nearest, quoted
from mu.core.metrics import scored
from mu.core.scores import Score
from mu.evaluation.metrics.intervals import mean_of_shares, paired_means

Kind = Literal["style", "object"]
Accuracies = dict[str, list[bool]]
"""For each concept that was asked for, whether the classifier sees it, image by image."""


@dataclass(frozen=True)
class Prediction:
    """One generated image: the style and object in its prompt, and those that the classifiers saw."""

    style: str
    object: str
    style_seen: str
    object_seen: str


class Unlearning(NamedTuple):
    """The three scores of one erased concept, each in 0..1, higher is better."""

    ua: Score
    ira: Score
    cra: Score


class Hits(NamedTuple):
    """What enters the three scores of one erased concept: its own images, and those of what is retained."""

    gone: Accuracies
    within: Accuracies
    across: Accuracies


def unlearning_scores(
    predictions: Iterable[Prediction],
    erased: str,
    kind: Kind,
    *,
    protocol: str,
    include_erased: bool = True,
    left_out: Collection[str] = (),
) -> Unlearning:
    """UA, IRA and CRA of erasing ``erased``, from the images of every style x object.

    With *accuracy of x* = share of the images prompted with x in which the classifier of x's kind sees x:

    - UA = 1 - accuracy of ``erased``.
    - IRA (in-domain) = mean, over the other concepts of the same kind, of their accuracy.
    - CRA (cross-domain) = mean, over the concepts of the *other* kind, of their accuracy, on **all** images. These
      include images prompted with the erased concept, as in the authors' script; whether their published table does is
      not known. ``include_erased=False`` uses only the other images for CRA, and the score's protocol states it.

    The means are over concepts, so that a concept with fewer images weighs the same. IRA and CRA skip the names in
    ``left_out``, but their images still count for the other kind. (The authors leave out the photos' ``Seed_Images``,
    which have no style to retain.) ``per_item`` gives each accuracy (for UA: 1 - accuracy), ``n`` the images used.
    Published values are the percentages. Raises `DataError` if a name is unknown or no concept is left to retain.

    >>> rows = [("neon", "star", "photo", "star"), ("neon", "fish", "neon", "star")]
    >>> rows += [("photo", "star", "photo", "star"), ("photo", "fish", "neon", "fish")]
    >>> seen = [Prediction(*row) for row in rows]
    >>> [score.value for score in unlearning_scores(seen, "neon", "style", protocol="canvas/1")]
    [0.5, 0.5, 0.75]
    """
    hits = unlearning_hits(predictions, erased, kind, include_erased=include_erased, left_out=left_out)
    cross_protocol = protocol if include_erased else f"{protocol}, CRA on retained only"
    return scores_of(hits, protocol, cross_protocol)


def unlearning_hits(
    predictions: Iterable[Prediction],
    erased: str,
    kind: Kind,
    *,
    include_erased: bool = True,
    left_out: Collection[str] = (),
) -> Hits:
    """The images behind `unlearning_scores`, whose arguments and errors are the same.

    >>> seen = [Prediction("neon", "star", "photo", "star"), Prediction("photo", "star", "photo", "fish")]
    >>> unlearning_hits(seen, "neon", "style")
    Hits(gone={'neon': [False]}, within={'photo': [True]}, across={'star': [True, False]})
    """
    if kind not in ("style", "object"):
        raise DataError(f"kind must be style or object, not {quoted(kind)}")
    rows, other = list(predictions), _other(kind)
    kept = [row for row in rows if include_erased or getattr(row, kind) != erased]
    return divided(hits_by(rows, kind), hits_by(kept, other), erased, kind, left_out)


def divided(own: Accuracies, across: Accuracies, erased: str, kind: Kind, left_out: Collection[str] = ()) -> Hits:
    """``own`` accuracies divided in those of ``erased`` and of the others; nothing of ``left_out`` is retained.

    Raises `DataError` if ``own`` has no ``erased``.

    >>> divided({"neon": [False], "photo": [True]}, {"star": [True]}, "neon", "style", left_out=["photo"])
    Hits(gone={'neon': [False]}, within={}, across={'star': [True]})
    """
    if erased not in own:
        raise DataError(f"no image was prompted with the {kind} {quoted(erased)}.{nearest(erased, own)}")
    within = {name: hits for name, hits in own.items() if name not in (erased, *left_out)}
    return Hits({erased: own[erased]}, within, {name: hits for name, hits in across.items() if name not in left_out})


def hits_by(predictions: Iterable[Prediction], kind: Kind) -> Accuracies:
    """Whether each image shows the concept of this kind in its prompt; concepts in order of first appearance.

    >>> hits_by([Prediction("neon", "star", "photo", "star"), Prediction("neon", "fish", "neon", "star")], "style")
    {'neon': [False, True]}
    """
    hits: Accuracies = {}
    for row in predictions:
        asked = getattr(row, kind)
        hits.setdefault(asked, []).append(asked == getattr(row, f"{kind}_seen"))
    return hits


def scores_of(hits: Hits, protocol: str, cross_protocol: str = "", *, before: Hits | None = None) -> Unlearning:
    """UA, IRA and CRA of ``hits`` with their intervals; ``cross_protocol`` is CRA's if it is another than ``protocol``.

    With the base's hits of the same images in the same order, ``before``, also the intervals of the change.

    >>> hits = Hits({"neon": [False]}, {"photo": [True, False], "sketch": [True]}, {"star": [True]})
    >>> [score.value for score in scores_of(hits, "canvas/1")]
    [1.0, 0.75, 1.0]
    """
    then = before or Hits({}, {}, {})
    return Unlearning(
        _mean("UA", _missed(hits.gone), _missed(then.gone), protocol),
        _mean("IRA", hits.within, then.within, protocol),
        _mean("CRA", hits.across, then.across, cross_protocol or protocol),
    )


def _missed(accuracies: Accuracies) -> Accuracies:
    return {concept: [not hit for hit in hits] for concept, hits in accuracies.items()}


def _other(kind: Kind) -> Kind:
    return "object" if kind == "style" else "style"


def _mean(name: str, accuracies: Accuracies, before: Accuracies, protocol: str) -> Score:
    if not accuracies:
        raise DataError(f"{name} needs images of at least one retained concept")
    groups = [*accuracies.values()]
    values = {concept: sum(hits) / len(hits) for concept, hits in accuracies.items()}
    change = paired_means([before[concept] for concept in accuracies], groups) if before else None
    return scored(
        name, sum(values.values()) / len(values), sum(map(len, groups)), protocol, values,
        interval=mean_of_shares(groups), change=change,
    )  # fmt: skip
