"""What runs the cells of a grid: this process, a pool of processes, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from mu.core.progress import progress_bar
from mu.grid.folder import GridFolder, Record
from mu.grid.plan import Cell
from mu.grid.pool import Pool

Engine = Callable[[Sequence[Cell], Path], Iterator[tuple[Cell, Record]]]
"""Runs cells in a grid's folder, and yields each with its outcome as it ends."""


class Ended(NamedTuple):
    """What a run of the grid came to."""

    done: int
    failed: list[tuple[Cell, Record]]
    before: int
    """Cells that had their results already."""


@contextmanager
def engine_of(
    jobs: int | None = None, ray: str | None = None, memory: float | None = None, device: str = ""
) -> Iterator[Engine]:
    """The process pool of this machine with ``jobs`` processes (0: this very process), or the Ray cluster ``ray``.

    ``memory`` is what a cell needs, in GiB; by default an estimate. Raises what `mu.grid.cluster.connected` raises."""
    if ray is not None:
        from mu.grid.cluster import connected

        with connected(ray, memory, device) as engine:
            yield engine
    elif jobs == 0:
        yield in_this_process
    else:
        with closing(Pool(jobs, memory, device)) as pool:
            yield pool


def in_this_process(cells: Sequence[Cell], home: Path) -> Iterator[tuple[Cell, Record]]:
    """One after the other, without a process of their own: what ends it, ends the grid."""
    from mu.grid.cell import run_cell

    for cell in cells:
        yield cell, run_cell(cell, home)


def work_off(cells: Sequence[Cell], folder: GridFolder, engine: Engine, title: str) -> Ended:
    """Run those of ``cells`` that have no result yet. For who holds the folder's lock."""
    todo = [cell for cell in cells if not folder.is_done(cell)]
    before, lost = len(cells) - len(todo), list[tuple[Cell, Record]]()
    if not todo:
        return Ended(0, [], before)
    with progress_bar(title, len(cells), start=before) as advance:
        for count, (cell, record) in enumerate(engine(todo, folder.folder), start=1):
            if record.state != "done":
                lost.append((cell, record))
            advance(before + count, f"{len(lost)} failed" if lost else "")
    return Ended(len(todo) - len(lost), lost, before)
