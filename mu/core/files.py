"""Atomic file writes: a killed process leaves the old file or the new one, never half a file. Bounded file reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mu.core.errors import DataError, MuError, OutputError, quoted

LARGEST = 2**28
"""Bytes that a text file may have: 256 MiB, more than the caption lists of a million images."""

PARTIAL = ".partial-"
"""Prefix of a file that is being written."""
RANDOM = "[a-z0-9_]{8}"
"""The end that `tempfile` gives such names, as a regular expression."""
_LEFT = re.compile(re.escape(PARTIAL) + rf".*-{RANDOM}(\.[^.]*)?")


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Turn an `OSError` inside the block into an `OutputError` that names ``place``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write to {place}: {error.strerror or error}") from None


_NO_FILES = (("proc",), ("sys",))
"""The beginnings of folders that are no disk, though some may seem writable."""


def check_writing(path: Path | str) -> None:
    """Raise `OutputError` if the file ``path`` is not writable, without touching the disk: call it before the work."""
    if Path(path).is_dir():
        raise OutputError(f"cannot write to {path}: it is a folder, move it or choose another place")
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not folder.is_dir():
        raise OutputError(f"cannot write to {path}: {folder} is not a folder")
    if folder.resolve().parts[1:2] in _NO_FILES:
        raise OutputError(f"cannot write to {path}: {folder} keeps no files, choose another place")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write to {path}: {folder} is read-only")


def check_folder(path: Path | str) -> None:
    """Raise `OutputError` if no files can be written to the folder ``path``, which need not exist."""
    check_writing(Path(path) / "a file")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder. It becomes ``path`` if the block succeeds, else it is deleted.

    Folders that are made for it are deleted too, if they stay empty. Raises `OutputError` if the folder is not
    writable.
    """
    path = Path(path)
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f"{PARTIAL}{fitting(path.stem, 100)}-", suffix=path.suffix
        )
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with writing(path):
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, as it is after a success
            for folder in made:
                folder.rmdir()


def usual_modes(folder: Path) -> None:
    """Give ``folder`` and all in it the modes of new files. Some libraries write files that others cannot read."""
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_left(path: Path) -> bool:
    """Whether ``path`` is a partial file, of a process that works or was killed."""
    return bool(_LEFT.fullmatch(path.name))


def sweep(folder: Path) -> None:
    """Delete the partial files that killed processes left in ``folder``. Only for who holds its lock."""
    for partial in folder.glob(f"{PARTIAL}*"):
        if is_left(partial):
            with suppress(OSError):
                partial.unlink()


def sweep_beside(path: Path) -> None:
    """Delete the partial files of ``path`` that killed processes left. Only for who works alone on it."""
    left = re.compile(re.escape(f"{PARTIAL}{fitting(path.stem, 100)}-") + RANDOM + re.escape(path.suffix))
    for partial in path.parent.glob(f"{PARTIAL}*"):
        if left.fullmatch(partial.name):
            with suppress(OSError):
                partial.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8. A lone surrogate, which UTF-8 cannot hold, is written escaped."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_regular(
    path: Path | str, what: str = "", *, largest: int | None = None, error: type[MuError] = DataError
) -> None:
    """Raise ``error`` if ``path`` is missing, no file (a folder, FIFO or device) or larger than ``largest`` bytes.

    It does not open ``path``, since opening a FIFO waits for a writer. ``what`` says what the file is for.
    """
    name = f"{what} {path}".strip()
    try:
        state = os.stat(path)
    except FileNotFoundError:
        raise error(f"{name} does not exist") from None
    except ValueError:  # a NUL character
        raise error(f"{what or 'the path'} {quoted(str(path))} is not a file name".strip()) from None
    except OSError as trouble:
        raise error(f"cannot read {name}: {trouble.strerror or trouble}") from None
    if stat.S_ISDIR(state.st_mode):
        raise error(f"cannot read {name}: it is a folder, name a file")
    if not stat.S_ISREG(state.st_mode):
        raise error(f"cannot read {name}: it is a pipe or a device, name a file")
    if largest is not None and state.st_size > largest:
        raise error(f"{name} has {state.st_size} bytes, and at most {largest} can be read: is it the right file?")


def read_bytes(path: Path | str, what: str = "", *, largest: int = LARGEST, error: type[MuError] = DataError) -> bytes:
    """The content of a file. Raises ``error`` as `check_regular` does, and if the file cannot be read."""
    check_regular(path, what, largest=largest, error=error)
    try:
        with open(path, "rb") as stream:
            return stream.read(largest)
    except OSError as trouble:
        raise error(f"cannot read {f'{what} {path}'.strip()}: {trouble.strerror or trouble}") from None


def read_text(path: Path | str, what: str = "", *, largest: int = LARGEST, error: type[MuError] = DataError) -> str:
    """The text of a UTF-8 file, without a byte order mark. Line ends stay as they are; see `lines`.

    Raises ``error`` as `read_bytes` does, and for other encodings and NUL characters.
    """
    name = f"{what} {path}".strip()
    content = read_bytes(path, what, largest=largest, error=error)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as trouble:
        line = len(re.findall(rb"\r\n|\r|\n", content[: trouble.start])) + 1
        raise error(f"{name} is not UTF-8 text (line {line}, byte {trouble.start}): save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(f"{name} is not text: line {line} has a NUL character")
    return text


def lines(text: str) -> list[str]:
    """The lines of ``text``, which end as on any system: in LF, CR LF or CR."""
    return re.split(r"\r\n|\r|\n", text)


def is_inside(home: Path, name: str) -> bool:
    """Whether ``name`` is a file in the folder ``home``, links followed; False for what cannot be a name."""
    try:
        place = (home / name).resolve()
        return place.is_relative_to(home.resolve()) and place.is_file()
    except (OSError, ValueError):
        return False


def slug(text: str) -> str:
    """``text`` for use in a file name: ``pop art!`` -> ``pop-art``. At most 60 characters; may be empty."""
    return re.sub(r"[^\w.]+", "-", text)[:60].strip("-.")


def fitting(stem: str, longest: int = 150) -> str:
    """``stem`` as a file name's stem of at most ``longest`` bytes; a longer one is cut and ends in a hash of the whole.

    File systems allow 255 bytes for a name; mu adds its own beginnings and endings."""
    if len(stem.encode()) <= longest:
        return stem
    digest = hashlib.blake2b(stem.encode(), digest_size=4).hexdigest()
    return stem.encode()[: longest - len(digest) - 1].decode(errors="ignore") + "-" + digest


def write_json(path: Path | str, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of what ``find . -type f | LC_ALL=C sort | xargs sha256sum`` prints in a folder."""
    if not path.is_dir():
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    files = sorted(f"./{below.relative_to(path).as_posix()}" for below in path.rglob("*") if below.is_file())
    return hashlib.sha256("".join(f"{sha256(path / name)}  {name}\n" for name in files).encode()).hexdigest()
