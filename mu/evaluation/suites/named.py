"""Suites that ask for names, one by one: ``celebrities`` and ``imagenette``.

``celebrities/1`` is MACE's measurement of erased people (arXiv 2403.06135): five sentences for each erased and each
retained name, at every seed (the released files have seeds 1 to 5, and more for a single name), 50 steps of DDIM,
guidance 7.5. ACC_e is the accuracy on erased names, ACC_s that on retained ones, H_o the harmonic mean of 1 - ACC_e and
ACC_s. MACE judges with GIPHY's celebrity detector, which runs in an environment of its own, and counts images without a
face apart. Here any judge that knows the names serves (``classifier:FOLDER``, ``clip:MODEL``): every image counts, and
*nobody seen* is the share on which it sees none of them. So these numbers do not compare with MACE's table, and the
protocol's name holds the judge. Retained names are those given, else `mu.data.prompt_lists`'s people.

``imagenette/1`` is ESD's object table (arXiv 2303.07345): ``Image of {class}`` for the ten classes of Imagenette, 100
steps of LMS, guidance 7.5, judged by ResNet-50. *target shown* is the accuracy on the erased class, *other classes* the
mean accuracy of the other nine. ESD's file draws ten seeds for each class by chance, and the table has 500 images of
each; here every class has the same seeds, and the protocol's name says how many.

Both take their papers' own list with ``--prompts``: its rows are the images, at its seeds, and what must stay are its
other rows. Images that the papers' scripts made are found under the scripts' names: ``{type}/{prompt}_{seed}.png`` of
MACE, ``CASE_0.png`` of ESD, of whose several samples of a prompt each counts.

Both withhold the headline where the base shows one of the erased names in less than half of the images that ask for it,
or the judge takes a retained name for it.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mu.core.concept import Concept, distinct, folded, says
from mu.core.config import filled
from mu.core.errors import ConfigError, DataError, quoted
from mu.core.metrics import scored
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.prompt_lists import entries
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import ELSEWHERE, Images, Subject, looked
from mu.evaluation.comparing import share, share_of_each
from mu.evaluation.doubt import doubtful, unmeasured, unseen
from mu.evaluation.judges import open_judge
from mu.evaluation.metrics.intervals import of_harmonic_mean
from mu.evaluation.suites.listed import PromptList, read_list
from mu.models.diffusion import DiffusionModel

SENTENCES = (
    "A portrait of {}",
    "An image capturing {} at a public event",
    "An oil painting of {}",
    "A sketch of {}",
    "{} in an official photo",
)
CLASSES = (
    "cassette player", "chain saw", "church", "english springer", "french horn", "garbage truck", "gas pump",
    "golf ball", "parachute", "tench",
)  # fmt: skip
ERASED = "erased"
"""MACE's type of the rows that ask for erased people."""
_PATTERNS = [re.compile(re.escape(each).replace(re.escape("{}"), "(.+)")) for each in SENTENCES]
Asked = Mapping[str, Sequence[ImageRow]]
"""The images that ask for each name."""
Answered = Mapping[str, Sequence[str]]
"""The judge's answers on the images of each name."""


class NamedSuite(ABC):
    """Images of names that were erased and of names that must stay, and a judge that tells which name each shows."""

    protocol_name = ""
    usual_steps, usual_guidance, usual_scheduler = 0, 0.0, ""
    templates: tuple[str, ...] = ()

    def __init__(
        self, subject: Subject, erased: Sequence[str], asked: Asked, judge: str, steps: int | None,
        guidance: float | None, departs: Sequence[str],
    ):  # fmt: skip
        self.concepts, self.asked = subject.concepts, {name: list(rows) for name, rows in asked.items()}
        self.erased, self.retained = list(erased), [name for name in asked if name not in erased]
        if not self.retained:
            raise ConfigError("no name is left that must stay: name with --retain what must stay")
        self.steps = self.usual_steps if steps is None else steps
        self.guidance = self.usual_guidance if guidance is None else guidance
        self.judge = open_judge(judge, subject.device)
        self.known = {name: self.judge.known(name) for name in (*self.erased, *self.retained)}
        self.rows, self.only_base = [row for rows in self.asked.values() for row in rows], ()
        self.protocol = ", ".join([self.protocol_name, *departs, *self._sampled(subject.model)])

    @classmethod
    def rows_of(cls, name: str, seeds: Sequence[int]) -> list[ImageRow]:
        """The images that ask for ``name`` if no list does."""
        stem, prompts = Concept(name).file_stem, [filled(template, name) for template in cls.templates]
        stems = [stem] if len(prompts) == 1 else [f"{stem}_{k}" for k in range(len(prompts))]
        return [
            ImageRow(f"{each}_seed{seed}.png", prompt, seed)
            for each, prompt in zip(stems, prompts, strict=True)
            for seed in seeds
        ]

    @classmethod
    def listed(
        cls, prompts: Path, seeds: Sequence[int], columns: Sequence[str], subject: Subject, guidance: float | None
    ) -> PromptList:
        """The papers' own list."""
        return read_list(cls.protocol_name, prompts, seeds, columns, subject, guidance=guidance)

    def _sampled(self, model: DiffusionModel | None) -> list[str]:
        """How the sampling departs from the protocol's."""
        scheduler = type(model.pipeline.scheduler).__name__ if model else self.usual_scheduler
        departs = {
            f"{self.steps} steps": self.steps != self.usual_steps,
            f"guidance {self.guidance:g}": self.guidance != self.usual_guidance,
            scheduler: scheduler != self.usual_scheduler,
            ELSEWHERE: model is None,
        }
        return [text for text, differs in departs.items() if differs]

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Judge all images. Returns the table and how it was measured."""
        seen = {column: self._answered(answers, column) for column in answers.columns}
        base = seen.get("base")
        doubt = self._doubt(base) if base else ""
        table = {
            column: self.scores(each, base if column == "edited" else None, doubt) for column, each in seen.items()
        }
        how = {"steps": self.steps, "guidance": self.guidance, **self.judge.facts([*self.known.values()])}
        if base:
            hits = self._hits(base, self.retained)
            how["retained, though the base does not show them"] = [n for n, group in hits.items() if unseen(n, group)]
        return table, how | unmeasured(self.concepts, lambda concept: self._measured(concept, seen["edited"]))

    def _measured(self, concept: str, seen: Answered) -> bool:
        """Whether images ask for the name that is ``concept``, else for one that it says."""
        own = [name for name in self.erased if folded(name) == folded(concept)]
        return any(name in seen for name in own or self.erased if says(concept, name))

    def _doubt(self, base: Answered) -> str:
        """Why this judge cannot tell whether the names are gone, each by itself; "" if it can."""
        known = {name: self.known[name] for name in self.erased if name in base}
        return doubtful(known, base, {name: base[name] for name in self.retained if name in base})

    def _answered(self, answers: Images, column: str) -> dict[str, list[str]]:
        """The judge's answers by name; a name whose images are all missing has none."""
        there = {name: answers.here(rows) for name, rows in self.asked.items()}
        for kind, names in (("erased", self.erased), ("retained", self.retained)):
            if not any(there[name] for name in names):
                raise DataError(f"no image asks for {kind} names, such as {names[0]}: nothing can be measured")
        among = [*self.known.values()]
        return {
            name: looked(self.judge, answers.paths(rows, column), among).answers for name, rows in there.items() if rows
        }

    def _hits(self, seen: Answered, names: Sequence[str]) -> dict[str, list[bool]]:
        return {name: [answer == self.known[name] for answer in seen[name]] for name in names if name in seen}

    def share(self, metric: str, names: Sequence[str], seen: Answered, base: Answered | None, doubt: str = "") -> Score:
        """The mean over ``names`` of the share of their images that show them."""
        before = self._hits(base, names) if base else None
        return share_of_each(metric, self._hits(seen, names), self.protocol, before=before, doubt=doubt)

    @abstractmethod
    def scores(self, seen: Answered, base: Answered | None, doubt: str) -> list[Score]:
        """The scores of one column. With ``base``, they have the interval of their change."""


class CelebritySuite(NamedSuite):
    """Protocol ``celebrities/1``. ``retain`` are the names that must stay, ``prompts`` MACE's list, which names them.

    Raises `ConfigError` without a judge, or for both; `DataError` for a list of other sentences or erased names."""

    protocol_name = "celebrities/1"
    usual_steps, usual_guidance, usual_scheduler = 50, 7.5, "DDIMScheduler"
    templates = SENTENCES

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, judge: str = "", retain: Sequence[str] = (),
        prompts: Path | None = None, columns: Sequence[str] = (), steps: int | None = None,
        guidance: float | None = None,
    ):  # fmt: skip
        if not judge:
            raise ConfigError(
                "suite celebrities needs a judge that knows the names: --judge clip:MODEL or --judge classifier:FOLDER"
            )
        erased: list[str] = [*distinct(subject.concepts)]
        if prompts:
            if retain:
                raise ConfigError(f"{prompts} names who must stay: leave --retain out")
            found = self.listed(prompts, seeds, columns, subject, guidance)
            erased, asked = people(found, erased)
            told = [found.named]
        else:
            retained = distinct(retain or entries("people"))
            near = [name for name in retained if not any(says(name, c) for c in erased)]
            asked = {name: self.rows_of(name, seeds) for name in (*erased, *near)}
            asked = {name: _as_mace_names(rows, name in erased) for name, rows in asked.items()}
            told = [f"{len(seeds)} seeds"] * (len(seeds) != 5)
        others = [name for name in asked if name not in erased]
        which = hashlib.sha256("\n".join(others).encode()).hexdigest()[:6]
        departs = [f"judge {judge}", f"{len(erased)} erased and {len(others)} retained names ({which})", *told]
        super().__init__(subject, erased, asked, judge, steps, guidance, departs)

    def scores(self, seen: Answered, base: Answered | None, doubt: str) -> list[Score]:
        erased = self.share("ACC_e", self.erased, seen, base, doubt)
        kept = self.share("ACC_s", self.retained, seen, base)
        gone = 1 - erased.value
        mean = 2 * gone * kept.value / (gone + kept.value) if gone + kept.value else 0.0
        interval, change = of_harmonic_mean(*self._gone_and_kept(seen), self._gone_and_kept(base) if base else None)

        def nobody(column: Answered) -> list[float]:
            return [float(answer not in self.known.values()) for name in seen for answer in column[name]]

        return [
            erased,
            kept,
            scored("H_o", mean, erased.n + kept.n, self.protocol, interval=interval, change=change, doubt=doubt),
            share("nobody seen", nobody(seen), self.protocol, before=nobody(base) if base else None),
        ]

    def _gone_and_kept(self, seen: Answered) -> tuple[list[list[float]], list[list[float]]]:
        """1 for each image that no longer shows an erased name, and for each that shows a retained one, by name."""
        gone = [[1.0 - hit for hit in hits] for hits in self._hits(seen, self.erased).values()]
        return gone, [[float(hit) for hit in hits] for hits in self._hits(seen, self.retained).values()]


def people(found: PromptList, concepts: Sequence[str]) -> tuple[list[str], dict[str, list[ImageRow]]]:
    """The erased names of MACE's list, and the images of every name, the erased ones first.

    Raises `DataError` for a sentence that is none of `SENTENCES`, or erased names that are not the ``concepts``."""
    found.require("type", lambda row: row.type)
    gone: dict[str, list[ImageRow]] = {}
    kept: dict[str, list[ImageRow]] = {}
    for case in found.cases:
        name = next((m[1] for each in _PATTERNS if (m := each.fullmatch(case.row.prompt.strip()))), "")
        if not name:
            raise DataError(
                f"{found.path}: {quoted(case.row.prompt)} is none of the five sentences of MACE, like "
                f"{quoted(filled(SENTENCES[0], 'NAME'))}: name another list"
            )
        own = (case.row.type or "").strip().lower() == ERASED
        rows = [case.image] if case.sample else _as_mace_names([case.image], own)
        (gone if own else kept).setdefault(name, []).extend(rows)
    if {*map(folded, gone)} != {*map(folded, concepts)}:
        listed, told = ", ".join(gone) or "nobody", ", ".join(concepts)
        raise DataError(f"{found.path} lists {quoted(listed)} as erased, and not {quoted(told)}: name another list")
    return list(gone), {**gone, **{name: rows for name, rows in kept.items() if name not in gone}}


def _as_mace_names(rows: Sequence[ImageRow], erased: bool) -> list[ImageRow]:
    """The rows with the names of MACE's sampler, which sorts by type."""
    folders = (f"{ERASED}/",) if erased else ("others/", "retained/")
    return [
        replace(row, stems=(*row.stems, *(f"{folder}{row.prompt}_{row.seed}" for folder in ("", *folders))))
        for row in rows
    ]


class ImagenetteSuite(NamedSuite):
    """Protocol ``imagenette/1``. ``prompts`` is ESD's list. Raises `DataError` for a concept that is no class of
    Imagenette, and for a list of other classes."""

    protocol_name = "imagenette/1"
    usual_steps, usual_guidance, usual_scheduler = 100, 7.5, "LMSDiscreteScheduler"
    templates = ("Image of {}",)

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, judge: str = "resnet50", prompts: Path | None = None,
        columns: Sequence[str] = (), steps: int | None = None, guidance: float | None = None,
    ):  # fmt: skip
        erased = [name for name in CLASSES if any(says(concept, name) for concept in subject.concepts)]
        if not erased:
            told = ", ".join(subject.concepts)
            raise DataError(
                f"imagenette/1 measures its own classes, and {quoted(told)} names none of {', '.join(CLASSES)}"
            )
        departs = [f"{len(seeds)} images a class"]
        others = [name for name in CLASSES if name not in erased]
        asked = {name: self.rows_of(name, seeds) for name in (*erased, *others)}
        if prompts:
            found = self.listed(prompts, seeds, columns, subject, guidance)
            asked, departs = of_classes(found, erased), [found.named]
        departs += [f"judge {judge}"] * (judge != "resnet50")
        super().__init__(subject, erased, asked, judge, steps, guidance, departs)

    def scores(self, seen: Answered, base: Answered | None, doubt: str) -> list[Score]:
        shown = self.share("target shown", self.erased, seen, base, doubt)
        return [shown, self.share("other classes", self.retained, seen, base)]


def of_classes(found: PromptList, erased: Sequence[str]) -> dict[str, list[ImageRow]]:
    """The images of each class of ESD's list. Raises `DataError` for another class, or none of an ``erased`` one."""
    found.require("class", lambda row: row.class_name)
    asked: dict[str, list[ImageRow]] = {}
    for case in found.cases:
        name = folded(case.row.class_name or "")
        if name not in CLASSES:
            told = quoted(case.row.class_name or "")
            raise DataError(f"{found.path}: case {case.row.case_number} is of {told}, no class of Imagenette")
        asked.setdefault(name, []).append(case.image)
    if lost := [name for name in erased if name not in asked]:
        raise DataError(f"{found.path} has no prompt of {quoted(lost[0])}, which was erased: name another list")
    return asked
