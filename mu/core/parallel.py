"""One search in several processes, each on its own device: who this process is, and what it shares with the others.

The processes are started by `mu erase --devices 0,1`, ``accelerate launch`` or ``torchrun``. All of them tell a process
its place by the same variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. So torch.distributed is used
itself, and no wrapper of model and optimiser, which would not see that a step swaps weights in and out. All processes
run the same program on the same model. They share each update's draws (`mu.core.loop.train`); decisions that follow
from measurements are the first process's. It alone writes, prints and logs; the others are its followers.

Gradients on GPUs go through NCCL, everything else through gloo. Importing this module does not import torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mu.core.errors import ConfigError, MuError, quoted

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that make a process one of several."""
PARENT = "MU_PARENT"
"""Variable with the number of the process that started this one and ends with it: see `mu.core.launch`."""
LOST = 3
"""Exit code of a process that `mu.core.launch` started and that ends because another one has ended."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, such as for a reading of the probe or the load of a model."""

CLOSING = 5.0
"""Seconds that closing the group may take after a failure."""

_left = False
"""Whether this process works on without the others: see `leave`."""


class LostError(MuError):
    """Another process of the run has ended or does not answer."""


def count() -> int:
    """The number of processes that share the work; 1 without others."""
    return int(os.environ["WORLD_SIZE"]) if started() and not _left else 1


def started() -> bool:
    """Whether this process was started as one of several."""
    return all(name in os.environ for name in NEEDED)


def rank() -> int:
    """The number of this process among `count`; 0 is the first."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def follows() -> bool:
    """Whether another process writes and prints for this one."""
    return rank() > 0


def own_device(wanted: str | None) -> str | None:
    """This process's part of ``wanted``, the devices of all processes on this machine.

    A list has one for each. One GPU is that of the first, and the others take those after it; without a number it is
    GPU 0. Raises `ConfigError` for a list of another length.
    """
    here, local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not started() or local < 2:
        return wanted
    parts = [part.strip() for part in str(wanted or "auto").split(",") if part.strip()]
    if len(parts) > 1 and len(parts) != local:
        raise ConfigError(f"{quoted(wanted)} names {len(parts)} devices for {local} processes: name one for each")
    if len(parts) > 1:
        return parts[here]
    name = parts[0].removeprefix("cuda:") if parts else "auto"
    if name in ("auto", "cuda"):
        import torch

        return f"cuda:{here}" if name == "cuda" or torch.cuda.is_available() else "auto"
    return f"cuda:{int(name) + here}" if name.isdecimal() else name


def check_draws(draws: int, processes: int | None = None) -> None:
    """Raise `ConfigError` unless ``processes`` (default: those of this run) can share ``draws`` an update equally."""
    n = processes or count()
    if draws % n:
        raise ConfigError(
            f"{n} processes cannot share {draws} draws an update equally: set train.draws to a multiple of {n}, or run "
            "a method without that setting in one process"
        )


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, in all of them; it is not called in the others."""
    if count() == 1:
        return make()
    box = [None if follows() else make()]
    with _answered():
        _group().broadcast_object_list(box, src=0)
    return cast(T, box[0])


def joined(own: T) -> list[T]:
    """The value of each process, by rank."""
    if count() == 1:
        return [own]
    box: list[T | None] = [None] * count()
    with _answered():
        _group().all_gather_object(box, own)
    return cast("list[T]", box)


def mean(value: Tensor) -> Tensor:
    """The mean of ``value`` over the processes."""
    return _summed(value.detach().clone()) / count() if count() > 1 else value


def total(values: Iterable[Tensor]) -> None:
    """Make each of ``values`` its sum over the processes, in place: as many and of the same shapes in all of them."""
    if count() > 1:
        for value in values:
            value.copy_(_summed(value))


def share_gradients(weights: Sequence[Tensor], draws: int) -> None:
    """Make each gradient the mean over all ``draws`` of an update; each process has summed those of its own.

    A weight without a gradient in any process keeps none. Needs as much memory as the gradients have.
    """
    import torch

    if draws == 1:
        return
    if count() > 1:
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        there = torch.tensor([float(weight.grad is not None) for weight in weights]).to(weights[0])
        flat = _summed(torch.cat([*(part.reshape(-1) for part in parts), there]))
        *sums, there = flat.split([*(part.numel() for part in parts), len(parts)])
        for weight, total, known in zip(weights, sums, there.tolist(), strict=True):
            weight.grad = total.view_as(weight).to(weight.dtype) if known else None
    for weight in weights:
        if weight.grad is not None:
            weight.grad.div_(draws)


def leave() -> bool:
    """Part from the other processes when the common work is done. Returns whether this process has followed.

    The first process then works on alone, with `count` 1; a follower should end.
    """
    global _left
    followed = follows()
    if count() > 1:
        import torch

        _summed(torch.zeros(1))
        _group().destroy_process_group()
        _left = True
    return followed


def abandon() -> None:
    """Part from the other processes without a word, as after a failure; nothing if this process has left them.

    An interpreter that ends while a group is open is now and then aborted by the group's threads. Its exit code, which
    says what failed, would then be lost. Closing may wait for the others, so it is given up after `CLOSING`.
    """
    global _left
    if count() > 1 and "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            closing = threading.Thread(target=_close, daemon=True)
            closing.start()
            closing.join(CLOSING)
            _left = True


def _close() -> None:
    import torch.distributed as dist

    with suppress(Exception):
        dist.destroy_process_group()


def _summed(value: Tensor) -> Tensor:
    """The sum over the processes, in place where the device allows it."""
    shared = value if value.device.type in ("cpu", "cuda") else value.cpu()
    with _answered():
        _group().all_reduce(shared)
        if shared.device.type == "cuda":
            import torch

            torch.cuda.synchronize(shared.device)  # a lost process is noticed here, not at some later step
    return shared.to(value.device)


def is_told_elsewhere(error: BaseException) -> bool:
    """Whether `mu.core.launch`, which started this process, tells its user what ``error`` says.

    A follower's own failure is told here, but first it waits for the first process: if that fails too, all are ended.
    """
    if PARENT not in os.environ:
        return False
    if follows() and not isinstance(error, LostError):
        time.sleep(10)
    return isinstance(error, LostError)


@contextmanager
def _answered() -> Iterator[None]:
    """Raise `LostError` for what torch raises if another process does not answer."""
    try:
        yield
    except RuntimeError as error:  # the base of all that torch.distributed raises
        raise LostError(
            f"process {rank() + 1} of {count()} lost the others: one of them failed, see its own message, or gave no "
            f"answer for {PATIENCE.seconds // 60} minutes; run again with --resume to continue ({error})"
        ) from error


def _group() -> Any:
    """torch.distributed with the group of all processes, which is formed at first use."""
    import torch.distributed as dist

    if not dist.is_initialized():
        if follows() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process takes it, and ends all
        if PARENT in os.environ:
            threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
        dist.init_process_group(timeout=PATIENCE)
    return dist


def _end_with(parent: int) -> None:
    """End this process once ``parent`` was killed: nobody waits for its result."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
