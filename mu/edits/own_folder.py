"""Write a folder as a whole, and replace an earlier one only if nothing in it is the user's.

A folder that is written here holds `WRITTEN`, the list of its files with their digests. Only what stands there, and is
as it was written, is ever deleted.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from mu.core.errors import DataError, OutputError
from mu.core.files import PARTIAL, RANDOM, fitting, sha256, usual_modes, write_json
from mu.core.records import read_record

WRITTEN = ".mu-files.json"
"""Name of the list. It is hidden, so that a later merge of the folder does not copy it."""


class Written(BaseModel):
    """The content of `WRITTEN`."""

    format: Literal[1] = 1
    files: dict[str, str]
    """SHA-256 of each file, by its path in the folder."""


def check_own(folder: Path) -> None:
    """Raise `OutputError` that names the first thing in ``folder`` that was not written by `new_folder`."""
    if not (folder / WRITTEN).is_file():
        raise OutputError(f"{folder} was not written by mu, and is not replaced: choose another path")
    try:
        known = read_record(folder / WRITTEN, Written).files
    except DataError as trouble:
        raise OutputError(f"{trouble}; until then {folder} is not replaced: choose another path") from None
    folders = {above.as_posix() for name in known for above in Path(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == WRITTEN or (path.is_dir() and not path.is_symlink() and name in folders):
            continue
        if name not in known:
            raise OutputError(f"{path} was not written by mu, and would be deleted: move it, or choose another path")
        if path.is_symlink() or not path.is_file() or sha256(path) != known[name]:
            raise OutputError(
                f"{path} was changed since mu wrote it, and would be deleted: move it, or choose another path"
            )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to. It replaces ``path`` once the block has succeeded.

    Until then the old folder is whole. Raises `OutputError` as `check_own` does. A killed process leaves folders that
    `recover` knows.
    """
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "new")
    try:
        yield partial
        usual_modes(partial)
        files = sorted(each for each in partial.rglob("*") if each.is_file())
        written = Written(files={each.relative_to(partial).as_posix(): sha256(each) for each in files})
        write_json(partial / WRITTEN, written.model_dump())
        _replace(path, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # not empty, as it is after a success
            for folder in made:
                folder.rmdir()


def recover(path: Path) -> None:
    """Delete what killed processes left of `new_folder` for ``path``; put its old folder back if it was set aside.

    Only for who works alone on ``path``.
    """
    if not path.parent.is_dir():
        return
    left = re.compile(re.escape(f"{PARTIAL}{fitting(path.name, 100)}-") + f"(new|old)-{RANDOM}")
    for folder in sorted(path.parent.iterdir()):
        found = left.fullmatch(folder.name)
        if not found or folder.is_symlink() or not folder.is_dir():
            continue
        if found[1] == "old" and not os.path.lexists(path) and any(folder.iterdir()):
            folder.rename(path)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{PARTIAL}{fitting(path.name, 100)}-{what}-"))


def _replace(path: Path, new: Path) -> None:
    """Rename the folder ``new`` to ``path``. The old one is renamed first, and deleted last."""
    if not path.is_dir():
        new.rename(path)
        return
    check_own(path)  # again: it may have changed while the new one was made
    old = _beside(path, "old")
    try:
        path.rename(old)  # an empty folder is replaced by a rename
        new.rename(path)
    except BaseException:
        with suppress(OSError):  # not empty if the old folder is there
            old.rmdir()
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
