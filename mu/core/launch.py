"""Run this command again, once for each of several devices, and end all of its processes when one fails.

``accelerate launch`` and ``torchrun`` do the same, and also over several machines. See `mu.core.parallel` for what the
processes then share. The first one's exit code is the command's. A signal to end goes to it alone, so that it can keep
what is done; the others end with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from mu.core import parallel, threads

GRACE = 15.0
"""Seconds that a process may take to end by itself after another one failed: to write its checkpoint."""


def several(config: Any) -> list[str]:
    """The devices of ``config`` if each needs a process of its own, else none.

    That is so if the method shares its draws (``train.draws``) and `apart` says so. Raises `ConfigError` if they cannot
    share the draws.
    """
    train = getattr(config, "train", None)
    parts = apart(str(getattr(config, "devices", ""))) if hasattr(train, "draws") else []
    if parts:
        given = getattr(train, "draws", None)
        parallel.check_draws(len(parts) if given is None else getattr(train, "drawn", given), len(parts))
    return parts


def apart(devices: str) -> list[str]:
    """The ``devices`` of a list like ``0,1``, if each gets a process that runs this command again; else none.

    This machine must have all of them, and this process be neither one of several nor another program's, such as a
    test's.
    """
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    told = sys.orig_argv[len(sys.orig_argv) - len(sys.argv) + 1 :] == sys.argv[1:]
    return parts if len(parts) > 1 and told and not parallel.started() and _there(parts) else []


def _there(devices: Sequence[str]) -> bool:
    """Whether this machine has all ``devices``, each GPU once. Who loads the model tells of a GPU that is missing."""
    numbers = [int(name) for name in (each.removeprefix("cuda:") for each in devices) if name.isdecimal()]
    if any(each != "cpu" and not each.removeprefix("cuda:").isdecimal() for each in devices):
        return False
    if numbers:
        import torch

        return len({*numbers}) == len(numbers) and max(numbers) < torch.cuda.device_count()
    return True


def launched(devices: Sequence[str], again: str = "run again with --resume to continue") -> int:
    """Run this command in a process for each of ``devices``. Returns the exit code.

    If a process is lost, one line says so, and what to do ``again``."""
    n = len(devices)
    usual = {} if any(name in os.environ for name in threads.SET_BY_USER) else _threads(n)
    shared = {**usual, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    shared[parallel.PARENT] = os.getpid()
    same = [sys.executable, *sys.orig_argv[1:]]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for k in range(n):
            own = {"RANK": k, "LOCAL_RANK": k}
            environment = os.environ | {name: str(value) for name, value in {**shared, **own}.items()}
            processes.append(subprocess.Popen(same, env=environment, start_new_session=True))
        return _outcome(processes, devices, again)
    finally:
        for process in processes:
            _end(process)


def _outcome(processes: Sequence[subprocess.Popen[bytes]], devices: Sequence[str], again: str) -> int:
    """Wait for the first process, or until another one fails. Returns the command's exit code.

    Ctrl-C goes to the first process, which ends in its own time.
    """
    first, *others = processes
    while first.poll() is None and not any(each.poll() for each in others):
        _wait(first)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and (first.poll() is None or (_lost(first) and _failed(processes) is None)):
        _wait(first)
    if first.returncode is not None and first.returncode >= 0 and not _lost(first):
        return first.returncode
    print(f"error: {_reason(processes, devices)}; {again}", file=sys.stderr)
    return 2


def _wait(first: subprocess.Popen[bytes]) -> None:
    try:
        time.sleep(0.1)
    except KeyboardInterrupt:
        first.send_signal(signal.SIGINT)


def _lost(process: subprocess.Popen[bytes]) -> bool:
    return process.returncode == parallel.LOST


def _failed(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The index of a process that failed by itself; None if there is none."""
    return next((k for k, each in enumerate(processes) if each.poll() and not _lost(each)), None)


def _reason(processes: Sequence[subprocess.Popen[bytes]], devices: Sequence[str]) -> str:
    k = _failed(processes)
    if k is None:
        return f"the {len(processes)} processes waited for each other in vain"
    code = processes[k].returncode
    how = f"by signal {-code}, as when memory is short" if code < 0 else f"with exit code {code}, see its own message"
    return f"process {k + 1} of {len(processes)}, on {devices[k]}, was ended {how}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` if it still runs: a follower has nothing to keep."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _threads(processes: int) -> dict[str, int]:
    """Threads for each of so many processes on this machine's cores."""
    return {"OMP_NUM_THREADS": max(1, threads.cores() // processes)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
