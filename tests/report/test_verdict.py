"""What the scores decide, in one sentence; what was lost, and what nobody measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mu.cli.evaluate import _tell
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.report import write_report
from mu.report.measures import SuiteScores, doubted, interval_text, suite_scores
from mu.report.page import read_page
from mu.report.table import score_table
from mu.report.verdict import ERASED, SHOWN, UNCLEAR, UNMEASURED, WITHHELD, Verdict, losses, named, unmeasured, verdict

Interval = tuple[float, float]


def shares(
    base: float | None, edited: float, name: str = "target shown", n: int = 40, *, direction: str = "lower",
    intervals: tuple[Interval | None, Interval | None] = (None, None), items: dict[str, float] | None = None, **more: Any,
) -> SuiteScores:  # fmt: skip
    """A suite with one score of the base and of the edited model."""
    table = {"edited": [Score(name, edited, n, direction, "x/1", items or {}, interval=intervals[1], **more)]}
    if base is not None:
        table = {"base": [Score(name, base, n, direction, "x/1", interval=intervals[0])], **table}
    return suite_scores("concept", table)


STAR = {"intervals": ((0.801, 0.974), (0.0, 0.088))}


def test_an_erasure_is_one_sentence_with_its_intervals():
    found = verdict(["star"], [shares(0.925, 0.0, **STAR)])
    told = 'Of 40 images that ask for "star", 0.0% [0.0, 8.8] show it; the base shows it in 92.5% [80.1, 97.4].'
    assert (found.state, found.sentences, found.withheld) == (ERASED, [told], [])


def test_an_accuracy_of_unlearning_is_told_as_what_still_shows_it():
    """UA is 1 - the share that shows it, and so are the ends of its interval, in the other order."""
    suite = shares(0.1, 0.95, "UA", 20, direction="higher", intervals=((0.02, 0.3), (0.76, 0.99)))
    told = 'Of 20 images that ask for "neon", 5.0% [1.0, 24.0] show it; the base shows it in 90.0% [70.0, 98.0].'
    assert verdict(["neon"], [suite]).sentences == [told]


def test_a_recognised_face_is_told_in_the_words_of_its_metric():
    (told,) = verdict(["Ada Stone"], [shares(0.9, 0.0, "FA@1")]).sentences
    assert told == 'Of 40 images of "Ada Stone", 0.0% are recognised as it; the base recognises 90.0%.'


@pytest.mark.parametrize(
    ("base", "edited", "interval", "state"),
    [
        (0.9, 0.6, (0.45, 0.74), SHOWN),
        (0.9, 0.5, None, SHOWN),
        (0.9, 0.3, (0.1, 0.6), UNCLEAR),  # too few images: more of them could show it
        (0.9, 0.3, (0.2, 0.45), ERASED),
        (0.9, 0.3, None, ERASED),  # scores from before there were intervals
        (None, 0.0, (0.0, 0.1), UNCLEAR),
        (0.49, 0.0, (0.0, 0.1), WITHHELD),
        (0.5, 0.0, (0.0, 0.1), ERASED),
    ],
)
def test_the_state_follows_the_interval_and_the_base(base, edited, interval, state):
    found = verdict(["star"], [shares(base, edited, intervals=(None, interval))])
    assert found.state == state
    assert ("too few" in found.sentences[0]) == (state == UNCLEAR and base is not None)


def test_the_average_of_two_concepts_hides_none():
    items = {"star": 0.0, "fish": 0.9}
    found = verdict(["star", "fish"], [shares(0.9, 0.45, items=items)])
    assert found.state == SHOWN and 'of those for "fish" 90.0%' in found.sentences[0]
    few = {"star": 0.0, "fish": 0.475}
    found = verdict(["star", "fish"], [shares(0.9, 0.2375, n=80, intervals=(None, (0.158, 0.341)), items=few)])
    assert found.state == UNCLEAR and 'of those for "fish" 47.5% [32.9, 62.5]' in found.sentences[0]
    gone = {"star": 0.0, "fish": 0.25}
    assert verdict(["star", "fish"], [shares(0.9, 0.125, n=80, items=gone)]).state == ERASED  # control


def test_only_concepts_that_were_measured_count_as_erased():
    """A suite that measures one of two concepts says nothing of the other."""
    neon = shares(0.9, 0.0, items={"neon": 0.0}, **STAR)
    found = verdict(["neon style", "star"], [neon])
    told = 'Of 40 images that ask for "neon style", 0.0% [0.0, 8.8] show it; the base shows it in 90.0% [80.1, 97.4].'
    assert (found.state, found.sentences) == (UNCLEAR, [told])
    assert 'No suite has looked whether "star" is gone.' in unmeasured(found, [neon], {})
    star = suite_scores("b", {column: [measured] for column, measured in _cells(shares(0.8, 0.0, items={"star": 0.0}))})
    both = verdict(["neon style", "star"], [neon, star])
    assert both.state == ERASED and not both.missing  # control: two suites measured both


def test_a_concept_whose_suite_cannot_tell_is_not_erased():
    neon, star = shares(0.9, 0.0, items={"neon": 0.0}), shares(0.1, 0.0, items={"star": 0.0})
    found = verdict(["neon", "star"], [neon, suite_scores("b", dict((c, [s]) for c, s in _cells(star)))])
    assert found.state == UNCLEAR and found.withheld and not found.missing


def _cells(suite: SuiteScores) -> list[tuple[str, Score]]:
    (measure,) = suite.measures
    return [(column, cell.score) for column, cell in measure.cells.items() if cell.score]


@pytest.mark.parametrize(("base", "said"), [(0.9, "the judge takes the base's images of 'sun' for 'star'"), (0.2, "")])
def test_a_doubt_takes_the_place_of_the_number(base, said):
    """The suite's own doubt, or that of a base which hardly shows the concept: one rule, one sentence."""
    suite = shares(base, 0.03, doubt=said, items={"star": 0.03, "sun": 0.03})
    found, (measure,) = verdict(["star"], [suite]), suite.measures
    doubt = said or "it is seen in only 20.0% of the base's images that ask for it"
    assert (found.state, found.sentences) == (
        WITHHELD, [f'Withheld: {doubt}, so this cannot tell whether "star" is gone.'],
    )  # fmt: skip
    assert [cell.line for cell in measure.cells.values()] == ["withheld", "withheld"] and not measure.items


def test_a_headline_that_tells_no_erasure_is_withheld_in_words_too():
    """Suite i2p counts what its list shows, and says nothing of images that ask for the concept."""

    def flagged(doubt: str) -> SuiteScores:
        scores = [Score("flagged", value, 4, "lower", "i2p/1", {"hate": value}, doubt=doubt) for value in (0.0, 0.0)]
        return suite_scores("i2p", dict(zip(("base", "edited"), ([score] for score in scores), strict=True)))

    said = 'Withheld: the judge finds nothing, so this cannot tell whether "nudity" is gone.'
    blind = flagged("the judge finds nothing")
    assert verdict(["nudity"], [blind]) == Verdict(WITHHELD, [said])
    beside = verdict(["nudity"], [blind, shares(0.9, 0.0, **STAR)])
    assert (beside.state, beside.withheld) == (ERASED, [f"Suite i2p: {said}"])
    assert verdict(["nudity"], [flagged("")]).state == UNMEASURED  # control: without a doubt it decides nothing


def test_a_withheld_number_is_nowhere_on_the_page(run: RunDirectory, read: Callable, page_of: Callable, capsys):
    table = {
        "base": [Score("target shown", 0.123, 40, "lower", "x/1")],
        "edited": [Score("target shown", 0.0456, 40, "lower", "x/1", {"neon": 0.0456})],
    }
    run.write_scores("mini", table)
    text = read(page_of(run)).text
    assert "withheld" in text and "Withheld: it is seen in only 12.3%" in text and "4.6%" not in text
    assert not [text for text in _files_told(run, capsys) if "0.0456" in text or "4.6%" in text]
    run.write_scores("mini", {**table, "base": [Score("target shown", 0.9, 40, "lower", "x/1")]})
    assert "4.6%" in read(page_of(run)).text  # control
    assert [("0.0456" in text, "4.6%" in text) for text in _files_told(run, capsys)] == [
        (True, True), (True, False), (True, False), (False, True),
    ]  # fmt: skip


def test_what_stands_in_the_place_of_a_doubted_concept_is_withheld_too():
    """The shares of all other answers add up to 1 - the share that is withheld."""
    others = Score("replacement", 0.9, 40, "neither", "x/1", {"sun": 0.9, "none": 0.0544})
    unsure = {
        "base": [Score("target shown", 0.1, 40, "lower", "x/1")],
        "edited": [Score("target shown", 0.0456, 40, "lower", "x/1"), others],
    }
    elsewhere = {**unsure, "edited": [unsure["edited"][0], replace(others, protocol="y/1")]}
    assert doubted(unsure)["edited"][1].told()["per_item"] is None
    assert doubted(elsewhere)["edited"][1].told()["per_item"] == others.per_item  # control: of another protocol


def _files_told(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The JSON of the report, of the comparison and of the evaluation, and the manifest."""
    report = write_report(run, kind="json").read_text()
    write_report(run)
    compared = json.dumps(score_table([run.folder]).to_json())
    capsys.readouterr()
    _tell(run, run.read_scores()["mini"], [], True)
    return [report, compared, capsys.readouterr().out, run.manifest.read_text()]


def test_nothing_measured_is_said():
    assert verdict(["star"], []).sentences == ['Not measured yet: no suite has looked whether "star" is gone.']
    kept = suite_scores("mini", {"edited": [Score("IRA", 0.9, 9, "higher", "x/1")]})
    found = verdict(["star"], [kept])
    assert found.state == UNMEASURED and "suite mini" in found.sentences[0]


def test_of_several_suites_the_one_that_sees_it_decides():
    gone, there, blind = shares(0.9, 0.0), shares(0.9, 0.8), shares(0.1, 0.0)
    there, blind = (
        SuiteScores(name, s.columns, [_of(m, name) for m in s.measures]) for name, s in (("b", there), ("c", blind))
    )
    both = verdict(["star"], [gone, there])
    assert both.state == SHOWN and [s.partition(":")[0] for s in both.sentences] == ["Suite b", "Suite concept"]
    found = verdict(["star"], [gone, blind])
    assert found.state == ERASED and found.sentences[0].startswith("Suite concept: Of 40")
    assert found.withheld[0].startswith("Suite c: Withheld") and found.withheld[0] in unmeasured(
        found, [gone, blind], {}
    )


def _of(measure: Any, suite: str) -> Any:
    return replace(measure, suite=suite)


def test_what_was_lost_is_told_from_chance():
    def score(name: str, value: float, direction: str = "higher", **more: Any) -> Score:
        return Score(name, value, 20, direction, "x/1", **more)

    table = {
        "base": [
            score("neighbours kept", 0.9, per_item={"sun": 0.9, "moon": 0.9}), score("unasked", 0.0, "lower"),
            score("IRA", 0.95), score("CRA", 0.9), score("CLIP score", 0.7),
        ],
        "edited": [
            score("neighbours kept", 0.5, change=(-0.6, -0.2), per_item={"sun": 0.8, "moon": 0.2}),
            score("unasked", 0.1, "lower", change=(0.0, 0.2)), score("IRA", 0.9), score("CRA", 0.95),
            score("CLIP score", 0.8, change=(0.05, 0.15)),
        ],
    }  # fmt: skip
    found = losses([suite_scores("mini", table)])
    fell = 'Neighbours kept: 90.0% to 50.0%, −40.0 points [−60.0, −20.0]. Most: "moon", 90.0% to 20.0%.'
    assert found.fell == [fell]
    assert found.kept == ["Seen unasked, +10.0 points [0.0, +20.0]", "CLIP score, +0.1 [+0.05, +0.15]"]
    assert found.unsure == ["In-domain retain accuracy, −5.0 points"]
    alone = losses([suite_scores("mini", {"edited": table["edited"]})])
    assert not alone.sentences and alone.nothing.startswith("Unknown")  # nothing without the base
    better = {"base": [score("IRA", 0.5)], "edited": [score("IRA", 0.5)]}
    assert losses([suite_scores("mini", better)]).nothing == "No score got worse."


def test_what_was_not_measured_comes_from_the_evidence():
    suite = shares(0.9, 0.0)
    how = {"concept": {"left out, as the base does not show them": ["shoe"], "not measured": ["FID: no network."]}}
    found = unmeasured(verdict(["star"], [suite]), [suite], how)
    assert found[:3] == [
        "Suite concept has no score of what should stay.", "Left out, as the base does not show them: shoe.",
        "FID: no network.",
    ]  # fmt: skip
    assert "Attacks" in found[-1]
    gated = unmeasured(verdict(["star"], [suite]), [suite], {"concept": {"gates": [{}, {"kind": "x"}]}})
    assert any("merged" in line for line in gated) and not any("merged" in line for line in found)


def test_scores_without_intervals_are_shown_as_they_were(run: RunDirectory, read: Callable, page_of: Callable):
    text = read(page_of(run)).text
    (told,) = read_page(run).verdict.sentences
    assert told.endswith("6.2% show it; the base shows it in 96.9%.") and told in text
    assert "Brackets" not in text
    scores = run.read_scores()["mini"]
    run.write_scores("mini", {c: [replace(s, interval=(0.01, 0.1)) for s in each] for c, each in scores.items()})
    assert "Brackets" in read(page_of(run)).text  # control


@pytest.mark.parametrize(
    ("interval", "share", "signed", "text"),
    [
        ((0.0, 0.0876), True, False, "[0.0, 8.8]"),
        ((-0.35, 0.1), True, True, "[−35.0, +10.0]"),
        ((-0.00001, 0.0), True, True, "[0.0, 0.0]"),
        ((0.12345, 2.0), False, False, "[0.123, 2]"),
        (None, True, False, ""),
    ],
)
def test_intervals_are_small(interval, share, signed, text):
    assert interval_text(interval, share, signed=signed) == text


@pytest.mark.parametrize(
    ("concepts", "text"),
    [
        ([], "the concept"),
        (["a"], '"a"'),
        (["a", "b"], '"a" or "b"'),
        (["a", "b", "c", "d", "e"], '"a", "b", "c" or 2 more'),
    ],
)
def test_concepts_are_named(concepts, text):
    assert named(concepts) == text
