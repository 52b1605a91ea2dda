"""Read captioned images from web shards, image folders and UnlearnCanvas folders."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from mu.core.concept import folded
from mu.core.documents import parse_csv, parse_json
from mu.core.errors import ConfigError, DataError, nearest, quoted
from mu.core.files import is_inside, lines, read_text
from mu.core.images import rgb
from mu.data.shards import CAPTIONS, IMAGES, Extent, caption_in, find_paths, image_in, read_shard
from mu.data.unpacked import is_tar_name

METADATA = ("metadata.csv", "metadata.jsonl")

log = logging.getLogger("mu")


class Captioned(Protocol):
    """An image with its caption: a `Pair`, or the renderer's `mu.data.canvas.RenderedPair`."""

    @property
    def caption(self) -> str: ...
    def image(self) -> Image.Image: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """A caption and the place of its image, which is read from disk at each use."""

    key: str
    caption: str
    place: Extent
    ending: str
    """Ending of the image's file name, in lower case: ``.jpg``."""

    def image(self) -> Image.Image:
        """The RGB image in its own size. Raises `DataError` if the file has changed since it was opened."""
        return decode(self.place.read(), str(self.place.file))


class Pairs(list[Pair]):
    """Pairs in an order that depends only on their names.

    ``skipped`` counts unusable entries, and ``reasons`` counts them by reason. ``others`` counts pairs whose caption
    does not contain the wanted name."""

    def __init__(self, pairs: Iterable[Pair] = (), skipped: Mapping[str, int] | None = None):
        super().__init__(pairs)
        self.reasons = Counter(skipped or {})
        self.others = 0

    @property
    def skipped(self) -> int:
        return self.reasons.total()


class _Found(NamedTuple):
    """A possible pair: its caption (text, place or None) and its image (ending and place, or None)."""

    key: str
    caption: str | Extent | None
    image: tuple[str, Extent] | None


def open_pairs(
    source: str | Path | Sequence[str | Path],
    *,
    caption: str | None = None,
    style: str | None = None,
    object: str | None = None,
    limit: int | None = None,
    naming: str = "",
) -> Pairs:
    """The pairs of ``source`` in sorted order. Every image is decoded once, as a check.

    ``source`` is one or several of these, as a list or separated by commas::

        {00000..00010}.tar, shards/*.tar, a folder of tars   <key>.jpg and <key>.txt (web shards; see `mu.data.shards`)
        the same, compressed: .tar.gz, .tar.bz2, ...         unpacked to a temporary folder (see `mu.data.unpacked`)
        a folder with metadata.csv or metadata.jsonl         columns file_name and text (imagefolder of `datasets`), or
                                                             another of `mu.data.shards.CAPTIONS`
        a folder with NAME.txt next to NAME.jpg              at any depth
        a folder <Style>/<Object>/<k>.jpg                    UnlearnCanvas: "A {Object} image in {Style} style."
        a folder of images                                   with ``caption``

    ``caption`` replaces all captions. ``style`` and ``object`` select from an UnlearnCanvas folder; case is
    ignored, and underscores equal spaces. Reading stops after ``limit`` pairs. ``naming`` keeps only pairs whose
    caption contains it (compared in the same way); other images are not opened, and the result is empty if no caption
    matches. Without ``naming`` the result is never empty. Entries without a caption, undecodable or truncated are left
    out, counted and logged. Raises `DataError` for a source that is missing, empty or of another kind, and
    `ConfigError` for ``style`` or ``object`` on another layout.
    """
    pairs = Pairs()
    for path in find_paths(source):
        if len(pairs) == limit:
            break
        if path.is_dir():
            found = _folder(path, pairs.reasons, caption, style, object)
        elif style or object:
            raise ConfigError(f"style and object need an UnlearnCanvas folder, and {path} is a file")
        else:
            found = _shard(path, pairs.reasons)
        readable = _readable(found, caption, folded(naming), pairs)
        pairs.extend(itertools.islice(readable, None if limit is None else limit - len(pairs)))
    told = "; ".join(f"{count} {reason}" for reason, count in sorted(pairs.reasons.items()))
    if not pairs and not pairs.others:
        raise DataError(f"{source} holds no pair of image and caption" + (f": {told}" if told else ""))
    if told:
        log.warning("%s: %d pairs, left out: %s", source, len(pairs), told)
    return pairs


def decode(content: bytes, name: str) -> Image.Image:
    """Decode an RGB image. Raises `DataError` with ``name`` for bytes that are not a complete image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return rgb(image)
    except Exception as error:  # Pillow's decoders raise many types on garbled bytes
        raise DataError(f"the image {name} cannot be read ({error}): remove it") from None


def can_decode(content: bytes) -> bool:
    """Whether `decode` will succeed. JPEGs decode at 1/8 size: all bytes are read, with little arithmetic."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Exception:
        return False
    return True


def _readable(found: Iterable[_Found], caption: str | None, naming: str, pairs: Pairs) -> Iterator[Pair]:
    """Yield the usable pairs; count unusable and not matching ones in ``pairs``."""
    for each in found:
        text = caption if caption is not None else _text(each.caption)
        if not text:
            pairs.reasons["without a caption"] += 1
        elif naming not in folded(text):
            pairs.others += 1
        elif each.image is None:
            pairs.reasons["without a picture"] += 1
        elif not can_decode(each.image[1].read()):
            pairs.reasons["pictures that cannot be read"] += 1
        else:
            ending, place = each.image
            yield Pair(each.key, text, place, ending)


def _text(caption: str | Extent | None) -> str:
    if isinstance(caption, Extent):
        caption = caption.read().decode("utf-8-sig", "replace")
    return (caption or "").strip()


def _shard(file: Path, reasons: Counter[str]) -> Iterator[_Found]:
    shard = read_shard(file)
    if shard.damage:
        log.warning("%s: %s", file, shard.damage)
        reasons["damaged tar"] += 1
    for key, sample in shard.samples.items():
        yield _Found(key, caption_in(sample), image_in(sample))


def _folder(
    folder: Path, reasons: Counter[str], caption: str | None, style: str | None, object: str | None
) -> Iterator[_Found]:
    files = sorted(
        Path(above, name).relative_to(folder)
        for above, below, names in os.walk(folder)
        for name in names
        if not any(part.startswith(".") for part in Path(above, name).relative_to(folder).parts)
    )
    images = [file for file in files if file.suffix.lower() in IMAGES]
    texts = {file for file in files if file.suffix.lower() == ".txt"} & {file.with_suffix(".txt") for file in images}
    metadata = next((folder / name for name in METADATA if Path(name) in files), None)
    cells = not texts and bool(images) and all(len(file.parts) == 3 for file in images)
    if (style or object) and (metadata or not cells):
        raise ConfigError(f"style and object need the layout <Style>/<Object>/<k>.jpg, and {folder} has another")
    if metadata:
        yield from _listed(folder, metadata, reasons)
    elif cells:
        yield from _unlearn_canvas(folder, images, style, object)
    elif images and (texts or caption):
        for file in images:
            beside = file.with_suffix(".txt")
            yield _Found(_key(file), Extent(folder / beside) if beside in texts else None, _image(folder / file))
    elif shards := [folder / file for file in files if is_tar_name(file.name) and len(file.parts) == 1]:
        for shard in shards:
            yield from _shard(shard, reasons)
    elif images:
        raise DataError(
            f"{folder} holds images without captions: "
            "put NAME.txt next to each, add a metadata.csv, or give one caption for all"
        )
    else:
        raise DataError(f"{folder} holds no images and no tar files")


def _unlearn_canvas(folder: Path, images: list[Path], style: str | None, object: str | None) -> Iterator[_Found]:
    for wanted, level, kind in ((style, 0, "style"), (object, 1, "object")):
        if wanted:
            known = sorted({file.parts[level] for file in images})
            images = [file for file in images if folded(file.parts[level]) == folded(wanted)]
            if not images:
                raise DataError(f"{folder} has no {kind} {quoted(wanted)}.{nearest(wanted, known)}")
    # Numeric order: 2.jpg comes before 10.jpg.
    for file in sorted(
        images, key=lambda file: (*file.parts[:2], int(file.stem) if file.stem.isdecimal() else 0, file.name)
    ):
        painted, shown = (part.replace("_", " ") for part in file.parts[:2])
        yield _Found(_key(file), f"A {shown} image in {painted} style.", _image(folder / file))


def _listed(folder: Path, metadata: Path, reasons: Counter[str]) -> Iterator[_Found]:
    """Read a metadata file; unreadable lines are left out. Raises `DataError` for a CSV file without the columns."""
    rows: dict[str, str | None] = {}
    for line in (_table if metadata.suffix == ".csv" else _json_lines)(metadata):
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            reasons["lines that cannot be read"] += 1
        else:
            captions = (line.get(name) for name in ("text", *CAPTIONS))
            rows[line["file_name"]] = next((each for each in captions if isinstance(each, str)), None)
    home = folder.resolve()
    for name, caption in sorted(rows.items()):
        if is_inside(home, name):
            yield _Found(_key(Path(name)), caption, _image(folder / name))
        else:
            yield _Found(name, caption, None)


def _table(file: Path) -> Iterator[dict[str, str] | None]:
    """The rows of a CSV file by column; None for a row with too few or too many values."""
    header, rows = parse_csv(read_text(file), str(file))
    captions = set(CAPTIONS) & set(header)
    missing = [name for name, there in (("file_name", "file_name" in header), ("text", captions)) if not there]
    if missing:
        raise DataError(f"{file} has no column {' and no column '.join(map(quoted, missing))}")
    for _, cells in rows:
        yield dict(zip(header, cells, strict=True)) if len(cells) == len(header) else None


def _json_lines(file: Path) -> Iterator[Any]:
    """The content of each line of a file; None for a line that is not JSON."""
    for line in filter(str.strip, lines(read_text(file))):
        try:
            yield parse_json(line, str(file))
        except DataError:
            yield None


def _key(file: Path) -> str:
    return file.with_suffix("").as_posix()


def _image(file: Path) -> tuple[str, Extent]:
    return file.suffix.lower(), Extent(file)
