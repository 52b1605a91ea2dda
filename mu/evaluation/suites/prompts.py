"""Suite ``prompts``: the prompts of a file, and any judge. Protocol ``prompts/1``:

- The file is a list as the papers publish them: a prompt, and if it has them a seed, guidance scale, width and height,
  which are obeyed, and the class (or artist) that the image is expected to show.
- **target shown**: the share of the images that ask for the erased concept on which the judge sees it. Those are the
  images of prompts whose class is the concept; in a list without classes, all.
- **expected shown**: the share of the images of other classes on which the judge sees the class. Classes that it sees
  in less than half of the base's images are left out, and named. Each class has its own share.
- **target distance** and **distance kept**: of the edited images of the two groups from the base's at equal seeds, by
  LPIPS where its package is, else 1 - cosine of the judge's features; **target CLIP score** and **CLIP score** of them.
- A judge of any concept chooses among the erased concepts, the classes and what ``--retain`` names; without either,
  the concepts nearest in the model's own prompt embeddings.

If the judge sees the concept in less than half of the base's images that ask for it, or takes another class for it, the
headline is withheld.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mu.core.concept import folded, says
from mu.core.errors import titled
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.clip_sets import class_of
from mu.data.prompts import PromptRow
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import Images, Subject, looked
from mu.evaluation.comparing import features_of, listed, put_most_changed, share
from mu.evaluation.doubt import unmeasured
from mu.evaluation.judges import Judge, Seen, knows, open_judge
from mu.evaluation.suites.concept import JUDGE, nearest, retained
from mu.evaluation.suites.listed import STEPS, Case, Group, by_label, compared, read_list

PROTOCOL = "prompts/1"
Pairs = Sequence[tuple[str, ImageRow]]
"""Images, each with the concept or class that it asks for."""


class PromptsSuite:
    """One measurement: which images it needs, and their scores. See `mu.evaluation.suites.listed.read_list`.

    Raises `DataError` if the judge cannot recognise a concept or a class of the list.
    """

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, prompts: Path | None = None, columns: Sequence[str] = (),
        judge: str = JUDGE, clip: str | None = None, retain: Sequence[str] = (), steps: int = STEPS,
        guidance: float | None = None, size: tuple[int, int] | None = None,
    ):  # fmt: skip
        concepts = subject.concepts
        self.list = read_list(PROTOCOL, prompts, seeds, columns, subject, steps=steps, guidance=guidance, size=size)
        self.judge = open_judge(judge, subject.device)
        self.known = {concept: self.judge.known(concept) for concept in concepts}
        self.target, self.kept = divided(self.list.cases, self.known, self.judge)
        classes = [self.judge.known(name) for name, _ in self.kept if name]
        near = retained(retain, self.known, self.judge)
        others = [*classes, *near]
        if not others:
            others = [name for name in nearest(subject.model, concepts, self.judge) if knows(self.judge, name)]
        self.among = list(dict.fromkeys([*self.known.values(), *others]))
        self.features = features_of(clip, self.judge, subject.device)
        self.rows, self.only_base = self.list.rows, ()
        self.steps, self.guidance = self.list.steps, self.list.guidance
        departs = [listed(sorted(near), "retained concept")] if near else []
        self.protocol = ", ".join([self.list.protocol, self.judge.name, *departs])

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Judge all images. Returns the table and how it was measured; puts the most changed images in the report."""
        there = {row.name for row in answers.here(self.rows)}
        targets, others = ([pair for pair in each if pair[1].name in there] for each in (self.target, self.kept))
        columns = {column: Column(self, targets, others, answers, column) for column in answers.columns}
        base, edited, protocol = columns.get("base"), columns["edited"], self.protocol
        shown = by_label(base.classes, base.right) if base else dict.fromkeys(filter(None, edited.classes), 1.0)
        seen = [name for name, value in shown.items() if value >= 0.5]
        doubt = self._doubt(base) if base else ""
        table: Table = {
            name: _shares(each, base if name == "edited" else None, seen, protocol, doubt)
            for name, each in columns.items()
        }
        target, kept = [row for _, row in targets], [row for _, row in others]
        groups = [
            Group(target, edited.asked, "target CLIP score", "target distance", "target distance"),
            Group(kept, edited.classes, "CLIP score", "distance kept", "distance kept"),
        ]
        more, each = compared(
            answers, groups, protocol, self.features, {name: column.features for name, column in columns.items()}
        )
        for column, scores in more.items():
            table[column] += scores
        if kept and each:
            put_most_changed(run, answers, kept, torch.tensor(each[len(target) :]), "prompts")
        how = {
            **self.list.how, **self.judge.facts(self.among), "chosen among": self.among, "features": self.features.name,
            "left out, as the base does not show them": [name for name in shown if name not in seen],
        }  # fmt: skip
        if not target:
            how["not measured"] = [f"target shown: no prompt asks for {' or '.join(self.known)}"]
        asked = set(edited.asked)
        return table, how | (unmeasured([*self.known], lambda c: c in asked or "" in asked) if target else {})

    def _doubt(self, base: Column) -> str:
        """Why this judge cannot tell whether the concepts are gone; "" if it can."""
        asked = f"the judge sees {' or '.join(map(repr, self.known))} in only"
        overall = {"": sum(base.hits) / len(base.hits)} if base.hits else {}
        for name, value in {**overall, **by_label(base.asked, base.hits)}.items():
            if value < 0.5:
                return f"{asked} {value:.0%} of the base's images that ask for {repr(name) if name else 'it'}"
        for name, value in by_label(base.classes, base.taken).items():
            if value >= 0.5:
                return f"the judge takes the base's images of {titled(name)} for an erased concept"
        return ""


def divided(
    cases: Sequence[Case], known: Mapping[str, str], judge: Judge
) -> tuple[list[tuple[str, ImageRow]], list[tuple[str, ImageRow]]]:
    """The images that ask for an erased concept, each with the concept, and the others, each with its class, by class.

    In a list without classes all ask, for "", which is any of the concepts. In another list, prompts without a class
    are among the others, with the class "". Raises `DataError` for a class that the judge cannot recognise."""
    if not any(_expected(case.row) for case in cases):
        only = next(iter(known)) if len(known) == 1 else ""
        return [(only, case.image) for case in cases], []
    target: list[tuple[str, ImageRow]] = []
    kept: list[tuple[str, ImageRow]] = []
    for case in cases:
        named = next((concept for concept in known if asks(case.row, concept)), None)
        own = "" if named or not (text := _expected(case.row)) else judge.known(text)
        if own in known.values():
            named = next(concept for concept, name in known.items() if name == own)
        (target if named else kept).append((named or own, case.image))
    places = {name: k for k, name in enumerate(dict.fromkeys(name for name, _ in kept))}
    return target, sorted(kept, key=lambda each: places[each[0]])


def asks(row: PromptRow, concept: str) -> bool:
    """Whether the row's class is ``concept``, or its artist: "Van Gogh" is also "Vincent van Gogh"."""
    if row.class_name:
        return class_of(concept, [row.class_name]) is not None
    return row.artist is not None and is_artist(row.artist, concept)


def is_artist(artist: str, concept: str) -> bool:
    """Whether one name holds the other in whole words; "Van Gogh style" names Van Gogh.

    >>> is_artist("Vincent van Gogh", "Van Gogh style"), is_artist("Monet", "Claude Monet"), is_artist("Goya", "Go")
    (True, True, False)
    """
    if not folded(artist):
        return False
    return says(artist, folded(concept).removesuffix(" style")) or says(concept, artist)


def _expected(row: PromptRow) -> str:
    return row.class_name or row.artist or ""


class Column:
    """What the judge says of one column's images."""

    asked: list[str]
    """The concept that each target image asks for; "" for any."""
    hits: list[float]
    """1 for each target image that shows it."""
    classes: list[str]
    """The class of each other image; "" for none."""
    right: list[float]
    """1 for each that shows its class."""
    taken: list[float]
    """1 for each that shows an erased concept instead."""
    features: Tensor
    """(n, d) of target and other images."""

    def __init__(self, suite: PromptsSuite, targets: Pairs, others: Pairs, answers: Images, column: str):
        def look(rows: Sequence[ImageRow], first: str) -> Seen:
            among = [first, *(name for name in suite.among if name != first)]
            return looked(suite.judge, answers.paths(rows, column), among)

        self.asked, self.classes = [name for name, _ in targets], [name for name, _ in others]
        target, own = [row for _, row in targets], set(suite.known.values())
        seen = {concept: look(target, name) for concept, name in suite.known.items()} if target else {}
        told = {concept: [answer == suite.known[concept] for answer in each.answers] for concept, each in seen.items()}
        self.hits = [
            float(told[name][k] if name else any(each[k] for each in told.values()))
            for k, name in enumerate(self.asked)
        ]
        features = [each.features for each in [*seen.values()][:1]]
        self.right, self.taken = [], []
        for name, group in groupby(others, key=itemgetter(0)):
            shown = look([row for _, row in group], name or suite.among[0])
            self.right += [float(answer == name != "") for answer in shown.answers]
            self.taken += [float(answer in own) for answer in shown.answers]
            features.append(shown.features)
        self.features = torch.cat(features)


def _shares(column: Column, base: Column | None, seen: Sequence[str], protocol: str, doubt: str) -> list[Score]:
    """The shares of one column. With ``base``, each has the interval of its change."""
    scores = []
    if column.hits:
        each = by_label(column.asked, column.hits)
        before = base.hits if base else None
        scores.append(share("target shown", column.hits, protocol, each, before=before, doubt=doubt))
    if seen:
        places = [k for k, name in enumerate(column.classes) if name in seen]
        right = [column.right[k] for k in places]
        before = [base.right[k] for k in places] if base else None
        each = by_label([column.classes[k] for k in places], right)
        scores.append(share("expected shown", right, protocol, each, before=before))
    return scores
