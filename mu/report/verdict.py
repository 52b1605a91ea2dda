"""What the scores decide: the sentences of the page's first screen, of the terminal and of the manifest.

A concept counts as erased if the judge sees it in most of the base's images that ask for it, and in fewer than half of
the edited model's: by the upper end of the 95 % interval, if there is one, and for every erased concept by itself.
A sentence names only the concepts that its suite measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mu.core.concept import says
from mu.core.intervals import wilson
from mu.core.scores import HIGHER, LOWER, Score
from mu.report.measures import Measure, SuiteScores, interval_text, shown, value_text

ERASED, SHOWN, UNCLEAR, WITHHELD, UNMEASURED = "erased", "shown", "unclear", "withheld", "not measured"
ORDER = (SHOWN, UNCLEAR, ERASED, WITHHELD)
"""The first of these that a suite finds is the verdict: one that still sees the concept outweighs one that does not."""
NAMED = 3
"""Concepts that a sentence names."""


@dataclass(frozen=True)
class Verdict:
    """``state`` is one of those above; ``sentences`` say it, one for each suite that can tell."""

    state: str
    sentences: list[str]
    withheld: list[str] = field(default_factory=list)
    """Sentences of suites that cannot tell, beside others that can."""
    missing: list[str] = field(default_factory=list)
    """Sentences on concepts that no suite looked for, beside others that one did. ``state`` is then never `ERASED`."""


def verdict(concepts: Sequence[str], suites: Sequence[SuiteScores]) -> Verdict:
    """Whether the ``concepts`` are gone: all of them, for `ERASED`."""
    name = named(concepts)
    if not any(suite.measures for suite in suites):
        return Verdict(UNMEASURED, [f"Not measured yet: no suite has looked whether {name} is gone."])
    judging = [measure for suite in suites for measure in suite.measures if measure.judges or measure.withheld]
    if not judging:
        told = " and ".join(suite.suite for suite in suites)
        return Verdict(UNMEASURED, [f"Not measured: no score of suite {told} says whether {name} is gone."])
    several = len({measure.suite for measure in judging}) > 1
    found: dict[str, list[str]] = {}
    looked_for: dict[str, set[str]] = {}
    for measure in judging:
        own, state = _looked_for(measure, concepts), _state(measure)
        sentence = _sentence(measure, named(own))
        found.setdefault(state, []).append(f"Suite {measure.suite}: {sentence}" if several else sentence)
        looked_for.setdefault(state, set()).update(own)
    state = next(state for state in ORDER if state in found)
    if state == ERASED and {*concepts} - looked_for[ERASED]:
        state = UNCLEAR
    unseen = [concept for concept in concepts if not any(concept in own for own in looked_for.values())]
    missing = [f"No suite has looked whether {named(unseen)} is gone."] if unseen else []
    withheld = found.pop(WITHHELD, [])
    if state == WITHHELD:
        return Verdict(state, withheld, missing=missing)
    return Verdict(state, [sentence for each in ORDER for sentence in found.get(each, [])], withheld, missing)


def _looked_for(measure: Measure, concepts: Sequence[str]) -> list[str]:
    """Those of ``concepts`` that the measure has a value of; all if it has none of any."""
    items = [item for item in _score(measure).per_item if item]
    own = [concept for concept in concepts if any(says(concept, item) or says(item, concept) for item in items)]
    return own or list(concepts)


def named(concepts: Sequence[str]) -> str:
    """The concepts for a sentence: "neon", "star" or 3 more; ``the concept`` without names."""
    quoted = [f'"{concept}"' for concept in concepts[:NAMED]]
    if len(concepts) > NAMED:
        quoted.append(f"{len(concepts) - NAMED} more")
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted) or "the concept"


def _state(measure: Measure) -> str:
    if measure.doubt:
        return WITHHELD
    each = _each(measure)
    if max(one.share for one in each) >= 0.5:
        return SHOWN
    return ERASED if measure.base and max(one.top for one in each) < 0.5 else UNCLEAR


def _sentence(measure: Measure, name: str) -> str:
    if measure.doubt:
        return f"Withheld: {measure.doubt}, so this cannot tell whether {name} is gone."
    score, words = _score(measure), measure.metric.telling
    assert words
    edited = _told(score)
    text = f"Of {score.n:,} {words.images.format(name)}, {edited} {words.show}"
    if doubtful := [one for one in _each(measure) if one.concept and one.top >= 0.5]:
        worst = max(doubtful, key=lambda one: one.share)
        text += f', of those for "{worst.concept}" {_with_interval(worst.share, worst.interval)}'
    if not (measure.base and measure.base.score):
        return f"{text}. The base was not measured, so this shows no erasure."
    text += f"; {words.base.format(_told(measure.base.score))}."
    return f"{text} These are too few images to tell." if _state(measure) == UNCLEAR else text


class Shown(NamedTuple):
    """The share of images that show the concept, and its 95 % interval: of all images ("" as ``concept``), or of one
    concept's."""

    concept: str
    share: float
    interval: tuple[float, float] | None

    @property
    def top(self) -> float:
        """The largest share that more images could show."""
        return max(self.share, *self.interval) if self.interval else self.share


def _each(measure: Measure) -> list[Shown]:
    """All images together, and each of several concepts: the images of a score ask for each equally often."""
    score = _score(measure)
    together = Shown("", shown(measure.direction, score.value), _shown(score))
    if len(score.per_item) < 2:
        return [together]
    n = max(score.n // len(score.per_item), 1)
    each = [(item, shown(measure.direction, value)) for item, value in score.per_item.items()]
    return [together, *(Shown(item, share, _of_share(share, n)) for item, share in each)]


def _of_share(share: float, n: int) -> tuple[float, float] | None:
    return wilson(round(share * n), n) if math.isfinite(share) and 0 <= share <= 1 else None


def _score(measure: Measure) -> Score:
    assert measure.edited and measure.edited.score
    return measure.edited.score


def _shown(score: Score) -> tuple[float, float] | None:
    """The interval of the share of images that show the concept."""
    if score.interval is None:
        return None
    low, high = sorted(shown(score.direction, end) for end in score.interval)
    return low, high


def _told(score: Score) -> str:
    return _with_interval(shown(score.direction, score.value), _shown(score))


def _with_interval(share: float, interval: tuple[float, float] | None) -> str:
    return f"{value_text(share, True)} {interval_text(interval, True)}".rstrip()


# -- what was lost -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """The measures of what should stay: those that fell, those that did not beyond chance, those that cannot tell."""

    fell: list[str]
    kept: list[str]
    unsure: list[str]
    """Worse than the base, without an interval that tells it from chance."""
    compared: bool = True
    """Whether a score of what should stay stands beside the base's."""

    @property
    def nothing(self) -> str:
        """What is said where there are no `sentences`."""
        return (
            "No score got worse."
            if self.compared
            else "Unknown: no score of what should stay has the base's beside it."
        )

    @property
    def sentences(self) -> list[str]:
        """All three as lines."""
        lines = [*self.fell]
        if self.kept:
            lines.append(f"No loss beyond chance: {'; '.join(self.kept)}.")
        if self.unsure:
            lines.append(f"Worse, without an interval that tells it from chance: {'; '.join(self.unsure)}.")
        return lines


def losses(suites: Sequence[SuiteScores]) -> Losses:
    """What the edited model lost of what should stay, by the interval of the change at equal prompts and seeds."""
    fell, kept, unsure, compared = [], [], [], False
    for measure in (measure for suite in suites for measure in suite.measures):
        cell = measure.edited
        if measure.metric.about != "kept" or not (measure.base and cell and cell.score) or measure.doubt:
            continue
        compared = True
        change = f"{measure.title}, {cell.change} {cell.spread}".rstrip()
        if cell.score.change is None:
            unsure += [change] if cell.verdict == "worse" else []
        elif measure.direction in (HIGHER, LOWER) and cell.verdict == "worse":
            moved = f"{measure.base.text} to {cell.text}, {cell.change} {cell.spread}"
            fell.append(f"{measure.title}: {moved}.{_worst(measure)}")
        else:
            kept.append(change)
    return Losses(fell, kept, unsure, compared)


def _worst(measure: Measure) -> str:
    """The concept that lost most, if there are several."""
    assert measure.base and measure.base.score
    before, after = measure.base.score.per_item, _score(measure).per_item
    sign = 1 if measure.direction == HIGHER else -1
    drops = {item: sign * (before[item] - after[item]) for item in before if item in after}
    if len(drops) < 2 or not max(drops.values()) > 0:
        return ""
    item = max(drops, key=lambda name: drops[name])
    return f' Most: "{item}", {value_text(before[item], measure.share)} to {value_text(after[item], measure.share)}.'


# -- what was not measured ---------------------------------------------------------------------------------------------

ELSEWHERE = "images made elsewhere"
"""The name under which a suite's evidence describes the columns of such images."""
LEFT_OUT = ("not measured", "left out")
"""How the names begin under which a suite's evidence lists what it did not measure."""


def unmeasured(found: Verdict, suites: Sequence[SuiteScores], made: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What no score says. ``made`` holds the facts of each suite's evidence, `mu.core.evidence.Made.how`."""
    if not any(suite.measures for suite in suites):
        return []  # the verdict says so
    gaps = [*found.withheld, *found.missing]
    for suite in suites:
        measures = [measure for measure in suite.measures if measure.edited]
        if not any(measure.metric.about == "kept" for measure in measures):
            gaps.append(f"Suite {suite.suite} has no score of what should stay.")
        gaps += [f"{m.title}: the base alone has a score." for m in suite.measures if m.base and not m.edited]
        how = made.get(suite.suite, {})
        if "base" not in how.get(ELSEWHERE, {"base": {}}):
            gaps.append(f"The base, by suite {suite.suite}: none of its images were given.")
        gaps += _left_out(how)
        if _gated(how):
            gaps.append("Files merged from this edit: they have no gate, and its gate was on when it was measured.")
    gaps.append("Attacks that try to bring the concept back, and prompts that no suite asks.")
    return list(dict.fromkeys(gaps))


def _left_out(how: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in how.items():
        if not (key.lower().startswith(LEFT_OUT) and value):
            continue
        each = [str(item) for item in (value if isinstance(value, list) else [value])]
        lines += each if key == LEFT_OUT[0] else [f"{key[:1].upper()}{key[1:]}: {', '.join(each)}."]
    return lines


def _gated(how: Mapping[str, Any]) -> bool:
    gates = how.get("gates", how.get("gate"))
    return any(gates) if isinstance(gates, list) else bool(gates)
