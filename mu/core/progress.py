"""The progress bar of long tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mu.core import parallel


@contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield ``advance(done, note)``, which shows the time left; without a terminal, one line every 5 %.

    Of several processes, only the first shows it.
    """
    if parallel.follows():
        yield lambda done, note: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, completed=start, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
        return

    began, told = time.monotonic(), start

    def advance(done: int, note: str) -> None:
        nonlocal told
        if done - told >= total / 20 or done == total:
            told = done
            left = (time.monotonic() - began) / max(done - start, 1) * (total - done)
            console.print(f"{title}: {done}/{total}, {left:.0f} s left  {note}", highlight=False, soft_wrap=True)

    yield advance
