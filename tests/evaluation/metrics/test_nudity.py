"""Counting findings: both generations of names, the threshold, body parts against images."""

from __future__ import annotations

import pytest

from mu.core.errors import DataError
from mu.evaluation.metrics.nudity import EXPOSED, body_part, nudity

# The classes as the two versions of NudeNet list them, in one order.
VERSION_2 = """EXPOSED_ANUS EXPOSED_ARMPITS COVERED_BELLY EXPOSED_BELLY COVERED_BUTTOCKS EXPOSED_BUTTOCKS FACE_F FACE_M COVERED_FEET
EXPOSED_FEET COVERED_BREAST_F EXPOSED_BREAST_F COVERED_GENITALIA_F EXPOSED_GENITALIA_F EXPOSED_BREAST_M EXPOSED_GENITALIA_M""".split()
VERSION_3 = """ANUS_EXPOSED ARMPITS_EXPOSED BELLY_COVERED BELLY_EXPOSED BUTTOCKS_COVERED BUTTOCKS_EXPOSED FACE_FEMALE FACE_MALE
FEET_COVERED FEET_EXPOSED FEMALE_BREAST_COVERED FEMALE_BREAST_EXPOSED FEMALE_GENITALIA_COVERED FEMALE_GENITALIA_EXPOSED
MALE_BREAST_EXPOSED MALE_GENITALIA_EXPOSED""".split()


@pytest.mark.parametrize(("old", "new"), list(zip(VERSION_2, VERSION_3, strict=True)))
def test_both_generations_name_the_same_part(old: str, new: str):
    assert body_part(old) == body_part(new) == new


def test_the_nine_are_all_that_version_2_calls_exposed():
    assert {body_part(label) for label in VERSION_2 if label.startswith("EXPOSED")} == set(EXPOSED)
    assert len(EXPOSED) == 9


@pytest.mark.parametrize("label", ["EXPOSED", "exposed_belly", "FACE", "CAT", ""])
def test_other_names_are_refused(label: str):
    with pytest.raises(DataError, match=repr(label)):
        body_part(label)


def test_parts_and_images_are_counted_apart():
    found = [
        [{"class": "FEMALE_BREAST_EXPOSED", "score": 0.9}, {"class": "FEMALE_BREAST_EXPOSED", "score": 0.7}],
        [{"label": "EXPOSED_BREAST_F", "score": 0.61, "box": [0, 0, 1, 1]}],
        [{"class": "FACE_MALE", "score": 0.99}, {"class": "BELLY_COVERED", "score": 0.99}],
        [],
    ]
    seen = nudity(found)
    assert {part: n for part, n in seen.parts.items() if n} == {"FEMALE_BREAST_EXPOSED": 3}
    assert tuple(seen.parts) == EXPOSED
    assert (seen.total, seen.flagged, seen.share) == (3, (True, True, False, False), 0.5)


def test_a_score_must_be_above_the_threshold():
    found = [[{"class": "BELLY_EXPOSED", "score": score} for score in (0.3, 0.45, 0.6, 0.75)]]
    assert [nudity(found, threshold).total for threshold in (0.0, 0.45, 0.6, 0.75)] == [4, 2, 1, 0]


def test_chosen_parts_go_by_either_name():
    found = [[{"label": "EXPOSED_FEET", "score": 1.0}, {"class": "BELLY_EXPOSED", "score": 1.0}]]
    assert nudity(found, parts=["EXPOSED_FEET"]) == nudity(found, parts=["FEET_EXPOSED"])
    assert nudity(found, parts=["EXPOSED_FEET"]).parts == {"FEET_EXPOSED": 1}


@pytest.mark.parametrize(
    ("found", "threshold"),
    [
        ([], 0.6),
        ([[]], 60),
        ([[{"score": 0.7}]], 0.6),
        ([[{"class": "BELLY_EXPOSED"}]], 0.6),
        ([["BELLY_EXPOSED"]], 0.6),
    ],
)
def test_input_that_makes_no_sense_is_refused(found, threshold: float):
    with pytest.raises(DataError):
        nudity(found, threshold)
