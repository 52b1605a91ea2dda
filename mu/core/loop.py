"""The one optimisation loop: a step function goes in, everything around it (log, progress, checkpoints, resume) is here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mu.core.files import atomic_path

Log = Callable[[Mapping[str, float]], None]


class Stateful(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


def train(
    step: Callable[[int], Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    iterations: int,
    *,
    generator: torch.Generator,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    state: Mapping[str, Stateful] | None = None,
    max_grad_norm: float = 0.0,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    title: str = "training",
    log: Log | None = None,
    log_every: int = 10,
) -> None:
    """Run ``step(i)`` for ``i`` in ``0 .. iterations-1``: backward on its ``"loss"``, one optimiser and schedule step.

    ``step`` must draw all its randomness from ``generator``. With ``checkpoint``, the loop's whole state (``state``,
    optimiser, schedule, generator) is written there every ``checkpoint_every`` steps and on Ctrl-C, and read from there
    if the file exists: an interrupted run then ends in the same numbers as an uninterrupted one. The finished loop removes
    it. Losses stay on the device and are read every ``log_every`` steps only.
    """
    kept: dict[str, Stateful] = {**(state or {}), "optimizer": optimizer}
    if schedule is not None:
        kept["schedule"] = schedule
    start = _resume(checkpoint, kept, generator) if checkpoint else 0
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    pending: list[tuple[int, float, Mapping[str, Tensor]]] = []

    def flush() -> None:
        if log is not None:
            for i, rate, losses in pending:
                log({"step": i, "lr": rate, **{name: float(value) for name, value in losses.items()}})
        pending.clear()

    def state_now() -> tuple[dict[str, Any], Tensor, int] | None:
        return ({name: part.state_dict() for name, part in kept.items()}, generator.get_state(), done) if checkpoint else None

    done = start
    whole = state_now()  # what an interruption saves: a step that it cuts short has drawn numbers already and starts over
    with progress_bar(title, iterations, start) as advance:
        try:
            for i in range(start, iterations):
                optimizer.zero_grad(set_to_none=True)
                losses = step(i)
                losses["loss"].backward()
                if max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
                rate = optimizer.param_groups[0]["lr"]
                whole = None  # a half-made update is never saved
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                done = i + 1
                if after_step is not None:
                    after_step(i)
                whole = state_now()
                pending.append((i, rate, {name: value.detach() for name, value in losses.items()}))
                if done % log_every == 0 or done == iterations:
                    last = float(losses["loss"].detach())
                    flush()
                    advance(done, f"loss {last:.4g}")
                if checkpoint and whole and done % checkpoint_every == 0 and done < iterations:
                    _save(checkpoint, *whole)
        except KeyboardInterrupt:
            flush()
            if checkpoint and whole and done > start:
                _save(checkpoint, *whole)
            raise
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def _save(path: Path, state: Mapping[str, Any], drawn: Tensor, done: int) -> None:
    with atomic_path(path) as partial:
        torch.save({"done": done, "generator": drawn, "state": state}, partial)


def _resume(path: Path, kept: Mapping[str, Stateful], generator: torch.Generator) -> int:
    if not path.exists():
        return 0
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in kept.items():
        part.load_state_dict(content["state"][name])
    generator.set_state(content["generator"])
    return int(content["done"])


@contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """``advance(done, note)`` with the time left; one line every twentieth where the output is not a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
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
