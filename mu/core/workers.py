"""Processes beside this one that make parts of its work, each on a device of its own. They share nothing but files.

For searches, whose processes exchange gradients, see `mu.core.parallel`. Importing this module does not import torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from mu.core import threads
from mu.core.devices import check_device
from mu.core.errors import ConfigError, MuError, quoted

T = TypeVar("T")


class LostPartError(MuError):
    """A part of the work was not done."""


@dataclass(frozen=True)
class Shard:
    """Part ``k`` of ``n`` of the images, from 1: every n-th image, so that all parts take equally long."""

    k: int = 1
    n: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``. Raises `ConfigError` for anything else."""
        k, slash, n = text.partition("/")
        if not (slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n) <= 10_000):
            raise ConfigError(f"a shard is written K/N with K from 1 to N, like 2/8, not {quoted(text[:40])}")
        return cls(int(k), int(n))

    def of(self, rows: Sequence[T]) -> Sequence[T]:
        return rows[self.k - 1 :: self.n]


WHOLE = Shard()


def devices_of(wanted: str | None) -> list[str]:
    """The devices to divide work over: those of a list like ``0,1``, else every GPU that is visible, else the one.

    Raises `ConfigError` for names that are no devices; who loads a model there tells of a GPU that is missing.
    """
    check_device(wanted or "")
    parts = [part.strip() for part in str(wanted or "auto").split(",") if part.strip()]
    if parts in (["auto"], ["cuda"]):
        import torch

        if (count := torch.cuda.device_count()) > 1:
            return [f"cuda:{k}" for k in range(count)]
    return parts


@contextmanager
def beside(work: Callable[..., None], parts: Mapping[str, tuple[Any, ...]]) -> Iterator[None]:
    """While the block runs, call ``work`` with the arguments of each of ``parts`` in a process of its own.

    ``work`` is a function of a module. After the block, waits for all. Raises `LostPartError` for the first part that
    was not done, by its name and with the reason, when all others have ended. Whatever ends the block by an error ends
    the processes.
    """
    start: Any = multiprocessing.get_context("spawn")  # a fork could not use torch's threads or a GPU
    running: dict[str, tuple[Any, Connection]] = {}
    try:
        for name, arguments in parts.items():
            here, there = start.Pipe()
            share = max(1, threads.cores() // (len(parts) + 1))
            process = start.Process(target=_serve, args=(there, share, work, arguments), daemon=True)
            process.start()
            there.close()
            running[name] = process, here
        yield
        reasons = {name: _reason(process, here) for name, (process, here) in running.items()}
    finally:
        for process, here in running.values():
            process.terminate()
            process.join()
            here.close()
    for name, reason in reasons.items():
        if reason:
            raise LostPartError(f"{name} was not made, {reason}; the same command makes what is missing")


def _reason(process: Any, connection: Connection) -> str:
    """Wait for a part; why it was not done, "" if it was."""
    try:
        return str(connection.recv())
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        return f"its process was ended by signal {-code}, as when memory is short" if code < 0 else f"exit code {code}"


def _serve(connection: Connection, share: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Do one part and say why not; the process that has the terminal shows and tells everything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    silent = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(silent, number)
    if not any(name in os.environ for name in threads.SET_BY_USER):
        os.environ["OMP_NUM_THREADS"] = str(share)
    reason = ""
    try:
        work(*arguments)
    except Exception as error:
        from mu.core.program import told

        reason = told(error) or f"a defect: {type(error).__name__} {quoted(str(error))}"
    with suppress(OSError):
        connection.send(reason)


def end_with_parent() -> None:
    """From now on, a killed parent takes this process along: what it was writing is partial, and made again."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
