"""Web shards: tar files of ``<key>.jpg``, ``<key>.txt`` and the like, as img2dataset and webdataset write them.

Only the headers of a shard are read for its index; the content of a sample is read on demand.
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
    """A byte range: ``size`` bytes from ``offset``; by default the whole file."""

    file: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Read the bytes. Raises `DataError` for a file that is missing or unreadable."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise DataError(f"cannot read {self.file}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Shard:
    """The samples of one tar file, sorted by key; each maps endings (``.jpg``, in lower case) to byte ranges.

    ``damage`` names the byte where the file is cut short or garbled; earlier samples are complete.
    """

    file: Path
    samples: dict[str, dict[str, Extent]]
    damage: str | None


def find_shards(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """`find_paths`, with each folder replaced by its tar files. Raises `DataError` for a folder without any."""
    shards: list[Path] = []
    for path in find_paths(source):
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not tars:
            raise DataError(f"{path} holds no tar files")
        shards += tars
    return list(dict.fromkeys(shards))


def find_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files and folders named by ``source``: paths, ``{00000..00010}.tar``, ``{a,b}.tar``, globs, comma-separated.

    Braces and lists keep their order, globs are sorted, and duplicates are dropped. Raises `DataError` if a named file
    does not exist, which includes every name in braces; if a glob matches nothing; or if ``source`` is empty.
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
                raise DataError(f"{name} does not exist" + ("; use * for existing files only" if name != part else ""))
            else:
                found[Path(name)] = None
    if not found:
        raise DataError("no data is given: name a folder, or shards like 'laion400m/{00000..00010}.tar'")
    return list(found)


def read_shard(file: Path) -> Shard:
    """Index ``file``. A key is a member's name up to the first dot after its folders, as in webdataset.

    Members of one sample need not be adjacent. Damage raises nothing; it is reported in `Shard.damage`. A file that is
    compressed or not a tar has no samples.
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
        if Extent(file, end, _BLOCK).read() != bytes(_BLOCK):  # tarfile stops silently at a garbled header
            damage = f"cut short or garbled after byte {min(end, length)}"
    except (tarfile.TarError, DataError, OSError) as error:
        damage = str(error)
    return Shard(file, dict(sorted(found.items())), damage)


def image_in(sample: dict[str, Extent]) -> tuple[str, Extent] | None:
    """The ending and byte range of a sample's image; None without one."""
    return next(((ending, sample[ending]) for ending in IMAGES if ending in sample), None)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with time 0, owner 0 and no user name, so the archive reveals nothing about this machine."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _parts(source: str | Path | Sequence[str | Path]) -> Iterator[str]:
    for each in [source] if isinstance(source, str | Path) else source:
        text = str(each)
        commas = r",(?![^{]*\})"  # except inside braces
        yield from [text] if Path(text).exists() else filter(None, map(str.strip, re.split(commas, text)))


def _expanded(pattern: str) -> Iterator[str]:
    """Expand braces: ``{8..10}`` counts and keeps leading zeros; ``{a,b}`` lists."""
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
