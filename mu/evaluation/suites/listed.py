"""What the suites of a prompt file share: each prompt's images, at the seed, guidance scale and size of the file.

A prompt without a seed has an image at each of the seeds of the command line. The file's guidance scale and size are
obeyed, unless one is given for all. Numbers of different lists never share a column: the protocol's name has a digest
of all that is read of them, and what departs from the protocol.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mu.core.config import MOST
from mu.core.errors import ConfigError, DataError, quoted
from mu.core.scores import Score
from mu.data.columns import columns_given
from mu.data.prompts import PromptRow, read_prompts
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import ELSEWHERE, Images, Subject
from mu.evaluation.comparing import LPIPS, Features, clip_columns, distances, mean, measured_in

STEPS, GUIDANCE = 50, 7.5

log = logging.getLogger("mu")


@dataclass(frozen=True)
class Case:
    """One image to make, and the row of the file that asks for it."""

    row: PromptRow
    image: ImageRow
    sample: int = 0
    """Which of several images at the row's own seed it is: only images made elsewhere have several."""


@dataclass(frozen=True)
class PromptList:
    """The images that a file asks for. ``guidance`` is the scale of those that have none of their own."""

    path: Path
    cases: tuple[Case, ...]
    protocol: str
    digest: str
    steps: int
    guidance: float
    elsewhere: bool = False
    """The images were made elsewhere: their steps and scale are unknown."""
    left_out: tuple[str, ...] = ()
    """What of the file enters no number, and why."""
    samples: int = 1
    """Images of each prompt at its own seed."""
    named: str = ""
    """What a protocol's name says of the list."""

    @property
    def how(self) -> dict[str, Any]:
        """What a report states of the list: its name and digest, the steps, and where its scales and sizes are from."""
        own = sum(case.image.guidance is not None for case in self.cases)
        sizes = sorted({case.image.size for case in self.cases if any(case.image.size)}, key=str)
        sampling = {"steps": self.steps, "guidance": self.guidance, "images with a guidance scale of their own": own}
        return {
            "prompts": self.path.name, "digest of the prompts": self.digest, "images": len(self.cases),
            **({"samples of each prompt": self.samples} if self.samples > 1 else {}),
            **({} if self.elsewhere else sampling),
            "heights and widths": [list(size) for size in sizes] or "the model's",
            **({"left out of the list": list(self.left_out)} if self.left_out else {}),
        }  # fmt: skip

    @property
    def rows(self) -> list[ImageRow]:
        return [case.image for case in self.cases]

    def among(self, rows: Sequence[ImageRow]) -> list[Case]:
        """The cases whose image is one of ``rows``."""
        names = {row.name for row in rows}
        return [case for case in self.cases if case.image.name in names]

    def require(self, column: str, of: Callable[[PromptRow], Any]) -> None:
        """Raise `DataError` if no row has the ``column``."""
        if not any(of(case.row) for case in self.cases):
            raise DataError(
                f"{self.path} has no column {quoted(column)}: name another list, or its column "
                f"with --column {column}=NAME"
            )


def read_list(
    protocol: str, file: Path | None, seeds: Sequence[int], columns: Sequence[str] = (), subject: Subject | None = None,
    *, steps: int = STEPS, guidance: float | None = None, size: tuple[int, int] | None = None, blank: bool = False,
) -> PromptList:  # fmt: skip
    """Read the prompts of ``file``; see `mu.data.prompts.read_prompts`, which raises `DataError`.

    ``columns`` are ``FIELD=NAME`` or the NAME of the prompts' column. ``guidance`` and ``size`` (height, width) replace
    the file's own. A ``subject`` without a model has images that were made elsewhere. Rows that ask for an image a
    second time count once, and ``blank`` prompts ask for nothing: both are left out, with a warning. Raises
    `ConfigError` without a file, or if prompts without a seed have more or fewer samples elsewhere than ``seeds``;
    `DataError` if all is left out, or the samples are not numbered from 0."""
    if file is None:
        raise ConfigError(f"the suite {protocol.partition('/')[0]} needs a list of prompts: pass --prompts FILE")
    rows, left_out = _counted_once(read_prompts(file, columns_given(columns)), guidance, size, blank)
    for told in left_out:
        log.warning("%s: left out: %s", file, told)
    if not rows:
        raise DataError(f"{file} holds only blank prompts: name another list")
    elsewhere = subject is not None and subject.model is None
    samples = subject.samples({row.case_number for row in rows}) if subject else 1
    if bare := sum(row.evaluation_seed is None for row in rows):
        if elsewhere and samples != len(seeds):
            raise ConfigError(
                f"{bare} prompts of {file} have no seed, and {samples} images each: name as many with --seeds, not "
                f"{len(seeds)}"
            )
        log.info("%s: %d of %d prompts have no seed: each has an image at %s", file, bare, len(rows), [*seeds])
    if (len(rows) - bare) * samples + bare * len(seeds) > MOST:
        raise ConfigError(f"{file} asks for more than {MOST:,} images: divide it")
    cases = [case for row in rows for case in _cases(row, seeds, guidance, size, samples)]
    departures = {f"{steps} steps": steps != STEPS}
    departures |= {f"guidance {guidance:g} for all": True} if guidance is not None else {}
    departures |= {f"size {size[0]}x{size[1]} for all": True} if size else {}
    departures |= {ELSEWHERE: elsewhere}
    digest = _digest(rows, seeds if bare else ())
    samples = max(case.sample for case in cases) + 1
    named = f"of {file.name} ({digest[:8]})" + (f", {samples} samples a prompt" if samples > 1 else "")
    whole = ", ".join([f"{protocol} {named}", *(text for text, differs in departures.items() if differs)])
    usual = GUIDANCE if guidance is None else guidance
    return PromptList(file, tuple(cases), whole, digest, steps, usual, elsewhere, tuple(left_out), samples, named)


def _counted_once(
    rows: Sequence[PromptRow], guidance: float | None, size: tuple[int, int] | None, blank: bool
) -> tuple[list[PromptRow], list[str]]:
    """The rows that ask for an image of their own, and what is said of the others.

    The same image is the same prompt, up to blanks around words, at the same seed, scale and size. Rows that expect
    different things of it, such as another class, all stay."""
    kept: dict[tuple[Any, ...], PromptRow] = {}
    again, empty = [], []
    for row in rows:
        text = " ".join(row.prompt.split())
        scale = row.evaluation_guidance if guidance is None else guidance
        sides = (row.height, row.width) if size is None else size
        key = (text, row.evaluation_seed, scale, sides, row.class_name, row.artist, row.type, row.categories)
        if not (text or blank):
            empty.append(row)
        elif key in kept:
            again.append(row)
        else:
            kept[key] = row
    told = []
    if again:
        told.append(f"{len(again)} rows ask for an image that another asks for, such as {quoted(again[0].prompt)}")
    if empty:
        told.append(f"{len(empty)} prompts are blank, the first one of case {empty[0].case_number}")
    return list(kept.values()), told


def _cases(
    row: PromptRow, seeds: Sequence[int], guidance: float | None, size: tuple[int, int] | None, samples: int
) -> list[Case]:
    """The images of one row: one at each seed, or ``samples`` at the row's own."""
    scale = row.evaluation_guidance if guidance is None else None
    sides = (row.height, row.width) if size is None else size
    wanted = [(seed, 0) for seed in seeds]
    if row.evaluation_seed is not None:
        wanted = [(row.evaluation_seed, sample) for sample in range(samples)]
    cases = []
    for k, (seed, sample) in enumerate(wanted):
        stem = f"case_{row.case_number}_{sample}" if sample else f"case_{row.case_number}"
        stems = _stems(row.case_number, k, len(wanted) == 1)
        cases.append(Case(row, ImageRow.named(stem, row.prompt, seed, scale, sides, stems), sample))
    return cases


def _stems(case: int, k: int, only: bool) -> tuple[str, ...]:
    """The names of a case's k-th image in sets of others: ESD's and `mu generate`'s ``CASE_K``; of its ``only`` image
    also ``CASE``, and COCO's names."""
    return (f"{case}_{k}", *((f"{case}", f"{case:012}", f"COCO_val2014_{case:012}") if only else ()))


def _digest(rows: Sequence[PromptRow], seeds: Sequence[int]) -> str:
    told = [
        [
            row.prompt, row.evaluation_seed, row.evaluation_guidance, row.width, row.height, row.class_name,
            row.artist, row.categories,
        ]
        for row in rows
    ]  # fmt: skip
    return hashlib.sha256(json.dumps([told, list(seeds)]).encode()).hexdigest()


def by_label(labels: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The mean of the values of each label; none for the label ""."""
    found: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        if label:
            found.setdefault(label, []).append(value)
    return {label: sum(each) / len(each) for label, each in found.items()}


@dataclass(frozen=True)
class Group:
    """Images of one purpose, each with the label that its mean is given by, and the names of their scores."""

    rows: Sequence[ImageRow]
    labels: Sequence[str]
    fit: str
    distance: str
    lpips: str
    """The name of the distance if LPIPS measures it."""

    def among(self, rows: Sequence[ImageRow]) -> Group:
        """Its images that are among ``rows``."""
        names = {row.name for row in rows}
        kept = [(row, label) for row, label in zip(self.rows, self.labels, strict=True) if row.name in names]
        return replace(self, rows=[row for row, _ in kept], labels=[label for _, label in kept])


def compared(
    answers: Images, groups: Sequence[Group], protocol: str, features: Features,
    own: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, list[Score]], list[float]]:  # fmt: skip
    """CLIP scores of both columns, and distances of the edited images from the base's, by group; and each distance.

    ``own`` are the judge's features of all groups' images, of each column, for use without a CLIP. Without either, and
    without LPIPS, no distance is measured and the list is empty. Groups without images have no scores."""
    rows = [row for group in groups for row in group.rows]
    table: dict[str, list[Score]] = {column: [] for column in answers.columns}
    found, fits = dict(own or {}), {}
    if features.clip:
        for column in table:
            found[column], fits[column] = clip_columns(features.clip, answers.paths(rows, column), rows)
    each: list[float] = []
    how = ""
    if "base" in table:
        each, how = distances(answers, rows, found.get("base"), found.get("edited"), features.name)
    start = 0
    for group in groups:
        part = slice(start, start := start + len(group.rows))
        if not group.rows:
            continue
        for column, values in fits.items():
            before = fits["base"][part] if column == "edited" and "base" in fits else None
            items = by_label(group.labels, values[part])
            told = measured_in(protocol, features.name)
            table[column].append(mean(group.fit, values[part], told, items, before=before))
        if each:
            name = group.lpips if how == LPIPS else group.distance
            items = by_label(group.labels, each[part])
            table["edited"].append(mean(name, each[part], f"{protocol}, {how}", items))
    return table, each


def shown_names(names: Sequence[str]) -> str:
    """The names in short, for a message."""
    some = list(dict.fromkeys(names))
    return ", ".join(quoted(name) for name in some[:8]) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
