"""CelebA with names (Liu et al., ICCV 2015): portraits, and who is on each.

img_align_celeba/000001.jpg ...
list_identity_celeba.txt        two header lines, then ``000001.jpg First_Last``; its authors give it on request
frequent_celebs.txt             one ``First_Last`` a line, the most frequent first; without it see `CelebA.classified`
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mu.core.errors import DataError

LIST = "list_identity_celeba.txt"
CLASSIFIED = 100
"""As many people as the frequent list of SLUG's experiments has. All 10,177 have 202,599 images."""

log = logging.getLogger("mu")


@dataclass(frozen=True)
class CelebA:
    """``images`` has every listed identity, sorted, with those of its images that are there (of many people, none).

    An identity's place in ``identities`` is its label. Names stand as in the list: ``First_Last``.
    """

    folder: Path
    images: Mapping[str, tuple[Path, ...]]
    frequent: tuple[str, ...]

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(self.images)

    @property
    def classified(self) -> tuple[str, ...]:
        """Those whose images are classified: the frequent ones, and without their list the `CLASSIFIED` with the most images."""
        most = sorted(self.identities, key=lambda name: (-len(self.images[name]), name))[:CLASSIFIED]
        if not self.frequent and len(most) < len(self.identities):
            log.warning(
                "%s: of %d people the %d with the most pictures are tested; published numbers are over those of a frequent_celebs.txt",
                self.folder, len(self.identities), len(most),
            )  # fmt: skip
        return self.frequent or tuple(most)


def read_celeba(folder: Path | str) -> CelebA:
    """Reads the lists, and which images are there; opens no image.

    ``frequent_celebs.txt`` may also lie one folder above; who is in it and not in the list is left out and told in the log.
    Raises `DataError` for a missing folder or list, a list that has another form, and where none of its images is there.
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
        raise DataError(f"{portraits} holds none of the pictures in {listing.name}")
    if missing:
        log.warning("%s: %d listed pictures are not there and are left out", portraits, missing)
    images = {identity: tuple(sorted(found[identity])) for identity in sorted(found)}
    return CelebA(folder, images, _frequent(folder, images))


def _listed(listing: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_lines(listing), start=1):
        words = line.split()
        is_row = len(words) == 2 and "." in words[0]
        if number <= 2 and is_row:
            raise DataError(f"{listing}, line {number}: two header lines come before the first picture")
        if number > 2 and words and not is_row:
            raise DataError(f"{listing}, line {number}: {line.strip()!r} is not '<picture> <First_Last>'")
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
        log.warning("%s: %d names are not in %s, like %s", file, len(strangers), LIST, strangers[0])
    return tuple(name for name in names if name in known)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
