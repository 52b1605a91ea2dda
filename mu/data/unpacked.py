"""Compressed tars. Only a plain tar can be read in part, so they are unpacked to a temporary folder of this process."""

from __future__ import annotations

import atexit
import bz2
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mu.core.errors import DataError

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Endings of the names of tars, plain and compressed, in lower case."""
MOST_TIMES = 50
"""A file that becomes larger than this many times its size is no archive of images: they hardly compress."""
SMALL = 2**28
"""Bytes up to which any file may grow: 256 MiB."""
_BLOCK = 2**20


class Unpacked(NamedTuple):
    """A plain tar. ``damage`` says why it is cut short; it is empty for a whole one."""

    file: Path
    damage: str


def _zstandard(file: Path) -> Any:
    try:
        library = import_module("zstandard")
    except ImportError:
        raise DataError("it is a compressed tar (zstandard): pip install zstandard, or unpack it first") from None
    return library.open(file, "rb")


_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
"""Functions that open a compressed file, by the bytes that it begins with, whatever its name is."""


def is_tar_name(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def stem_of(name: str) -> str:
    """``name`` without the ending of a tar: ``00000.tar.gz`` -> ``00000``."""
    ending = next((each for each in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(each)), "")
    return name[: len(name) - len(ending)] if ending else Path(name).stem


def unpacked(file: Path, start: bytes) -> Unpacked | None:
    """The tar in the compressed ``file``, which begins with ``start``; None for another kind of file.

    It is unpacked once, as long as it does not change. What is cut short is unpacked as far as it can be. Raises
    `DataError` for zstandard without the package of that name.
    """
    if not any(start.startswith(magic) for magic in _OPENERS):
        return None
    state = file.stat()
    return _unpacked(file.resolve(), state.st_mtime_ns, state.st_size)


@cache
def _unpacked(file: Path, _: int, size: int) -> Unpacked:
    with file.open("rb") as stream:
        start = stream.read(6)
    opened = next(opener for magic, opener in _OPENERS.items() if start.startswith(magic))(file)
    place = Path(tempfile.mkdtemp(dir=_folder())) / file.name
    written, largest, damage = 0, max(SMALL, MOST_TIMES * size), ""
    with opened, place.open("wb") as plain:
        try:
            while block := opened.read(_BLOCK):
                written += len(block)
                if written > largest:
                    damage = f"it unpacks to more than {largest} bytes, {MOST_TIMES} times its size: unpack it first"
                    break
                plain.write(block)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            damage = f"cut short or garbled after byte {written} of what is in it ({error})"
        except Exception as error:  # the errors of zstandard are known only where it is installed
            damage = f"cut short or garbled ({type(error).__name__})"
    return Unpacked(place, damage)


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="mu-tars-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
