"""Web shards: tar files of ``<key>.jpg``, ``<key>.txt`` and the like, as img2dataset and webdataset write them.

A shard is indexed by its headers alone; what a sample holds is read from its place in the file when it is wanted.
"""

from __future__ import annotations

import glob
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mu.core.errors import DataError

IMAGES = (".jpg", ".png", ".jpeg", ".webp")
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Extent:
    """Where bytes lie: ``size`` of them from ``offset``; without a size the whole file."""

    file: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Raises `DataError` for a file that is gone or cannot be read."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise DataError(f"cannot read {self.file}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Shard:
    """The samples of one tar file by key, sorted; each maps endings (``.jpg``, in lower case) to where the bytes lie.

    ``damage`` says where the file is cut short or garbled; the samples before that place are whole.
    """

    file: Path
    samples: dict[str, dict[str, Extent]]
    damage: str | None


def find_shards(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """`find_paths`, with a folder standing for the tar files in it. Raises `DataError` for a folder without any."""
    shards: list[Path] = []
    for path in find_paths(source):
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not tars:
            raise DataError(f"{path} holds no tar files")
        shards += tars
    return list(dict.fromkeys(shards))


def find_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files and folders that ``source`` names: paths, ``{00000..00010}.tar``, ``{a,b}.tar``, globs, several with commas between.

    Braces and lists keep their order, a glob is sorted, a path named twice comes once. Raises `DataError` for a name without
    a file, also where braces name more than is there (a glob takes what is there), and where nothing is named.
    """
    found: dict[Path, None] = {}
    for part in _parts(source):
        for name in [part] if Path(part).exists() else _expanded(part):
            if glob.has_magic(name) and not Path(name).exists():
                matches = sorted(glob.glob(name))
                if not matches:
                    raise DataError(f"no file matches {name}")
                found.update((Path(match), None) for match in matches)
            elif not Path(name).exists():
                raise DataError(f"{name} does not exist" + ("; use * for those that are there" if name != part else ""))
            else:
                found[Path(name)] = None
    if not found:
        raise DataError("no data is named: give a folder, or shards like 'laion400m/{00000..00010}.tar'")
    return list(found)


def read_shard(file: Path) -> Shard:
    """Index ``file``. A key is a member's name up to the first dot after its folders, as webdataset has it.

    Members are found wherever they lie in the tar. Raises nothing for damage: it is told in `Shard.damage`; a file that is no
    tar at all, or a compressed one, has no samples.
    """
    found: dict[str, dict[str, Extent]] = {}
    damage, end = None, 0
    try:
        length = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                folders, slash, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                whole = member.offset_data + member.size <= length
                if member.isreg() and not member.issparse() and stem and dot and whole:
                    extent = Extent(file, member.offset_data, member.size)
                    found.setdefault(folders + slash + stem, {})["." + ending.lower()] = extent
        if Extent(file, end, _BLOCK).read() != bytes(_BLOCK):  # tarfile ends at a garbled header without a word
            damage = f"cut short or garbled after byte {min(end, length)}"
    except (tarfile.TarError, DataError, OSError) as error:
        damage = str(error)
    return Shard(file, dict(sorted(found.items())), damage)


def image_in(sample: dict[str, Extent]) -> tuple[str, Extent] | None:
    """The ending and the place of a sample's image."""
    return next(((ending, sample[ending]) for ending in IMAGES if ending in sample), None)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A fresh `TarInfo` has time 0, owner 0 and no user name: nothing of this machine enters the archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _parts(source: str | Path | Sequence[str | Path]) -> Iterator[str]:
    for each in [source] if isinstance(source, str | Path) else source:
        text = str(each)
        commas = r",(?![^{]*\})"  # not those inside braces
        yield from [text] if Path(text).exists() else filter(None, map(str.strip, re.split(commas, text)))


def _expanded(pattern: str) -> Iterator[str]:
    """``{8..10}`` counts, with the zeros that are written; ``{a,b}`` lists."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not braces:
        yield pattern
        return
    first, last, listed = braces.groups()
    if listed is None:
        numbers = range(int(first), int(last) + 1) or range(int(first), int(last) - 1, -1)
        width = max(len(first), len(last)) if any(re.match("0.", end) for end in (first, last)) else 0
    words = (f"{number:0{width}d}" for number in numbers) if listed is None else listed.split(",")
    for word in words:
        yield from _expanded(pattern[: braces.start()] + word + pattern[braces.end() :])
