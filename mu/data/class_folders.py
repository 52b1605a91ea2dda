"""Images of the user's own, in a folder for each class: ``FOLDER/<class>/*.jpg``, like ``pets/tabby_cat/1.png``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mu.core.concept import folded
from mu.core.errors import DataError, quoted
from mu.data.shards import IMAGES


@dataclass(frozen=True)
class ClassFolders:
    """``images[i]`` has label ``labels[i]``; ``names`` are in the order of the labels."""

    images: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    digest: str
    """Eight hex digits of the files' names and sizes."""


def read_classes(folder: Path | str) -> ClassFolders:
    """Find the images of each class without opening them. Underscores in a folder's name are blanks in the class's.

    Folders without images are no classes; hidden ones and other files are ignored. Raises `DataError` for a folder that
    is missing, has fewer than two classes, or two of one name."""
    home = Path(folder)
    if not home.is_dir():
        raise DataError(f"{home} does not exist: give the folder that holds a folder of images for each class")
    found: dict[str, list[Path]] = {}
    for place in sorted(home.iterdir()):
        images = _images(place) if place.is_dir() and not place.name.startswith(".") else []
        if images:
            name = " ".join(place.name.replace("_", " ").split())
            if twice := next((each for each in found if folded(each) == folded(name)), None):
                raise DataError(f"{home} has two folders of the class {quoted(twice)}: put their images into one")
            found[name] = images
    if len(found) < 2:
        raise DataError(
            f"{home} has {len(found)} folders with images ({', '.join(IMAGES)}): two classes or more are needed, "
            f"as {home.name}/<class>/<image>"
        )
    every = [(path, label) for label, images in enumerate(found.values()) for path in images]
    told = "\n".join(f"{path.relative_to(home).as_posix()} {path.stat().st_size}" for path, _ in every)
    digest = hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:8]
    return ClassFolders(tuple(path for path, _ in every), tuple(label for _, label in every), tuple(found), digest)


def _images(place: Path) -> list[Path]:
    return sorted(file for file in place.iterdir() if file.suffix.lower() in IMAGES and file.is_file())
