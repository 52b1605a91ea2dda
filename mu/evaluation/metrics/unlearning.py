"""UA, IRA and CRA: the scores of UnlearnCanvas (arXiv 2402.11846) for erasing one style or object."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mu.core.errors import DataError, nearest, quoted
from mu.core.metrics import scored
from mu.core.scores import Score


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


def unlearning_scores(
    predictions: Iterable[Prediction],
    erased: str,
    kind: Literal["style", "object"],
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
    if kind not in ("style", "object"):
        raise DataError(f"kind must be style or object, not {quoted(kind)}")
    rows = list(predictions)
    own, other = (_STYLE, _OBJECT) if kind == "style" else (_OBJECT, _STYLE)
    within, across = (
        _accuracies(rows, own),
        _accuracies([r for r in rows if include_erased or own.asked(r) != erased], other),
    )
    if erased not in within:
        raise DataError(f"no image was prompted with the {kind} {quoted(erased)}.{nearest(erased, within)}")
    gone = within.pop(erased)
    ua = scored("UA", 1 - gone.value, gone.n, protocol, {erased: 1 - gone.value})
    cross_protocol = protocol if include_erased else f"{protocol}, CRA on retained only"
    return Unlearning(ua, _mean("IRA", within, left_out, protocol), _mean("CRA", across, left_out, cross_protocol))


class _Domain(NamedTuple):
    asked: Callable[[Prediction], str]
    seen: Callable[[Prediction], str]


class _Accuracy(NamedTuple):
    value: float
    n: int


_STYLE = _Domain(lambda row: row.style, lambda row: row.style_seen)
_OBJECT = _Domain(lambda row: row.object, lambda row: row.object_seen)


def _accuracies(rows: Sequence[Prediction], domain: _Domain) -> dict[str, _Accuracy]:
    """The accuracy of each prompted concept, in order of first appearance."""
    hits: dict[str, list[bool]] = {}
    for row in rows:
        hits.setdefault(domain.asked(row), []).append(domain.asked(row) == domain.seen(row))
    return {name: _Accuracy(sum(right) / len(right), len(right)) for name, right in hits.items()}


def _mean(name: str, accuracies: Mapping[str, _Accuracy], left_out: Collection[str], protocol: str) -> Score:
    kept = {concept: found for concept, found in accuracies.items() if concept not in left_out}
    if not kept:
        raise DataError(f"{name} needs images of at least one retained concept")
    values = {concept: found.value for concept, found in kept.items()}
    return scored(name, sum(values.values()) / len(values), sum(found.n for found in kept.values()), protocol, values)
