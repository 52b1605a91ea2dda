"""Web shards: tar files of ``<key>.jpg``, ``<key>.txt`` and the like, as img2dataset and webdataset write them.

Only the headers of a shard are read for its index; the content of a sample is read on demand.
"""

from __future__ import annotations

import glob
import io
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mu.core.documents import parse_json
from mu.core.errors import DataError, quoted
from mu.core.files import check_regular
from mu.data.unpacked import is_tar_name, unpacked

IMAGES = (".jpg", ".png", ".jpeg", ".webp")
CAPTIONS = ("caption", "TEXT", "text", "prompt")
"""Names under which tables and JSON hold a caption. img2dataset writes the first; its input lists have others."""
LARGEST_CAPTION = 2**20
"""Bytes of a ``.txt`` or ``.json`` that may hold a caption."""

MOST_BRACES = 20
_BLOCK = tarfile.BLOCKSIZE
_ZIP = b"PK\x03\x04"

log = logging.getLogger("mu")


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range: ``size`` bytes from ``offset``; by default the whole file."""

    file: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Read the bytes. Raises `DataError` for what is missing, unreadable or no file."""
        check_regular(self.file)
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
        tars = sorted(each for each in path.glob("*") if is_tar_name(each.name)) if path.is_dir() else [path]
        others = sorted(each.name for each in path.glob("*") if re.search(r"\.tar\.\w+$|\.zip$", each.name))
        unread = [name for name in others if not is_tar_name(name)]
        if not tars:
            told = f", only archives of other kinds such as {unread[0]}: unpack them first" if unread else ""
            raise DataError(f"{path} holds no tar files{told}")
        if unread:
            log.warning("%s: %d archives of other kinds are not read, such as %s", path, len(unread), unread[0])
        shards += tars
    return list(dict.fromkeys(shards))


def find_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files and folders named by ``source``: paths, ``{00000..00010}.tar``, ``{a,b}.tar``, globs, comma-separated.

    Braces and lists keep their order, globs are sorted, and duplicates are dropped. Raises `DataError` if a named file
    does not exist, which includes every name in braces; if a glob matches nothing; or if ``source`` is empty.
    """
    found: dict[Path, None] = {}
    for part in _parts(source):
        for name in [part] if _exists(part) else _expanded(part):
            if glob.has_magic(name) and not _exists(name):
                matches = sorted(glob.glob(name))
                if not matches:
                    raise DataError(f"no file matches {name[:200]}")
                found.update((Path(match), None) for match in matches)
            elif not _exists(name):
                raise DataError(
                    f"{name[:200]} does not exist" + ("; use * for existing files only" if name != part else "")
                )
            else:
                found[Path(name)] = None
    if not found:
        raise DataError("no data is given: name a folder, or shards like 'laion400m/{00000..00010}.tar'")
    return list(found)


def read_shard(file: Path) -> Shard:
    """Index ``file``. A key is a member's name up to the first dot after its folders, as in webdataset.

    An image and a caption whose names differ in the last ending alone are a sample of their own, also if their names
    have more dots: ``a.v2.jpg`` and ``a.v2.txt`` have the key ``a.v2``. Members of one sample need not be adjacent.
    Damage raises nothing; it is reported in `Shard.damage`. A file that is not a tar has no samples. A compressed tar
    is unpacked first (see `mu.data.unpacked`).
    """
    try:
        check_regular(file)
        start = Extent(file, 0, 6).read()
        if start.startswith(_ZIP):
            return Shard(file, {}, "it is a zip file: unpack it first")
        packed = unpacked(file, start)
    except (DataError, OSError) as error:
        return Shard(file, {}, str(error))
    samples, damage = _indexed(packed.file if packed else file)
    return Shard(file, samples, (packed.damage if packed else "") or damage)


def _indexed(file: Path) -> tuple[dict[str, dict[str, Extent]], str | None]:
    """The samples of a plain tar, and its damage."""
    found: dict[str, dict[str, Extent]] = {}
    damage, end = None, 0
    try:
        length = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                folders, slash, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                middle, _, last = f".{ending}".rpartition(".")
                whole = 0 <= member.size <= length - member.offset_data
                if member.isreg() and not member.issparse() and stem and dot and whole:
                    extent = Extent(file, member.offset_data, member.size)
                    found.setdefault(folders + slash + stem, {})[f"{middle}.{last.lower()}"] = extent
        if Extent(file, end, _BLOCK).read() != bytes(_BLOCK):  # tarfile stops silently at a garbled header
            damage = f"cut short or garbled after byte {min(end, length)}"
    except (tarfile.TarError, DataError, OSError) as error:
        damage = str(error)
    except (ValueError, OverflowError):  # tarfile on headers with absurd numbers or names
        damage = f"garbled after byte {end}"
    samples = dict(pair for key, sample in found.items() for pair in _samples(key, sample))
    return dict(sorted(samples.items())), damage


def _samples(key: str, sample: dict[str, Extent]) -> Iterator[tuple[str, dict[str, Extent]]]:
    """Yield ``sample`` without the images and captions whose names have more dots, and those as their own samples."""
    dotted: dict[str, dict[str, Extent]] = {}
    for ending, extent in sample.items():
        middle, _, last = ending.rpartition(".")
        dotted.setdefault(middle, {})[f".{last}"] = extent
    rest = dict(sample)
    for middle, own in dotted.items():
        if middle and image_in(own) and has_caption(own):
            yield key + middle, own
            rest = {ending: extent for ending, extent in rest.items() if ending.rpartition(".")[0] != middle}
    if rest:
        yield key, rest


def has_caption(sample: Mapping[str, Extent]) -> bool:
    """Whether `caption_in` looks for a caption."""
    return ".txt" in sample or ".json" in sample


def caption_in(sample: Mapping[str, Extent]) -> str | None:
    """The caption of a sample: its ``.txt``, or without one a name of `CAPTIONS` in its ``.json``. None without one."""
    place = sample.get(".txt") or sample.get(".json")
    if place is None or place.size > LARGEST_CAPTION:
        return None
    text = place.read().decode("utf-8-sig", "replace")
    if ".txt" in sample:
        return text
    try:
        content = parse_json(text, str(place.file))
    except DataError:
        return None
    found = [content[name] for name in CAPTIONS if name in content] if isinstance(content, dict) else []
    return next((each for each in found if isinstance(each, str)), None)


def image_in(sample: Mapping[str, Extent]) -> tuple[str, Extent] | None:
    """The ending and byte range of a sample's image; None without one."""
    return next(((ending, sample[ending]) for ending in IMAGES if ending in sample), None)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with time 0, owner 0 and no user name, so the archive reveals nothing about this machine."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _exists(path: str) -> bool:
    """False also for what cannot be a path: too long, or with a NUL character."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _parts(source: str | Path | Sequence[str | Path]) -> Iterator[str]:
    for each in [source] if isinstance(source, str | Path) else source:
        text = str(each)
        if text.count("{") > MOST_BRACES:
            raise DataError(f"{quoted(text)} has more than {MOST_BRACES} braces: use * in place of some")
        commas = r",(?![^{]*\})"  # except inside braces
        yield from [text] if _exists(text) else filter(None, map(str.strip, re.split(commas, text)))


def _expanded(pattern: str) -> Iterator[str]:
    """Expand braces: ``{8..10}`` counts and keeps leading zeros; ``{a,b}`` lists."""
    braces = re.search(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}", pattern)
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
