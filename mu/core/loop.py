"""The one optimisation loop: a step function goes in, everything around it (log, progress, checkpoints, resume) is here."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mu.core.errors import ConfigError, OutputError
from mu.core.files import atomic_path
from mu.core.progress import progress_bar

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
    scaler: torch.amp.GradScaler | None = None,
    max_grad_norm: float = 0.0,
    after_step: Callable[[int], None] | None = None,
    stop: Callable[[int], bool] | None = None,
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
    it. Losses stay on the device and are read every ``log_every`` steps only. ``scaler`` is for float16, whose small
    gradients would be 0; a step whose gradients overflow is left out by it. ``stop(i)`` is asked after each update and may end
    the loop before its last step.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    kept = _Checkpoint(checkpoint, _parts(optimizer, schedule, scaler, state), generator)
    lines = _Lines(log)
    start = kept.resume()
    with progress_bar(title, iterations, start) as advance:
        try:
            for i in range(start, iterations):
                optimizer.zero_grad(set_to_none=True)
                losses = step(i)
                _backward(losses["loss"], optimizer, scaler, max_grad_norm)
                rate = optimizer.param_groups[0]["lr"]
                done = i + 1
                with _interrupted_afterwards():
                    kept.forget()
                    _update(optimizer, scaler, schedule)
                    if after_step is not None:
                        after_step(i)
                    kept.note(done)
                lines.add(i, rate, losses)
                stopped = stop is not None and stop(i)
                if done % log_every == 0 or done == iterations or stopped:
                    lines.flush()
                    advance(done, f"loss {_finite(losses['loss'], title, done):.4g}")
                if stopped:
                    break
                if done % checkpoint_every == 0 and done < iterations:
                    kept.write()
        except KeyboardInterrupt:
            lines.flush()
            kept.write()
            raise
    kept.remove()


def _parts(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    scaler: torch.amp.GradScaler,
    state: Mapping[str, Stateful] | None,
) -> dict[str, Stateful]:
    """What a checkpoint holds, by name."""
    parts: dict[str, Stateful] = {**(state or {}), "optimizer": optimizer}
    if schedule is not None:
        parts["schedule"] = schedule
    if scaler.is_enabled():
        parts["scaler"] = scaler
    return parts


def _backward(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_grad_norm: float) -> None:
    """Gradients of ``loss`` into the optimiser's parameters; their norm at most ``max_grad_norm``, where that is not 0."""
    scaler.scale(loss).backward()
    if max_grad_norm > 0:
        scaler.unscale_(optimizer)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)


def _update(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
) -> None:
    scaler.step(optimizer)
    scaler.update()
    if schedule is not None:
        schedule.step()


def _finite(loss: Tensor, title: str, done: int) -> float:
    """``loss`` as a number; `ConfigError` where it is none."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ConfigError(f"{title}: the loss is {value} after {done} steps; lower the learning rate or raise the precision")
    return value


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Ctrl-C inside the block takes effect at its end: an update that is half done can neither be kept nor repeated."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        raise KeyboardInterrupt


class _Lines:
    """Rows for the log. Losses stay on the device until `flush` reads them."""

    def __init__(self, log: Log | None):
        self.log = log
        self.pending: list[tuple[int, float, Mapping[str, Tensor]]] = []

    def add(self, i: int, rate: float, losses: Mapping[str, Tensor]) -> None:
        self.pending.append((i, rate, {name: value.detach() for name, value in losses.items()}))

    def flush(self) -> None:
        if self.log is not None:
            for i, rate, losses in self.pending:
                self.log({"step": i, "lr": rate, **{name: float(value) for name, value in losses.items()}})
        self.pending.clear()


class _Checkpoint:
    """The loop's whole state as of the last finished step, in memory and at ``path``; without a ``path`` it does nothing."""

    def __init__(self, path: Path | None, parts: Mapping[str, Stateful], generator: torch.Generator):
        self.path, self.parts, self.generator = path, parts, generator
        self.content: dict[str, Any] | None = None

    def resume(self) -> int:
        """Load what is there; the number of steps that are done. `OutputError` for a file that is damaged or of another run."""
        if self.path is None or not self.path.exists():
            return 0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(content["state"][name])
            self.generator.set_state(content["generator"])
            return int(content["done"])
        except Exception as error:  # a damaged file can make any step of its reading fail with any error
            kind = type(error).__name__
            raise OutputError(f"{self.path} cannot be resumed ({kind}): delete it, and the training starts over") from None

    def note(self, done: int) -> None:
        """What `write` writes from here on: a step that an interruption cuts short has drawn numbers already and starts over."""
        if self.path is not None:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            self.content = {"done": done, "generator": self.generator.get_state(), "state": states}

    def forget(self) -> None:
        """What was noted shares its tensors with the parts: during an update it is no state of the loop."""
        self.content = None

    def write(self) -> None:
        if self.path is not None and self.content is not None:
            with atomic_path(self.path) as partial:
                torch.save(self.content, partial)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
