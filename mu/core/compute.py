"""Seeds, devices and precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mu.core import parallel
from mu.core.devices import check_device
from mu.core.errors import ConfigError, quoted, titled

PRECISIONS = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}

log = logging.getLogger("mu")


def precision(name: str) -> torch.dtype:
    """``float32``/``fp32``, ``float16``/``fp16`` or ``bfloat16``/``bf16``."""
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {titled(name)}; choose float32, float16 or bfloat16")
    return PRECISIONS[name]


def pick_device(wanted: str | None = None) -> torch.device:
    """The device for ``wanted``: ``cuda``, ``cuda:1``, ``mps``, ``cpu``, a CUDA index or a list of them (``0,1``).

    Without ``wanted``, the best available device. For an unavailable GPU, logs one warning and returns the CPU. Of
    several processes each gets its own: see `mu.core.parallel.own_device`.
    """
    with loading_on(wanted) as device:
        return device


@contextmanager
def loading_on(wanted: str | None = None) -> Iterator[torch.device]:
    """`pick_device` for a block that loads a model: warnings come after the block, unless loading fails."""
    device, notes = _chosen(wanted)
    yield device
    for note in notes:
        log.warning(note)


def _chosen(wanted: str | None) -> tuple[torch.device, list[str]]:
    wanted = parallel.own_device(wanted)
    if wanted is None or wanted in ("", "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda"), []
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu"), []
    check_device(str(wanted))
    first, *others = [part.strip() for part in str(wanted).split(",") if part.strip()] or ["cpu"]
    name = f"cuda:{first}" if first.isdigit() else first
    device = torch.device(name)
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if not there.get(device.type, lambda: False)():
        return torch.device("cpu"), [f"device {quoted(wanted)} is not available here: using the CPU"]
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"GPU {device.index} does not exist; this machine has {torch.cuda.device_count()}")
    return device, [f"only one device is used: {device} of {wanted}"] if others else []


def there(wanted: str) -> str:
    """``wanted``, or ``cuda:0`` with a warning if this machine lacks that GPU, for commands from another machine."""
    number, count = str(wanted).partition(",")[0].strip().removeprefix("cuda:"), torch.cuda.device_count()
    if not (number.isdecimal() and 0 < count <= int(number)):
        return wanted
    log.warning("device %r is not available here (the last GPU is number %d): using GPU 0", wanted, count - 1)
    return "cuda:0"


def full(values: Tensor) -> Tensor:
    """``values`` in float32, or as they are in float64: only who computes in float64 has such values."""
    return values if values.dtype == torch.float64 else values.float()


def generator(seed: int) -> torch.Generator:
    """A CPU generator, which gives the same numbers for every compute device."""
    return torch.Generator().manual_seed(seed)
