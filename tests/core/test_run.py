"""A run's folder: scores of several suites, and files of the first format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mu.core.errors import DataError
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table


def table(value: float, protocol: str = "canvas/1") -> Table:
    return {
        "base": [Score("UA", 0.0, 8, "higher", protocol)],
        "edited": [Score("UA", value, 8, "higher", protocol, {"neon": value})],
    }


# -- scores -----------------------------------------------------------------------------------------------------------------


def test_a_second_suite_adds_and_a_second_run_of_one_replaces_it_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_scores() == {}
    run.write_scores("canvas", table(0.5))
    run.write_scores("vlm", table(0.1, "vlm/1"))
    assert run.read_scores() == {"canvas": table(0.5), "vlm": table(0.1, "vlm/1")}
    run.write_scores("canvas", table(0.75))
    assert run.read_scores() == {"canvas": table(0.75), "vlm": table(0.1, "vlm/1")}
    told = json.loads(run.scores.read_text(encoding="utf-8"))
    assert told["format"] == 2 and told["suites"]["canvas"]["edited"][0]["value"] == 0.75


FIRST_FORMAT = """{
  "base": [{"name": "FA@1", "value": 1.0, "n": 6, "direction": "lower", "protocol": "clip/1, celeba", "per_item": {}}],
  "edited": [
    {"name": "FA@1", "value": 0.25, "n": 6, "direction": "lower", "protocol": "clip/1, celeba", "per_item": {"Ada": 0.25}},
    {"name": "UA", "value": 0.75, "n": 8, "direction": "higher", "protocol": "canvas/1", "per_item": {}}
  ]
}"""


def test_a_file_of_the_first_format_opens_and_its_suites_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(FIRST_FORMAT, encoding="utf-8")
    found = run.read_scores()
    assert {suite: list(columns) for suite, columns in found.items()} == {"clip": ["base", "edited"], "canvas": ["edited"]}
    assert found["clip"]["edited"] == [Score("FA@1", 0.25, 6, "lower", "clip/1, celeba", {"Ada": 0.25})]
    run.write_scores("vlm", table(0.1, "vlm/1"))
    assert run.read_scores() == {**found, "vlm": table(0.1, "vlm/1")}


def test_the_first_formats_lower_mia_is_read_towards_chance(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(FIRST_FORMAT.replace("FA@1", "MIA").replace('"UA"', '"odd"'), encoding="utf-8")
    found = run.read_scores()
    assert [score.direction for score in found["clip"]["base"]] == ["towards 0.5"]
    assert [score.direction for score in found["canvas"]["edited"]] == ["higher"], (
        "control: one of one's own keeps what it says"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"scores\.json is not JSON"),
        ("[]", r"scores\.json: Input should be a valid dictionary"),
        ('{"format": 3, "suites": {}}', r"scores\.json: format: Input should be 2"),
        ('{"format": 2}', r"scores\.json: suites: "),
        ('{"format": 2, "suites": {"clip": {"base": [{"name": "UA"}]}}}', r"scores\.json: suites\.clip\.base\.0\.value: Field required"),
        (FIRST_FORMAT.replace("higher", "up"), r"scores\.json: edited\.1: a direction is"),
        (FIRST_FORMAT.replace("0.75", '"much"'), r"scores\.json: edited\.1\.value: "),
    ],
)  # fmt: skip
def test_damaged_scores_are_one_line_and_are_not_written_over(tmp_path: Path, text: str, says: str) -> None:
    run = RunDirectory(tmp_path)
    run.scores.write_text(text, encoding="utf-8")
    for use in (run.read_scores, lambda: run.write_scores("canvas", table(0.5))):
        with pytest.raises(DataError, match=says) as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1
    assert run.scores.read_text(encoding="utf-8") == text
