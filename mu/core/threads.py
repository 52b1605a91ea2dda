"""How many threads torch gets on a CPU.

torch's own default is one thread for each core that it sees. That is wrong in two ways. In a container it sees the
machine's cores and not the share that the container may use. And a small model has so little work between two barriers
that its threads mostly wait for each other there: on a machine that also does something else, one late thread stops
all. ``benchmarks/threads.py`` measures it side by side. On two cores with four to seven other processes, 8 canvas
images took 3 s with one thread and 45 s with two, and five training steps 1.5 s and 17 s.

So the command line takes one thread for a small model, and for a large one a thread for each physical core that it may
use. It leaves the number alone if ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` is set. In your own program `mu.load`
never changes it, because your other work has the same threads: call ``torch.set_num_threads(1)`` there.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SMALL = 100_000_000
"""Weights below which a model is small. The smallest Stable Diffusion has 860 million in its UNet alone."""

CPUS, CGROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")

log = logging.getLogger("mu")

ours = False
"""Whether this process is the command line's own; `mu.__main__` sets it."""


def fit(weights: int) -> None:
    """Give torch the threads that suit a model of so many ``weights`` on the CPU, if this process is the program's."""
    if not ours or any(name in os.environ for name in SET_BY_USER):
        return
    import torch

    wanted = 1 if weights < SMALL else cores()
    if wanted != torch.get_num_threads():
        log.debug("torch gets %d of %d threads", wanted, torch.get_num_threads())
        torch.set_num_threads(wanted)


def cores(cpus: Path = CPUS, cgroup: Path = CGROUP) -> int:
    """Physical cores that this process may use: by its affinity, and by the quota of its container. At least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_read(cpus / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in allowed}
    return max(1, min(len(siblings), _quota(cgroup) or len(siblings)))


def _quota(cgroup: Path) -> int | None:
    """Whole CPUs of the container's quota, rounded up; None without one."""
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")  # cgroup 2
    if not period:  # cgroup 1
        quota, period = (_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such files
        return None
    return -(-int(quota) // int(period)) if share > 0 else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
