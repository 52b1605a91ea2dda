"""Forget sets: pairs that show a concept, from web shards or given images, as ``<Name_With_Underscores>.tar``.

Equal input gives equal bytes. Images keep their bytes, with no new encoding, and a set holds no image twice.
"""

from __future__ import annotations

import filecmp
import glob
import hashlib
import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mu.core.concept import Concept, folded
from mu.core.errors import ConfigError, DataError, OutputError
from mu.core.files import atomic_path, check_writing, writing
from mu.data.pairs import Pair, can_decode
from mu.data.shards import CAPTIONS, add_member, caption_in, find_shards, image_in, read_shard
from mu.data.unpacked import stem_of

Progress = Callable[[int, int], None]
"""Called with (finished shards, all shards)."""

log = logging.getLogger("mu")


@dataclass
class ForgetSet:
    """Counts for the file ``path``. After a search of shards, ``matched`` is ``pairs + repeated + skipped``.

    ``seen``: captions read; ``repeated``: images already in the set, byte for byte; ``skipped``: images missing or
    undecodable; ``passed_over``: shards not opened, because no caption in their parquet file matches.
    """

    path: Path
    pairs: int = 0
    seen: int = 0
    matched: int = 0
    repeated: int = 0
    skipped: int = 0
    shards: int = 0
    passed_over: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def forget_set_path(name: str, folder: Path | str) -> Path:
    """``Elon Musk`` and ``Elon_Musk`` are both ``folder/Elon_Musk.tar`` (see `mu.core.concept.Concept.file_stem`)."""
    return Path(folder) / f"{Concept.named(name).file_stem}.tar"


def make_forget_set(
    name: str,
    shards: str | Path | Sequence[str | Path],
    out: Path | str,
    n_imgs: int = 500,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ForgetSet:
    """Write the first ``n_imgs`` pairs of ``shards`` whose caption contains ``name`` to ``out/<Name>.tar``.

    Case is ignored, and underscores equal blanks. If a shard has a ``.parquet`` of the same name (needs pyarrow), its
    captions are searched first, and the shard is opened only if one matches. An image is read only if
    its caption in the tar matches. ``shards`` is what `mu.data.shards.find_shards` accepts. Raises `DataError` if no
    usable pair matches, `ConfigError` for a count below 1, and `OutputError` if the file exists with other content
    (``overwrite`` replaces it).
    """
    made = ForgetSet(forget_set_path(name, out))
    unread = _Unread()
    pairs = _matching(folded(name), find_shards(shards), made, unread, progress)
    _write(made, pairs, n_imgs, overwrite, unread)
    if made.pairs < n_imgs:
        log.warning("found only %d of %d images: search more shards", made.pairs, n_imgs)
    return made


def unpack(tar: Path, folder: Path) -> Path:
    """Write the members of a forget set as files of ``folder``, in place of those of an earlier one."""
    with writing(folder), tarfile.open(tar) as members:
        folder.mkdir(parents=True, exist_ok=True)
        files = {member.name: members.extractfile(member) for member in members if member.isfile()}
        stem = next(iter(files)).rpartition("_")[0]
        for stale in folder.glob(f"{glob.escape(stem)}_[0-9]*"):
            if stale.name not in files:
                stale.unlink()
        for name, content in files.items():
            with atomic_path(folder / Path(name).name) as partial:
                partial.write_bytes(content.read() if content else b"")
    return folder


def pack_forget_set(name: str, pairs: Sequence[Pair], out: Path | str, *, overwrite: bool = False) -> ForgetSet:
    """Write all ``pairs``, whatever their captions, to ``out/<Name>.tar``. Raises as `make_forget_set` does."""
    made = ForgetSet(forget_set_path(name, out), seen=len(pairs), matched=len(pairs))
    _write(made, pairs, max(1, len(pairs)), overwrite)
    return made


@dataclass
class _Unread:
    """What shards hold in place of captions: damage, and members of other endings."""

    damage: str = ""
    endings: Counter[str] = field(default_factory=Counter)

    def told(self) -> str:
        """Why no caption was found; empty if nothing is known."""
        if self.damage:
            return self.damage
        common = ", ".join(ending[:40] for ending, _ in self.endings.most_common(6))
        where = "a caption is KEY.txt, or 'caption' in KEY.json, with the KEY of its image"
        return f"no captions, the names of the members end in {common}: {where}" if common else ""


def _matching(
    name: str, shards: list[Path], made: ForgetSet, unread: _Unread, progress: Progress | None
) -> Iterator[Pair]:
    for done, file in enumerate(shards, start=1):
        made.shards += 1
        captions = _parquet_captions(file.with_name(f"{stem_of(file.name)}.parquet"))
        if captions is not None and not any(name in folded(caption) for caption in captions):
            made.seen += len(captions)
            made.passed_over += 1
        else:
            shard = read_shard(file)
            if shard.damage:
                log.warning("%s: %s", file, shard.damage)
                unread.damage = unread.damage or f"{file}: {shard.damage}"
            for key, sample in shard.samples.items():
                caption = caption_in(sample)
                if caption is None:
                    unread.endings.update(sample.keys())
                    continue
                made.seen += 1
                if name not in folded(caption):
                    continue
                made.matched += 1
                if image := image_in(sample):
                    yield Pair(key, caption, image[1], image[0])
                else:
                    made.skipped += 1
        if progress:
            progress(done, len(shards))


def _parquet_captions(file: Path) -> list[str] | None:
    """The captions of the downloaded pairs; None if the tar must be read instead."""
    if not file.is_file():
        return None
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None
    try:
        columns = parquet.read_schema(file).names
        column = next((name for name in CAPTIONS if name in columns), None)
        if column is None:
            return None
        table = parquet.read_table(file, columns=[column, *(["status"] if "status" in columns else [])]).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        log.warning("%s cannot be read (%s): reading the tar instead", file, str(error).partition("\n")[0])
        return None
    status = table.get("status") or ["success"] * len(table[column])
    return [caption for caption, state in zip(table[column], status, strict=True) if caption and state == "success"]


def _write(made: ForgetSet, pairs: Iterable[Pair], n_imgs: int, overwrite: bool, unread: _Unread | None = None) -> None:
    """Write members ``<Name>_00000.jpg`` and ``.txt``. Keys have no dot: shard readers start the ending there."""
    if n_imgs < 1:
        raise ConfigError(f"a forget set needs at least 1 image, not {n_imgs}")
    check_writing(made.path)
    key, known = made.path.stem.replace(".", "_"), set[bytes]()
    with atomic_path(made.path) as partial:
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
            for pair in pairs:
                content = pair.place.read()
                digest = hashlib.sha256(content).digest()
                if digest in known:
                    made.repeated += 1
                elif not can_decode(content):
                    made.skipped += 1
                else:
                    known.add(digest)
                    add_member(tar, f"{key}_{made.pairs:05d}{pair.ending}", content)
                    add_member(tar, f"{key}_{made.pairs:05d}.txt", pair.caption.encode())
                    made.pairs += 1
                if made.pairs == n_imgs:
                    break
        if not made.pairs:
            told = f"of {made.seen} captions {made.matched} match, and {made.skipped} of their images are unusable"
            why = unread.told() if unread and not made.seen else ""
            raise DataError(f"no images for {made.path.name}: {why or told}")
        if made.path.exists() and not overwrite and not filecmp.cmp(partial, made.path, shallow=False):
            raise OutputError(f"{made.path} exists with other content: choose another folder, or overwrite it")
