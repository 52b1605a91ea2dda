"""The optimisation loop around a step function, with log, progress, checkpoints and resume."""

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

from mu.core import parallel
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
    draws: int = 1,
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

    ``step`` must draw all its randomness from ``generator``. With more ``draws`` than 1, update i follows the mean
    gradient of the steps ``i * draws + j``, each with random numbers of its own. Several processes
    (`mu.core.parallel`) share them, and end with the same numbers as one process with as many draws.

    With ``checkpoint``, the loop's whole state (``state``, optimiser, schedule, generator) is written there every
    ``checkpoint_every`` steps and on Ctrl-C. If the file exists, the loop resumes from it and ends with the same
    numbers as an uninterrupted run. A finished loop deletes it.

    Losses stay on the device and are read only every ``log_every`` steps. ``scaler`` is for float16, whose small
    gradients would underflow to 0; it skips steps whose gradients overflow. ``stop(i)`` is called after each update; if
    it returns True, the loop ends early. What it changes in ``state`` and the optimiser belongs to that step. Raises
    `ConfigError` if a loss that is read is not finite or the processes cannot share the draws, `OutputError` if the
    checkpoint cannot be resumed, and `LostError` if another process ended.
    """
    parallel.check_draws(draws)
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = _Checkpoint(checkpoint, _parts(optimizer, schedule, scaler, state), generator, draws)
    lines = _Lines(log)
    start = kept.resume()
    with progress_bar(title, iterations, start) as advance:
        try:
            for i in range(start, iterations):
                optimizer.zero_grad(set_to_none=True)
                losses = _drawn(step, i, draws, generator, scaler)
                parallel.share_gradients(weights, draws)
                _clip(weights, optimizer, scaler, max_grad_norm)
                rate = optimizer.param_groups[0]["lr"]
                done = i + 1
                with _interrupted_afterwards():
                    kept.forget()
                    _update(optimizer, scaler, schedule)
                    if after_step is not None:
                        after_step(i)
                    stopped = stop is not None and _agreed(stop(i))
                    lines.add(i, rate, losses)
                    kept.note(done)
                if done % log_every == 0 or done == iterations or stopped:
                    advance(done, f"loss {_finite(lines.flush(), title, done):.4g}")
                if stopped:
                    break
                if done % checkpoint_every == 0 and done < iterations:
                    kept.write()
        except (KeyboardInterrupt, parallel.LostError):
            lines.flush(alone=True)
            kept.write()
            raise
    kept.remove()


def _parts(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    scaler: torch.amp.GradScaler,
    state: Mapping[str, Stateful] | None,
) -> dict[str, Stateful]:
    """The stateful parts of a checkpoint, by name."""
    parts: dict[str, Stateful] = {**(state or {}), "optimizer": optimizer}
    if schedule is not None:
        parts["schedule"] = schedule
    if scaler.is_enabled():
        parts["scaler"] = scaler
    return parts


def _drawn(
    step: Callable[[int], Mapping[str, Tensor]],
    i: int,
    draws: int,
    generator: torch.Generator,
    scaler: torch.amp.GradScaler,
) -> list[Mapping[str, Tensor]]:
    """Backpropagate this process's share of the ``draws`` of update ``i``. Returns the losses of each.

    Of several draws, each begins with a seed from ``generator``, which afterwards is the same in all processes.
    """
    found: list[Mapping[str, Tensor]] = []
    if draws > 1:
        seeds = torch.randint(2**32, (draws,), generator=generator).tolist()
        after = generator.get_state()
    for j in range(parallel.rank(), draws, parallel.count()):
        if draws > 1:
            generator.manual_seed(seeds[j])
        losses = step(i * draws + j)
        scaler.scale(losses["loss"]).backward()
        found.append({name: value.detach() for name, value in losses.items()})
    if draws > 1:
        generator.set_state(after)
    return found


def _agreed(stop: bool) -> bool:
    """The first process's ``stop``, in every process."""
    return parallel.from_first(lambda: stop)


def _clip(
    weights: list[Tensor], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_grad_norm: float
) -> None:
    """Clip the gradient norm to ``max_grad_norm`` unless that is 0."""
    if max_grad_norm > 0:
        scaler.unscale_(optimizer)
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


def _finite(loss: float, title: str, done: int) -> float:
    """``loss``. Raises `ConfigError` if it is not finite."""
    if not math.isfinite(loss):
        raise ConfigError(f"{title}: loss {loss} after {done} steps: lower the learning rate or raise the precision")
    return loss


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block, because a half-done update can be neither kept nor repeated."""
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
    """Rows for the log, each the mean over an update's draws. Losses stay on the device until `flush` reads them."""

    def __init__(self, log: Log | None):
        self.log = log
        self.pending: list[tuple[int, float, list[Mapping[str, Tensor]]]] = []

    def add(self, i: int, rate: float, losses: list[Mapping[str, Tensor]]) -> None:
        self.pending.append((i, rate, losses))

    def flush(self, alone: bool = False) -> float:
        """Log the pending rows, and return the last loss; ``alone``, without the draws of the other processes."""
        own = [[{name: float(v) for name, v in one.items()} for one in losses] for _, _, losses in self.pending]
        loss = math.nan
        for (i, rate, _), *parts in zip(self.pending, *([own] if alone else parallel.joined(own)), strict=True):
            losses = _mean([one for part in parts for one in part])
            loss = losses["loss"]
            if self.log is not None:
                self.log({"step": i, "lr": rate, **losses})
        self.pending.clear()
        return loss


def _mean(several: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss over those draws that have it."""
    names = dict.fromkeys(name for one in several for name in one)
    values = {name: [one[name] for one in several if name in one] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}


class _Checkpoint:
    """The loop's whole state after the last finished step, in memory and at ``path``; does nothing without ``path``."""

    def __init__(self, path: Path | None, parts: Mapping[str, Stateful], generator: torch.Generator, draws: int):
        self.path, self.parts, self.generator, self.draws = path, parts, generator, draws
        self.content: dict[str, Any] | None = None

    def resume(self) -> int:
        """Load the file, if any, and return the number of finished steps.

        Raises `OutputError` for a file that is damaged, comes from another run, or whose updates had other draws, and
        for a part that refuses its state with a `ConfigError`."""
        content = parallel.from_first(self._read)
        if content is None:
            return 0
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content["state"][name])
            self.generator.set_state(content["generator"])
            return int(content["done"])
        except ConfigError as error:
            raise OutputError(f"{self.path} cannot be resumed: {error}: delete it to restart the training") from None
        except Exception as error:
            raise self._unusable(error) from None

    def _read(self) -> Any:
        """The file's content; None without a file.

        A file of an earlier version does not say its draws: the settings that give them have changed their meaning."""
        if self.path is None or not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            draws = content.get("draws", "an unknown number" if self.draws > 1 else 1)
        except Exception as error:
            raise self._unusable(error) from None
        if draws != self.draws:
            raise OutputError(
                f"{self.path} cannot be resumed: the draws of an update were {draws} and are now {self.draws}: delete "
                "it to restart the training"
            )
        return content

    def _unusable(self, error: Exception) -> OutputError:
        """A damaged file can make any step of its reading fail with any ``error``."""
        kind = type(error).__name__
        return OutputError(f"{self.path} cannot be resumed ({kind}): delete it to restart the training")

    def note(self, done: int) -> None:
        """Take the snapshot for `write`. An interrupted step has drawn random numbers, so it restarts from here."""
        if self.path is not None:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            self.content = {
                "done": done,
                "draws": self.draws,
                "generator": self.generator.get_state(),
                "state": states,
            }

    def forget(self) -> None:
        """Drop the snapshot: it shares storage with the live tensors and is invalid while they are being updated."""
        self.content = None

    def write(self) -> None:
        if self.path is not None and self.content is not None:
            with atomic_path(self.path) as partial:
                torch.save(self.content, partial)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
