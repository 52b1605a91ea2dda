"""Atomic file writes: a killed process leaves the old file or the new one, never half a file."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mu.core.errors import OutputError

PARTIAL = ".partial-"
"""Prefix of a file that is being written."""


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Turn an `OSError` inside the block into an `OutputError` that names ``place``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write to {place}: {error.strerror or error}") from None


def check_writing(path: Path | str) -> None:
    """Raise `OutputError` if ``path`` is not writable, without touching the disk: call it before hours of work."""
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not folder.is_dir():
        raise OutputError(f"cannot write to {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write to {path}: {folder} is read-only")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder. It becomes ``path`` if the block succeeds, else it is deleted.

    Raises `OutputError` if the folder is not writable.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}{path.stem[:60]}-", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with writing(path):
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sweep(folder: Path) -> None:
    """Delete the partial files that killed processes left in ``folder``. Only for who holds its lock."""
    for partial in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            partial.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8. A lone surrogate, which UTF-8 cannot hold, is written escaped."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def slug(text: str) -> str:
    """``text`` for use in a file name: ``pop art!`` -> ``pop-art``. At most 60 characters; may be empty."""
    return re.sub(r"[^\w.]+", "-", text)[:60].strip("-.")


def write_json(path: Path | str, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
