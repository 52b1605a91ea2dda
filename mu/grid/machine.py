"""How many cells fit this machine at once: by its cores, its memory and its GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mu.core.threads import CGROUP, SMALL, cores
from mu.grid.plan import Cell
from mu.models.places import EMBEDDED

GIB = 2**30
LIBRARIES = 1.0
"""GiB of a process that has loaded the libraries and a small model."""
COPIES = 6
"""A model's files, in half precision, against what a search holds: float32 weights, their delta, and activations."""
UNKNOWN = 16.0
"""GiB of a cell of a model whose files are not here yet: Stable Diffusion 1.x with room."""
WEIGHT_FILES = {".safetensors", ".bin", ".ckpt", ".pt", ".pth"}


class Room(NamedTuple):
    """What this machine has free: physical cores, memory in GiB (None: unknown), and GPUs."""

    cores: int
    memory: float | None
    gpus: int = 0


class Fit(NamedTuple):
    """``jobs`` cells at once, with so many ``threads`` and ``memory`` (GiB) each, and one of the ``gpus`` each."""

    jobs: int
    threads: int
    memory: float
    gpus: int = 0


def room(device: str = "") -> Room:
    """What is free now. GPUs are asked for only if ``device`` may be one: that imports torch."""
    gpus = 0
    if device in ("", "auto", "cuda"):
        import torch

        gpus = torch.cuda.device_count()
    return Room(cores(), free_memory(), gpus)


def fit(cells: Sequence[Cell], free: Room, jobs: int | None = None, memory: float | None = None) -> Fit:
    """How to run ``cells`` in the ``free`` room; ``jobs`` and ``memory`` (GiB of a cell) as the user gives them.

    A small model gets one thread, as `mu.core.threads` has it, and a large one its share of the cores. At least one
    cell runs, whatever the estimate says."""
    need = memory or max((needed(cell.model) for cell in cells), default=LIBRARIES)
    small = all(is_small(cell.model) for cell in cells)
    limits = [max(len(cells), 1), free.gpus or free.cores]
    if free.memory is not None and not free.gpus:
        limits.append(int(free.memory // need))
    at_once = jobs or max(1, min(limits))
    return Fit(at_once, 1 if small else max(1, free.cores // at_once), need, free.gpus)


def needed(model: str) -> float:
    """GiB that a cell of ``model`` needs, by the size of its files; see `COPIES`."""
    size = weights_size(model)
    return UNKNOWN if size is None else round(LIBRARIES + COPIES * size / GIB, 2)


def is_small(model: str) -> bool:
    """Whether one thread suits the model: its files, in half precision, hold fewer than `SMALL` weights."""
    size = weights_size(model)
    return size is not None and size < 2 * SMALL


def weights_size(model: str) -> int | None:
    """Bytes of the model's weight files; None for a model that is not a file or folder here."""
    place = EMBEDDED.get(model, Path(model))
    if place.is_file():
        return place.stat().st_size
    if not place.is_dir():
        return None
    return sum(path.stat().st_size for path in place.rglob("*") if path.suffix in WEIGHT_FILES)


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> float | None:
    """GiB that a new process may have: of the machine, and of the container's share; None where nothing says."""
    found = []
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    most, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if most.isdecimal() and used.isdecimal():
        found.append(int(most) - int(used))
    return max(min(found), 0) / GIB if found else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
