"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mu.core.errors import OutputError
from mu.core.files import sweep, writing

LOCK = ".lock"


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Work alone in ``folder``, which is made if it does not exist.

    Raises `OutputError` if another process works there, and for a ``folder`` that is a file or cannot be written to.
    Afterwards the lock's file is gone, and so are the folders that were made for it and are still empty. The system
    frees the lock of a killed process; the partial files that it left are deleted here.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file and not a folder: choose another name")
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"another process is working in {folder}: wait until it ends, or choose another folder"
            ) from None
    try:
        sweep(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while the lock is held: who opened the old file sees that it has no name
        lock.release()
        for each in made:
            with suppress(OSError):
                each.rmdir()
