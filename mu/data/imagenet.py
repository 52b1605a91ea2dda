"""ImageNet's validation images: ``val/<wnid>/*.JPEG``. A class's index in the sorted wnids is its label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mu.core.errors import DataError
from mu.core.files import read_text

NAME_FILES = ("classes.txt", "LOC_synset_mapping.txt")
SHIPPED = Path(__file__).with_name("imagenet_classes.txt")
"""``<wnid> <name>`` of the thousand classes of ImageNet 2012, with the names that CLIP is measured with."""
_IMAGES = {".jpeg", ".jpg", ".png"}


@dataclass(frozen=True)
class ImageNet:
    """``images[i]`` has label ``labels[i]``; ``names`` and ``wnids`` are in the order of the labels."""

    images: tuple[Path, ...]
    labels: tuple[int, ...]
    wnids: tuple[str, ...]
    names: tuple[str, ...]

    def subset(self, part: int = 20) -> ImageNet:
        """The fixed 5 % (``part`` = 20) that SLUG evaluates on: 2,500 of 50,000, in drawn order, at least one image."""
        rows = subset_rows(len(self.images), part)
        return ImageNet(
            tuple(self.images[r] for r in rows), tuple(self.labels[r] for r in rows), self.wnids, self.names
        )


def subset_rows(n: int, part: int = 20) -> NDArray[np.int64]:
    """``max(n // part, 1)`` distinct indices of 0 .. n-1, from numpy's legacy generator (frozen stream) with seed 0."""
    return np.random.RandomState(0).choice(range(n), max(n // part, 1), replace=False)


def read_imagenet(folder: Path | str, names: Sequence[str] | None = None) -> ImageNet:
    """Find the images of ``folder/val`` (or of ``folder``, if that holds the classes) without opening them.

    ``names`` are the class names in the order of the wnids. By default they come from the folder's ``classes.txt`` (one
    name per line in that order, or ``<wnid> <name>``), else from ``LOC_synset_mapping.txt`` (``<wnid> <name>, <other
    name>, ...``; the first is used), else from `SHIPPED`. Raises `DataError` if there are no images, or if a class has
    no name.
    """
    folder = Path(folder)
    home = folder / "val" if (folder / "val").is_dir() else folder
    if not home.is_dir():
        raise DataError(f"{home} does not exist: give the folder that holds val/<wnid>/*.JPEG")
    classes = {
        place.name: images
        for place in sorted(home.iterdir())
        if place.is_dir() and (images := sorted(file for file in place.iterdir() if file.suffix.lower() in _IMAGES))
    }
    if not classes:
        raise DataError(f"{home} holds no <wnid>/*.JPEG: sort the validation images into one folder per class")
    wnids = tuple(classes)
    names = tuple(_names(folder, home, wnids) if names is None else names)
    if len(names) != len(wnids):
        raise DataError(f"{len(names)} class names for {len(wnids)} classes: give one per class in wnid order")
    rows = [(image, label) for label, images in enumerate(classes.values()) for image in images]
    return ImageNet(tuple(image for image, _ in rows), tuple(label for _, label in rows), wnids, names)


def _names(folder: Path, home: Path, wnids: tuple[str, ...]) -> Sequence[str]:
    places = [place / name for name in NAME_FILES for place in (folder, home, home.parent)]
    file = next((place for place in places if place.is_file()), SHIPPED)
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    pairs = [re.match(r"(n\d{8})\s+(.+)", line) for line in lines]
    if not all(pairs):
        return lines
    known = {pair[1]: pair[2] for pair in pairs if pair}
    if file.name == NAME_FILES[1]:
        known = {wnid: name.partition(",")[0] for wnid, name in known.items()}
    missing = [wnid for wnid in wnids if wnid not in known]
    if missing:
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        if file is SHIPPED:
            raise DataError(
                f"{missing[0]}{others} in {home}: no class of ImageNet 2012. "
                f"Put {' or '.join(NAME_FILES)} into {folder}"
            )
        raise DataError(f"{file} has no name for {missing[0]}{others}")
    return [known[wnid] for wnid in wnids]
