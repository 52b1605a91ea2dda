"""Suite ``concept``: any concept, any diffusion model, any judge. Needs no file. Protocol ``concept/1``:

- *Target* prompts: each erased concept, and the synonyms given, in phrasings that no preset trains on, at every seed.
  **target shown** is the share of these images on which the judge sees the concept.
- *Neighbours*: what the user names, else the `NEIGHBOURS` concepts nearest in the model's own prompt embeddings, among
  the judge's classes or the lists of this package. **neighbours kept** is the mean over neighbours of the share of
  their images on which the judge sees them. A neighbour that the judge sees in less than half of the base's images is
  left out, and named.
- *Everyday* prompts, each at its place's seed, so that runs of other concepts share the base's images; those that name
  the concept are left out. **unasked** is the share of their images on which
  the judge sees it.
- Over neighbours and everyday prompts, against the base at equal seeds: **distance kept** (LPIPS where its package is,
  else 1 - cosine of the judge's features), **Fréchet distance** and **CMMD** of the features, **CLIP score**.
- **replacement**: what the judge sees in place of the concept.

Shares, the CLIP score and distances of 20 images and more have their 95 % interval; shares and the CLIP score of the
edited model also that of the change, paired by prompt and seed. If the judge sees the concept in less than half of the
base's target images, or takes a neighbour for it, it cannot tell whether the concept is gone, and the headline says so
in place of the number. The protocol's name holds the judge, and all that departs from the protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mu.core.concept import Concept, distinct, folded, says
from mu.core.config import filled
from mu.core.errors import ConfigError, DataError, quoted
from mu.core.metrics import scored
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.prompt_lists import ANY, KINDS, NEIGHBOUR_TEMPLATES, TARGET_TEMPLATES, TUNING_TEMPLATES, entries, kind_of
from mu.data.prompt_lists import everyday as everyday_prompts
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import ELSEWHERE, Images, Subject, looked
from mu.evaluation.comparing import (
    Features,
    clip_fits,
    clip_of,
    distance_of,
    distances,
    features_of,
    listed,
    mean,
    measured_in,
    put_most_changed,
    share,
    share_of_each,
)
from mu.evaluation.doubt import doubtful
from mu.evaluation.judges import Judge, Seen, open_judge
from mu.evaluation.metrics.cmmd import cmmd_jackknife
from mu.evaluation.metrics.frechet import frechet_jackknife
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel

PROTOCOL, STEPS, GUIDANCE, EVERYDAY = "concept/1", 30, 7.5, 200
SEEDS = (188, 288, 588, 688)
NEIGHBOURS = 6
JUDGE = "clip:openai/clip-vit-large-patch14"


class Asked(NamedTuple):
    """The images of one suite, by what is asked of them."""

    target: list[tuple[str, ImageRow]]
    """(erased concept, image)"""
    neighbours: list[tuple[str, ImageRow]]
    """(neighbour, image)"""
    everyday: list[ImageRow]

    @property
    def kept(self) -> list[ImageRow]:
        return [*(row for _, row in self.neighbours), *self.everyday]

    @property
    def rows(self) -> list[ImageRow]:
        return [*(row for _, row in self.target), *self.kept]

    def among(self, rows: Sequence[ImageRow]) -> Asked:
        """Those of ``rows`` alone. Raises `DataError` if an erased concept has none, or nothing that should stay."""
        names = {row.name for row in rows}
        target, near = ([pair for pair in pairs if pair[1].name in names] for pairs in (self.target, self.neighbours))
        if lost := {concept for concept, _ in self.target} - {concept for concept, _ in target}:
            raise DataError(f"no image asks for {quoted(min(lost))}: nothing shows whether it is gone")
        everyday = [row for row in self.everyday if row.name in names]
        if not (near or everyday):
            raise DataError("no image of what should stay is there: nothing shows what was lost")
        return Asked(target, near, everyday)


class ConceptSuite:
    """One measurement: which images it needs, and their scores.

    With ``tuning`` the prompts are `TUNING_TEMPLATES`, which no report asks for.
    ``judge`` is a name of `mu.evaluation.judges.JUDGES`; ``clip`` is the model of the CLIP score and of the features,
    by default the judge's if it is a CLIP. ``retain`` names the neighbours, ``synonyms`` more texts of the (one)
    concept, ``everyday`` how many everyday prompts. Raises `DataError` if the judge cannot recognise a concept,
    `ConfigError` if ``synonyms`` are given for several concepts, or a neighbour is erased.
    Without a model, whose images were made elsewhere, the neighbours must be named.
    """

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, judge: str = JUDGE, clip: str | None = None,
        retain: Sequence[str] = (), synonyms: Sequence[str] = (), everyday: int = EVERYDAY,
        steps: int = STEPS, guidance: float = GUIDANCE, tuning: bool = False,
    ):  # fmt: skip
        concepts: list[str] = [*distinct(subject.concepts)]
        self.judge, self.steps, self.guidance = open_judge(judge, subject.device), steps, guidance
        self.known = {concept: self.judge.known(concept) for concept in concepts}
        named = retained(retain, self.known, self.judge)
        self.near = named or nearest(subject.model, concepts, self.judge)
        self.asked = asked(concepts, self.near, seeds, synonyms, everyday, tuning)
        self.protocol = named_protocol(
            self.judge.name, seeds, steps=steps, guidance=guidance, everyday=everyday, retain=named, synonyms=synonyms,
            elsewhere=subject.model is None, tuning=tuning,
        )  # fmt: skip
        self.features = features_of(clip, self.judge, subject.device)
        self.rows, self.only_base = self.asked.rows, ()

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Judge all images. Returns the table and how it was measured; puts the most changed images in the report."""
        among = list(dict.fromkeys([*self.known.values(), *self.near]))
        there = self.asked.among(answers.here(self.rows))
        columns = {
            column: Column(self.judge, answers, there, among, self.known, column, self.features)
            for column in answers.columns
        }
        base, edited = columns.get("base"), columns["edited"]
        seen = [name for name in edited.neighbours if base is None or base.share(name) >= 0.5]
        doubt = "" if base is None else doubtful(self.known, base.target, base.neighbours)
        how = {
            "steps": self.steps, "guidance": self.guidance, **self.judge.facts(among), "features": self.features.name,
            "neighbours": seen, "left out, as the base does not show them": [n for n in self.near if n not in seen],
        }  # fmt: skip
        fits = measured_in(self.protocol, self.features.name)
        scores = _column(edited, base, seen, self.protocol, fits, doubt)
        if base is None:
            return {"edited": scores}, how
        each, measure = distances(answers, there.kept, base.features, edited.features, self.features.name)
        put_most_changed(run, answers, there.kept, torch.tensor(each), "concept")
        measured = [
            mean("distance kept", each, f"{self.protocol}, {measure}"),
            *_of_sets(base, edited, f"{self.protocol}, features of {self.features.name}"),
        ]
        return {"base": _column(base, None, seen, self.protocol, fits, doubt), "edited": [*scores, *measured]}, how


def named_protocol(
    judge: str, seeds: Sequence[int] = SEEDS, *, steps: int = STEPS, guidance: float = GUIDANCE,
    everyday: int = EVERYDAY, retain: Sequence[str] = (), synonyms: Sequence[str] = (), elsewhere: bool = False,
    tuning: bool = False,
) -> str:  # fmt: skip
    """The protocol's name with the judge and what departs from it: numbers of different settings share no column."""
    departs = {
        f"{steps} steps": steps != STEPS,
        f"guidance {guidance:g}": guidance != GUIDANCE,
        f"{everyday} everyday prompts": everyday != EVERYDAY,
        listed(sorted(seeds), "seed"): sorted(seeds) != sorted(SEEDS),
        listed(sorted(retain), "neighbour"): bool(retain),
        listed(sorted(synonyms), "synonym"): bool(synonyms),
        ELSEWHERE: elsewhere,
        "phrasings for tuning": tuning,
    }
    return ", ".join([PROTOCOL, f"judge {judge}", *(text for text, differs in departs.items() if differs)])


def retained(names: Sequence[str], known: Mapping[str, str], judge: Judge) -> list[str]:
    """What the user wants to stay, each once, as the judge spells it. Raises `ConfigError` for an erased concept.

    ``known`` holds the erased concepts and the judge's spelling of each.
    """
    spelled = {name: judge.known(name) for name in names}
    erased = {folded(text) for pair in known.items() for text in pair}
    for pair in spelled.items():
        if erased & {*map(folded, pair)}:
            raise ConfigError(f"{quoted(pair[0])} is erased, so it cannot stay: name another concept with --retain")
    return [*distinct(spelled.values())]


def asked(
    concepts: Sequence[str], near: Sequence[str], seeds: Sequence[int], synonyms: Sequence[str], count: int,
    tuning: bool = False,
) -> Asked:  # fmt: skip
    """The images to make. Everyday prompts that name an erased concept are left out; the others keep name and seed."""
    if synonyms and len(concepts) > 1:
        raise ConfigError(f"synonyms are of one concept, and {', '.join(concepts)} are erased: leave them out")
    spoken = [(concept, text) for concept in concepts for text in distinct([concept, *synonyms])]
    words, others = (TUNING_TEMPLATES,) * 2 if tuning else (TARGET_TEMPLATES, NEIGHBOUR_TEMPLATES)
    target = [(c, row) for c, text in spoken for row in _rows("target", text, words, seeds)]
    neighbours = [(n, row) for n in near for row in _rows("neighbour", n, others, seeds)]
    everyday = [
        ImageRow.named(f"everyday_{k:03}", text, k)
        for k, text in enumerate(everyday_prompts()[:count])
        if not any(says(text, name) for _, name in spoken)
    ]
    return Asked(target, neighbours, everyday)


def _rows(role: str, name: str, templates: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[ImageRow]:
    """The concept in the phrasings of its kind, or in those that suit any, at every seed."""
    stem, texts = f"{role}_{Concept(name).file_stem}", templates[kind_of(name) or ANY]
    return [ImageRow.named(f"{stem}_{k}", filled(text, name), seed) for k, text in enumerate(texts) for seed in seeds]


@torch.no_grad()
def nearest(model: DiffusionModel | None, concepts: Sequence[str], judge: Judge) -> list[str]:
    """The concepts nearest to the erased ones: of the judge's classes, else of the lists of their kind, else of all.

    Near is the cosine of the prompt embeddings' means over tokens, about the mean of all candidates. Without a model,
    raises `ConfigError`.
    """
    if model is None:
        raise ConfigError("which neighbours the images ask for is unknown: name each with --retain")
    found = [name for concept in concepts for name in judge.rivals(concept)]
    if not found:
        kinds = {kind for concept in concepts if (kind := kind_of(concept))} or KINDS
        found = [name for kind in kinds for name in entries(kind)]
    others = [n for n in dict.fromkeys(found) if not any(says(n, c) or says(c, n) for c in concepts)]
    if not others:
        raise DataError("the judge knows no other concept: name with --retain what must stay")
    texts = [*concepts, *others]
    means = torch.cat([model.encode(texts[k : k + 64]).sequence.float().mean(dim=1) for k in range(0, len(texts), 64)])
    unit = F.normalize(means - means[len(concepts) :].mean(dim=0), dim=1)
    likeness = (unit[len(concepts) :] @ unit[: len(concepts)].T).amax(dim=1)
    return [others[k] for k in likeness.argsort(descending=True)[:NEIGHBOURS].tolist()]


class Column:
    """What the judge says of one column's images, and the features of those that should stay."""

    def __init__(
        self, judge: Judge, answers: Images, wanted: Asked, among: Sequence[str], known: Mapping[str, str],
        column: str, features: Features,
    ):  # fmt: skip
        clip = clip_of(judge)
        other = features.clip if features.clip is not clip else None

        def look(rows: Sequence[ImageRow], first: str, beside: ClipModel | None) -> Seen:
            ordered = [first, *(name for name in among if name != first)]
            return looked(judge, answers.paths(rows, column), ordered, beside)

        def by_name(
            pairs: Sequence[tuple[str, ImageRow]], spelled: Callable[[str], str], beside: ClipModel | None = None
        ) -> dict[str, Seen]:
            names = dict.fromkeys(name for name, _ in pairs)
            return {name: look([row for of, row in pairs if of == name], spelled(name), beside) for name in names}

        self.known = known
        self.target = {c: seen.answers for c, seen in by_name(wanted.target, known.__getitem__).items()}
        near = by_name(wanted.neighbours, str, other)
        self.neighbours = {name: seen.answers for name, seen in near.items()}
        unasked: dict[str, Seen] = {}
        first = next(iter(known.values()))
        for own in known.values() if wanted.everyday else ():
            if own not in unasked:  # a CLIP chooses among all at once, a classifier among the classes of one kind
                beside = None if unasked else other
                unasked[own] = unasked[first] if clip and unasked else look(wanted.everyday, own, beside)
        self.unasked = {c: [a == own for a in unasked[own].answers] for c, own in known.items() if own in unasked}
        everyday = [unasked[first].features] if unasked else []
        self.features = torch.cat([*(seen.features for seen in near.values()), *everyday])
        self.closeness = clip_fits(features.clip, self.features, wanted.kept) if features.clip else []

    def share(self, neighbour: str) -> float:
        """Share of the neighbour's images on which the judge sees it."""
        answers = self.neighbours[neighbour]
        return sum(answer == neighbour for answer in answers) / len(answers)

    def hits(self, concept: str) -> list[float]:
        """1 for each image that asks for ``concept`` and shows it, else 0."""
        return [float(answer == self.known[concept]) for answer in self.target[concept]]

    def kept(self, names: Sequence[str]) -> dict[str, list[bool]]:
        """Whether each image of each neighbour shows it."""
        return {name: [answer == name for answer in self.neighbours[name]] for name in names}


def _column(
    column: Column, base: Column | None, seen: Sequence[str], protocol: str, fits: str, doubt: str
) -> list[Score]:
    """The scores of one column. With ``base``, shares have the interval of their change.

    ``fits`` is the protocol's name for the CLIP score.
    """

    def shared(name: str, of: Callable[[Column], list[float]], per_item: Mapping[str, float], **more: Any) -> Score:
        return share(name, of(column), protocol, per_item, before=of(base) if base else None, **more)

    targets = {concept: fmean(column.hits(concept)) for concept in column.known}
    scores = [shared("target shown", lambda c: [h for name in c.known for h in c.hits(name)], targets, doubt=doubt)]
    if seen:
        before_kept = base.kept(seen) if base else None
        scores.append(share_of_each("neighbours kept", column.kept(seen), protocol, before=before_kept))
    if column.unasked:
        named = {concept: fmean(hits) for concept, hits in column.unasked.items()}
        scores.append(
            shared("unasked", lambda c: [float(any(each)) for each in zip(*c.unasked.values(), strict=True)], named)
        )
    if column.closeness:
        before = base.closeness if base else None
        scores.append(mean("CLIP score", column.closeness, fits, before=before))
    told = [(concept, answer) for concept, answers in column.target.items() for answer in answers]
    others = Counter(answer or "none" for concept, answer in told if answer != column.known[concept])
    shares = {name: count / len(told) for name, count in others.most_common()}
    most = max(shares.values(), default=0.0)
    return [*scores, scored("replacement", most, len(told), protocol, shares, doubt=doubt)]


def _of_sets(base: Column, edited: Column, protocol: str) -> list[Score]:
    """How far the features of all images that should stay are from the base's, as sets."""
    a, b = edited.features, base.features
    unit = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return [
        distance_of("Fréchet distance", frechet_jackknife(a, b), len(a), protocol),
        distance_of("CMMD", cmmd_jackknife(*unit), len(a), protocol),
    ]
