"""CelebA with names (Liu et al., ICCV 2015): portraits and their identities.

img_align_celeba/000001.jpg ...
list_identity_celeba.txt        two header lines, then ``000001.jpg First_Last``; on request from its authors
frequent_celebs.txt             one ``First_Last`` per line, the most frequent first; optional, see `CelebA.classified`
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mu.core.errors import DataError, quoted
from mu.core.files import lines, read_text

LIST = "list_identity_celeba.txt"
CLASSIFIED = 100
"""Number of people in the frequent list of SLUG's experiments. All 10,177 people have 202,599 images."""

log = logging.getLogger("mu")


@dataclass(frozen=True)
class CelebA:
    """``images`` maps every listed identity, sorted, to its existing images (for many people, none).

    An identity's index in ``identities`` is its label. Names are spelt as in the list: ``First_Last``.
    """

    folder: Path
    images: Mapping[str, tuple[Path, ...]]
    frequent: tuple[str, ...]

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(self.images)

    @property
    def classified(self) -> tuple[str, ...]:
        """Identities to classify: the frequent list, or without one the `CLASSIFIED` with the most images."""
        most = sorted(self.identities, key=lambda name: (-len(self.images[name]), name))[:CLASSIFIED]
        if not self.frequent and len(most) < len(self.identities):
            log.warning(
                "%s: of %d people the %d with the most images are tested; published numbers use a frequent_celebs.txt",
                self.folder,
                len(self.identities),
                len(most),
            )
        return self.frequent or tuple(most)


def read_celeba(folder: Path | str) -> CelebA:
    """Read the lists and find the existing images, without opening any.

    ``frequent_celebs.txt`` may also be one folder above; its names that are not in the list are left out and logged.
    Raises `DataError` for a missing folder or list, a list of another format, or if none of its images exists.
    """
    folder = Path(folder)
    listing, portraits = folder / LIST, folder / "img_align_celeba"
    if not listing.is_file():
        raise DataError(f"{listing} does not exist: the list with names comes from CelebA's authors, on request")
    if not portraits.is_dir():
        raise DataError(f"{portraits} does not exist: unpack img_align_celeba.zip there")
    there, missing = set(os.listdir(portraits)), 0
    found: dict[str, list[Path]] = {}
    for file, identity in _listed(listing):
        found.setdefault(identity, [])
        if file in there:
            found[identity].append(portraits / file)
        else:
            missing += 1
    if not any(found.values()):
        raise DataError(f"{portraits} holds none of the images in {listing.name}: unpack img_align_celeba.zip there")
    if missing:
        log.warning("%s: %d listed images are missing and left out", portraits, missing)
    images = {identity: tuple(sorted(found[identity])) for identity in sorted(found)}
    return CelebA(folder, images, _frequent(folder, images))


def _listed(listing: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_lines(listing), start=1):
        words = line.split()
        is_row = len(words) == 2 and "." in words[0]
        if number <= 2 and is_row:
            raise DataError(f"{listing}, line {number}: two header lines must come before the first image")
        if number > 2 and words and not is_row:
            raise DataError(f"{listing}, line {number}: {quoted(line.strip())} is not '<image> <First_Last>'")
        if number > 2 and words:
            rows.append((words[0], words[1]))
    return rows


def _frequent(folder: Path, known: Mapping[str, object]) -> tuple[str, ...]:
    places = [place / "frequent_celebs.txt" for place in (folder, folder.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return ()
    names = list(dict.fromkeys(line.strip() for line in _lines(file) if line.strip()))
    strangers = [name for name in names if name not in known]
    if strangers:
        log.warning("%s: %d names are not in %s and left out, such as %s", file, len(strangers), LIST, strangers[0])
    return tuple(name for name in names if name in known)


def _lines(file: Path) -> list[str]:
    return lines(read_text(file))
