"""Worker processes of this machine. Each works on one cell at a time; one that dies costs no more than that cell."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mu.core import threads
from mu.core.workers import end_with_parent
from mu.grid.folder import GridFolder, Record
from mu.grid.machine import Fit, fit, room
from mu.grid.plan import Cell

KILLED = "its process was killed by signal {signal}, as systems do when memory is short: give each cell more memory"
ENDED = "its process ended with code {code} before it was done: {log} has what it printed"


class Worker:
    """One process, and the cell that it works on."""

    def __init__(self, home: Path, fit: Fit, number: int):
        start: Any = multiprocessing.get_context("spawn")  # a fork could not use torch's threads or a GPU
        self.connection, there = start.Pipe()
        self.cell: Cell | None = None
        self.number = number
        self.process = start.Process(target=_serve, args=(there, home, fit, number), daemon=True)
        self.process.start()
        there.close()

    def give(self, cell: Cell, home: Path) -> None:
        self.cell = cell
        self.connection.send((cell.to_json(), home))

    def stop(self) -> None:
        """End the process, in the middle of its work if it has some."""
        if self.cell:
            self.process.terminate()
        elif self.process.is_alive():
            self.connection.send(None)
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class Pool:
    """Processes that stay from call to call: loading the libraries takes them longer than a small cell.

    ``jobs`` at once and ``memory`` (GiB) for each cell; by default what `mu.grid.machine.fit` says. Close it after use.
    """

    def __init__(self, jobs: int | None = None, memory: float | None = None, device: str = ""):
        self.jobs, self.memory, self.device = jobs, memory, device
        self.workers: list[Worker] = []
        self._fit: Fit | None = None

    def __call__(self, cells: Sequence[Cell], home: Path) -> Iterator[tuple[Cell, Record]]:
        """Run ``cells``, and yield each with its outcome as it ends."""
        wanted = fit(cells, room(self.device), self.jobs, self.memory)
        if self._fit is None or wanted[1:] != self._fit[1:]:
            self.close()
            self._fit = wanted
        waiting = list(reversed(cells))
        for number in range(min(wanted.jobs, len(cells))):
            self._free(number, home).give(waiting.pop(), home)
        try:
            while busy := [worker for worker in self.workers if worker.cell]:
                for ready in wait([worker.connection for worker in busy]):
                    worker = next(each for each in busy if each.connection is ready)
                    cell, record = worker.cell, _outcome(worker, home)
                    assert cell is not None
                    worker.cell = None
                    if waiting:
                        self._free(worker.number, home).give(waiting.pop(), home)
                    yield cell, record
        except BaseException:
            self.close()
            raise

    def _free(self, number: int, home: Path) -> Worker:
        """Worker ``number``, a new one if there is none or it died."""
        assert self._fit is not None
        if number == len(self.workers):
            self.workers.append(Worker(home, self._fit, number))
        elif not self.workers[number].process.is_alive():
            self.workers[number].connection.close()
            self.workers[number] = Worker(home, self._fit, number)
        return self.workers[number]

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers = []


def _outcome(worker: Worker, home: Path) -> Record:
    """What a worker says of its cell; if it died, that it did."""
    try:
        return Record.model_validate(worker.connection.recv())
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        folder = GridFolder(home)
        reason = KILLED.format(signal=-code) if code < 0 else ENDED.format(code=code, log=folder.workers)
        assert worker.cell is not None
        return failed(folder, worker.cell, reason)


def failed(folder: GridFolder, cell: Cell, reason: str) -> Record:
    """Note that the process of ``cell`` was lost."""
    record = folder.record(cell.name).model_copy(update={"state": "failed", "reason": reason})
    folder.note(cell.name, record)
    return record


def _serve(connection: Connection, home: Path, fit: Fit, number: int) -> None:
    """Run the cells that come through ``connection``, until None comes or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the terminal: it ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end_with_parent()
    quiet(home)
    if fit.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(number, fit.gpus)
    limit_threads(fit.threads)
    from mu.grid.cell import run_cell

    while True:
        try:
            content = connection.recv()
        except (EOFError, OSError):
            return
        if content is None:
            return
        connection.send(run_cell(Cell.read(content[0]), content[1]).model_dump())


def quiet(home: Path) -> None:
    """Send what this process prints to the grid's file for it, so that the terminal shows the grid alone."""
    home.mkdir(parents=True, exist_ok=True)
    with GridFolder(home).workers.open("a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            os.dup2(log.fileno(), number)


def limit_threads(count: int) -> None:
    """Give torch ``count`` threads in this process, unless the user chose a number. Call it before torch comes."""
    if any(name in os.environ for name in threads.SET_BY_USER):
        return
    for name in threads.SET_BY_USER:
        os.environ[name] = str(count)


def gpu_of(number: int, gpus: int) -> str:
    """The GPU of worker ``number``, among the ``gpus`` that this process may see; workers may share one."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[number % len(seen)] if seen else str(number % gpus)
