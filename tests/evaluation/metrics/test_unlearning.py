"""UA, IRA, CRA against the definitions, spelled out slowly, and on models whose scores are known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mu.core.errors import DataError
from mu.core.intervals import wilson
from mu.core.scores import Score
from mu.evaluation.metrics.unlearning import Prediction, unlearning_scores

STYLES, OBJECTS, SEEDS = ("neon", "photo", "sketch"), ("star", "fish"), range(2)
PERFECT = [Prediction(s, o, s, o) for s in STYLES for o in OBJECTS for _ in SEEDS]


def values(rows: list[Prediction], erased: str = "neon", kind: str = "style", **more) -> tuple[float, ...]:
    return tuple(score.value for score in unlearning_scores(rows, erased, kind, protocol="canvas/1", **more))  # type: ignore[arg-type]


def test_an_untouched_model_forgets_nothing_and_keeps_all():
    assert values(PERFECT) == values(PERFECT, "star", "object") == (0, 1, 1)


def test_a_model_that_forgets_exactly_the_request_scores_one_three_times():
    assert values([replace(r, style_seen="photo") if r.style == "neon" else r for r in PERFECT]) == (1, 1, 1)
    forgets_stars = [replace(r, object_seen="fish") if r.object == "star" else r for r in PERFECT]
    assert values(forgets_stars, "star", "object") == (1, 1, 1)


def test_a_destroyed_model_forgets_too_and_the_other_two_scores_tell():
    assert values([replace(r, style_seen="?", object_seen="?") for r in PERFECT]) == (1, 0, 0)
    always = [replace(r, style_seen="photo", object_seen="star") for r in PERFECT]
    assert values(always) == (1, 0.5, 0.5)


@pytest.mark.parametrize("include_erased", [True, False])
def test_the_definitions_slowly(include_erased: bool):
    """Cells of unequal size, random predictions: the means are over concepts, not over images."""
    draw = random.Random(0)
    rows = [
        Prediction(s, o, draw.choice(STYLES), draw.choice(OBJECTS))
        for s in STYLES
        for o in OBJECTS
        for _ in range(draw.randint(1, 9))
    ]

    def style_accuracy(style: str) -> float:
        mine = [r for r in rows if r.style == style]
        return sum(r.style_seen == style for r in mine) / len(mine)

    def object_accuracy(name: str) -> float:
        mine = [r for r in rows if r.object == name and (include_erased or r.style != "neon")]
        return sum(r.object_seen == name for r in mine) / len(mine)

    ua = 1 - style_accuracy("neon")
    ira = (style_accuracy("photo") + style_accuracy("sketch")) / 2
    cra = (object_accuracy("star") + object_accuracy("fish")) / 2
    assert values(rows, include_erased=include_erased) == pytest.approx((ua, ira, cra))
    kept = [r for r in rows if r.style != "neon"]
    assert ira != pytest.approx(sum(r.style == r.style_seen for r in kept) / len(kept)), "the control: pooling differs"


def test_style_and_object_requests_mirror_each_other():
    draw = random.Random(1)
    rows = [replace(r, style_seen=draw.choice(STYLES), object_seen=draw.choice(OBJECTS)) for r in PERFECT]
    turned = [Prediction(r.object, r.style, r.object_seen, r.style_seen) for r in rows]
    assert values(rows, "fish", "object") == values(turned, "fish", "style")


def test_images_of_the_erased_concept_count_for_cra_unless_switched_off():
    """They lose their object here. The official script counts them; without them it is another protocol."""
    rows = [replace(r, style_seen="?", object_seen="?") if r.style == "neon" else r for r in PERFECT]
    official = unlearning_scores(rows, "neon", "style", protocol="canvas/1").cra
    retained = unlearning_scores(rows, "neon", "style", protocol="canvas/1", include_erased=False).cra
    assert (official.value, official.n) == (pytest.approx(2 / 3), 12)
    assert (retained.value, retained.n) == (1, 8)
    assert official.protocol == "canvas/1" != retained.protocol


def test_names_left_out_are_not_averaged_over_but_their_images_count_for_the_other_kind():
    rows = [replace(r, style_seen="?", object_seen="?") if r.style == "photo" else r for r in PERFECT]
    assert values(rows) == (0, 0.5, pytest.approx(2 / 3))
    assert values(rows, left_out=("photo",)) == (0, 1, pytest.approx(2 / 3))
    assert values(rows, "star", "object") == (pytest.approx(1 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert values(rows, "star", "object", left_out=("photo",)) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 1)


def test_scores_say_what_they_are():
    ua, ira, cra = unlearning_scores(PERFECT, "neon", "style", protocol="canvas/1")
    ends = [wilson(0, 4), wilson(8, 8), wilson(12, 12)]
    assert ua == Score("UA", 0.0, 4, "higher", "canvas/1", {"neon": 0.0}, ends[0])
    assert ira == Score("IRA", 1.0, 8, "higher", "canvas/1", {"photo": 1.0, "sketch": 1.0}, ends[1])
    assert cra == Score("CRA", 1.0, 12, "higher", "canvas/1", {"star": 1.0, "fish": 1.0}, ends[2])


@pytest.mark.parametrize(
    ("rows", "erased", "kind", "more", "says"),
    [
        (PERFECT, "Neon", "style", {}, "'Neon'.*'neon'"),
        (PERFECT, "neon", "object", {}, "'neon'.*star, fish"),
        ([], "neon", "style", {}, "'neon'"),
        (PERFECT[:4], "neon", "style", {}, "IRA"),
        (PERFECT, "star", "object", {"left_out": STYLES}, "CRA"),
        (PERFECT, "neon", "person", {}, "'person'"),
    ],
)
def test_requests_that_cannot_be_scored_are_refused(rows: list, erased: str, kind: str, more: dict, says: str):
    with pytest.raises(DataError, match=says):
        values(rows, erased, kind, **more)


def test_scores_of_different_definitions_have_different_protocols():
    official = unlearning_scores(PERFECT, "neon", "style", protocol="canvas/1").cra
    retained = unlearning_scores(PERFECT, "neon", "style", protocol="canvas/1", include_erased=False).cra
    assert official.protocol == "canvas/1" != retained.protocol and retained.protocol.startswith("canvas/1")
