"""The images that a suite judges: of the base and of the edited model, for the same prompts and seeds.

`Answers` are made here, `Found` were made elsewhere; a suite's ``score`` takes either as `Images`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.core.files import sha256
from mu.core.lock import locked
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.core.workers import Shard
from mu.diffusion.image_files import as_images, image_size, read_pixels
from mu.diffusion.image_folder import (
    ImageRow,
    adopt,
    borrow,
    check_rows,
    claim,
    claimed_for,
    content_hash,
    made_in,
    scheduler_hash,
    write_images,
)
from mu.edits.bank import Bank
from mu.evaluation.judges import Judge, Seen
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import fingerprint, select

AT_ONCE = 32
"""Images that a judge sees at once."""
ENDINGS = (".jpg", ".png", ".jpeg")
"""Endings of images made elsewhere. A suite's own ending comes first."""
ELSEWHERE = "sampled elsewhere"
"""What a protocol's name says where steps, guidance and scheduler are unknown."""
_SAMPLE = re.compile(r"(-?\d+)_(\d{1,9})")


def _one(cases: Collection[int]) -> int:
    """The samples of each case where nobody made several."""
    return 1


@dataclass(frozen=True)
class Subject:
    """What a suite measures: the erased concepts, and the base model; None where the images were made elsewhere.

    ``samples`` tells how many images of each of some cases of a list, which have one prompt and seed, were made
    elsewhere."""

    concepts: tuple[str, ...]
    model: DiffusionModel | None
    device: torch.device
    samples: Callable[[Collection[int]], int] = _one

    @classmethod
    def of(cls, bank: Bank) -> Subject:
        assert isinstance(bank.model, DiffusionModel)
        concepts = tuple(concept for edit in bank.on for concept in edit.info.concepts)
        return cls(concepts, bank.model, bank.model.device)


class Images(Protocol):
    """What a suite's ``score`` asks of the images."""

    @property
    def columns(self) -> tuple[str, ...]:
        """``base`` and ``edited``, or ``edited`` alone where nobody gave the base's images."""
        ...

    @property
    def device(self) -> torch.device: ...

    def here(self, rows: Sequence[ImageRow]) -> list[ImageRow]:
        """The rows whose image is there in every column."""
        ...

    def paths(self, rows: Sequence[ImageRow], column: str = "base") -> list[Path]: ...


@dataclass(frozen=True)
class Answers:
    """Two folders of images, ``base`` and ``edited``, made by one model without and with the edits of ``bank``.

    Images are made in batches, written atomically, and never twice: not if a run is resumed, and not for another run
    that shares the ``base`` folder. A folder made by another recipe is made again.
    """

    bank: Bank
    base: Path
    edited: Path
    steps: int
    guidance: float
    shared: Path | None = None
    """Of a shard: the base folder of the whole, whose images are not made again."""
    others: tuple[Path, ...] = ()
    """The base folders of other runs: their images are copied where the recipe is the same."""

    @property
    def model(self) -> DiffusionModel:
        assert isinstance(self.bank.model, DiffusionModel)
        return self.bank.model

    @property
    def columns(self) -> tuple[str, ...]:
        return ("base", "edited")

    @property
    def device(self) -> torch.device:
        return self.model.device

    def here(self, rows: Sequence[ImageRow]) -> list[ImageRow]:
        return list(rows)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that determines the base's answers except prompts and seeds: every weight, and how it is used."""
        return {
            "model": fingerprint(self.model, select(self.model, "*")),
            "scheduler": scheduler_hash(self.model),
            **self.model.loading,
            **made_in(self.model),
            "steps": self.steps,
            "guidance": self.guidance,
        }

    def sharing(self, folder: Path) -> Answers:
        """The same, with the base's images in a folder of their recipe below ``folder``: others lie beside it."""
        key = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:12]
        return replace(self, base=folder / key, others=())

    def make(self, rows: Sequence[ImageRow], only_base: Sequence[ImageRow] = ()) -> None:
        """Make the missing images of ``rows`` in both folders, and those of ``only_base`` in the base's.

        What cannot be made is refused before images of another recipe make room."""
        check_rows(self.model, [*rows, *only_base], steps=self.steps, guidance=self.guidance)
        for folder in (self.base, self.edited):
            claimed_for(folder)  # refuses a damaged recipe
        recipe = self.recipe
        with locked(self.base):  # other runs may share it
            claim(self.base, recipe)
            self._gather("base", self.base)
            wanted = self._unshared([*rows, *only_base])
            borrow(self.others, self.base, wanted)
            self._write(wanted, self.base, "base answers")
        edits = {"edit": [content_hash(edit) for edit in self.bank.on], "strength": self.bank.strengths(None)}
        claim(self.edited, {**recipe, **edits})
        self._gather("edited", self.edited)
        with self.bank.applied():
            self._write(rows, self.edited, "edited answers")

    def _write(self, rows: Sequence[ImageRow], folder: Path, title: str) -> None:
        if not rows:
            return
        with progress_bar(title, len(rows)) as advance:
            write_images(
                self.model, rows, folder, steps=self.steps, guidance=self.guidance, resume=True,
                progress=lambda done, _: advance(done, ""),
            )  # fmt: skip

    def of_shard(self, shard: Shard) -> Answers:
        """The folders of one shard, beside ``edited``: processes never write to the same folder."""
        folder = self._shards / f"{shard.k}-of-{shard.n}"
        return replace(self, base=folder / "base", edited=folder / "edited", shared=self.base)

    def _unshared(self, rows: Sequence[ImageRow]) -> Sequence[ImageRow]:
        """The rows whose image the whole's base folder does not have yet."""
        if self.shared is None or claimed_for(self.shared) != self.recipe:
            return rows
        return [row for row in rows if not (self.shared / row.name).is_file()]

    @property
    def _shards(self) -> Path:
        return self.edited.parent / "shards"

    def _gather(self, column: str, folder: Path) -> None:
        """Move what shards made of one column to its folder."""
        for place in sorted(self._shards.glob(f"*-of-*/{column}")):
            adopt(place, folder)

    def paths(self, rows: Sequence[ImageRow], column: str = "base") -> list[Path]:
        return [(self.base if column == "base" else self.edited) / row.name for row in rows]


@dataclass(frozen=True)
class Found:
    """Two folders of images that somebody else made, under the names of a suite's rows; ``base`` may be missing.

    An image may have any of `ENDINGS` and of its row's ``stems``, and the folders of mu's own names are left out:
    published sets lie in one folder, or in those that the stems name.
    """

    edited: Path
    base: Path | None
    device: torch.device

    @property
    def columns(self) -> tuple[str, ...]:
        return ("edited",) if self.base is None else ("base", "edited")

    def paths(self, rows: Sequence[ImageRow], column: str = "base") -> list[Path]:
        return [self._place(row, column) for row in rows]

    def here(self, rows: Sequence[ImageRow]) -> list[ImageRow]:
        return [row for row in rows if all(self._place(row, column).is_file() for column in self.columns)]

    def samples(self, cases: Collection[int]) -> int:
        """How many images each of the ``cases`` of a list has: those of ``CASE_K``, as ESD's sampler and `mu generate`
        name them. Images of other cases are not counted.

        Raises `DataError` if K does not count from 0."""
        own = {str(case) for case in cases}
        images = [
            (path, _SAMPLE.fullmatch(path.stem)) for column in self.columns for path in _images(self._folder(column))
        ]
        found = {int(match[2]): path for path, match in images if match and match[1] in own}
        if lost := sorted({*range(len(found))} - {*found}):
            raise DataError(
                f"{found[max(found)]} is there, and no image CASE_{lost[0]}: the samples of a case are numbered from 0"
            )
        return max(1, len(found))

    def others(self, rows: Sequence[ImageRow]) -> list[Path]:
        """The images of none of the ``rows``, in the columns' folders and in those that the rows' stems name."""
        found = []
        for column in self.columns:
            whole, asked = self._folder(column), {*self.paths(rows, column)}
            folders = {whole, *((whole / stem).parent for row in rows for stem in row.stems)}
            found += sorted({path for folder in folders if folder.is_dir() for path in _images(folder)} - asked)
        return found

    def missing(self, rows: Sequence[ImageRow]) -> list[Path]:
        """The images of ``rows`` that are not there, under the names that others give them, else the suite's own."""
        return [
            self._folder(column) / (f"{row.stems[0]}{ENDINGS[1]}" if row.stems else Path(row.name).name)
            for column in self.columns
            for row in rows
            if not self._place(row, column).is_file()
        ]

    def described(self, rows: Sequence[ImageRow]) -> dict[str, Any]:
        """What a report must say of the images: their folders, number, and a digest of all of a column."""
        found: dict[str, Any] = {}
        for column in self.columns:
            whole = hashlib.sha256()
            for path in self.paths(rows, column):
                whole.update(f"{path.name} {sha256(path)}\n".encode())
            found[column] = {"folder": str(self._folder(column)), "images": len(rows), "SHA-256": whole.hexdigest()}
        return found

    def check(self) -> None:
        """Raise `DataError` for a folder that is none, and for one folder as both columns."""
        for column in self.columns:
            if not self._folder(column).is_dir():
                raise DataError(f"{self._folder(column)} is not a folder: name the folder that holds the images")
        if self.base and self.base.resolve() == self.edited.resolve():
            raise DataError(f"{self.base} is both the base's folder and the edited model's: name two folders")

    def check_pairs(self, rows: Sequence[ImageRow]) -> None:
        """Raise `DataError` for an image that cannot be read, or is of another size than the base's of the same row."""
        for row in rows:
            paths = [self._place(row, column) for column in self.columns]
            sizes = [image_size(path) for path in paths]
            if len({*sizes}) > 1:
                told = " and ".join(f"{path} is {w}x{h}" for path, (w, h) in zip(paths, sizes, strict=True))
                raise DataError(f"{told}: give both columns images of one size, else no distance can be measured")

    def _folder(self, column: str) -> Path:
        folder = self.base if column == "base" else self.edited
        assert folder is not None, "no images of the base were given"
        return folder

    def _place(self, row: ImageRow, column: str) -> Path:
        own = self._folder(column) / Path(row.name).name
        others = [own.parent / f"{stem}{ending}" for stem in (own.stem, *row.stems) for ending in ENDINGS]
        return next((path for path in (own, *others) if path.is_file()), own)


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS]


def bases_beside(run: RunDirectory, suite: str) -> tuple[Path, ...]:
    """The base folders of the same suite in the runs beside ``run``, which lie in the same folder."""
    part = run.answers.name if suite == "canvas" else f"{run.answers.name}/{suite}"
    found = sorted(run.folder.resolve().parent.glob(f"*/{part}/base"))
    return tuple(place for place in found if run.folder.resolve() not in place.parents)


def batches(paths: Sequence[Path], size: int = AT_ONCE) -> Iterator[Tensor]:
    """Yield the images (b, 3, H, W) in 0..1 of files in order, so that never all are in memory.

    Images of different sizes are never in one batch. Each file is opened once."""
    for _, alike in groupby(map(read_pixels, paths), key=np.shape):
        while group := list(islice(alike, size)):
            yield as_images(group)


@torch.no_grad()
def looked(judge: Judge, paths: Sequence[Path], among: Sequence[str], clip: ClipModel | None = None) -> Seen:
    """What the judge says of every image, in order. The features are those of ``clip`` if there is one: it looks at
    the same images, which are read once."""
    answers: list[str] = []
    features = []
    for images in batches(paths):
        seen = judge.look(images, among)
        answers += seen.answers
        features.append(clip.encode_images(images.to(clip.device)).cpu() if clip else seen.features)
    return Seen(answers, torch.cat(features))
