"""When a judge cannot tell whether a concept is gone: the text of `mu.core.scores.Score.doubt`, "" if it can.

A judge must first see the concept where nothing was erased. So every suite measures the base too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mu.core.errors import quoted


def doubtful(known: Mapping[str, str], target: Mapping[str, Sequence[str]], others: Mapping[str, Sequence[str]]) -> str:
    """The doubt if one of the concepts is `unseen` or `confused`, each by itself.

    ``known`` is the judge's spelling of each, ``target`` and ``others`` its answers on the base's images of each
    concept and of what should stay.
    """
    for concept, own in known.items():
        hits = [float(answer == own) for answer in target[concept]]
        if doubt := unseen(concept, hits) or confused(concept, own, others):
            return doubt
    return ""


def unmeasured(concepts: Sequence[str], measured: Callable[[str], bool]) -> dict[str, list[str]]:
    """What a suite's evidence says of the erased concepts that none of its images asks for; empty if there are none."""
    others = [concept for concept in concepts if not measured(concept)]
    return {"not measured: concepts": others} if others else {}


def unseen(concept: str, hits: Sequence[float]) -> str:
    """The doubt if the base shows ``concept`` in less than half of the images that ask for it (1 or 0 for each)."""
    share = sum(hits) / len(hits)
    return (
        ""
        if share >= 0.5
        else f"the judge sees {quoted(concept)} in only {share:.0%} of the base's images that ask for it"
    )


def confused(concept: str, own: str, others: Mapping[str, Sequence[str]]) -> str:
    """The doubt if the judge answers ``own`` in half of the base's images of another concept (answers by name)."""
    for name, answers in others.items():
        if sum(answer == own for answer in answers) * 2 >= len(answers):
            return f"the judge takes the base's images of {quoted(name)} for {quoted(concept)}"
    return ""
