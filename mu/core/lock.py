"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from mu.core.errors import BusyError, OutputError
from mu.core.files import fitting, sweep, writing

LOCK = ".lock"
_PATIENCE: ContextVar[float] = ContextVar("patience", default=0.0)


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Inside the block, wait up to so many ``seconds`` for a folder in which another process works.

    For processes that share a folder by design, such as one of base images, and each have work of their own."""
    token = _PATIENCE.set(seconds)
    try:
        yield
    finally:
        _PATIENCE.reset(token)


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Work alone in ``folder``, which is made if it does not exist.

    Raises `BusyError` if another process works there, and `OutputError` for a ``folder`` that is a file or cannot be
    written to.
    Afterwards the lock's file is gone, and so are the folders that were made for it and are still empty. The system
    frees the lock of a killed process; the partial files that it left are deleted here.
    """
    folder = Path(folder)
    with _alone(folder, LOCK, str(folder)):
        sweep(folder)
        yield


@contextmanager
def locked_beside(path: Path) -> Iterator[None]:
    """Work alone on ``path``, a file or folder that need not exist; others may work in the folder that it is in.

    Raises `OutputError` as `locked` does.
    """
    with _alone(path.parent, f".{fitting(path.name, 100)}{LOCK}", str(path)):
        yield


@contextmanager
def _alone(folder: Path, name: str, what: str) -> Iterator[None]:
    """Hold the lock ``name`` in ``folder``, which is made if it does not exist. ``what`` is what it stands for."""
    from filelock import FileLock, Timeout

    with writing(what):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file and not a folder: choose another name")
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        try:
            lock.acquire(timeout=_PATIENCE.get())
        except Timeout:
            raise BusyError(
                f"another process is working in {what}: wait until it ends, or choose another folder"
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / name).unlink()  # while the lock is held: who opened the old file sees that it has no name
        lock.release()
        for each in made:
            with suppress(OSError):
                each.rmdir()
