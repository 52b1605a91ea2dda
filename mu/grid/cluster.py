"""Cells on a Ray cluster: a task for each, with its cores, memory and GPU, and retries where a worker is lost.

All machines must see the grid's folder under the same path, and have this package. What a cell needs of others, the
base model's images, lies in that folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mu.core.errors import ConfigError, MissingDependency, OutputError, quoted
from mu.core.threads import cores
from mu.grid.folder import GridFolder, Record
from mu.grid.machine import GIB, Fit, Room, fit
from mu.grid.plan import Cell
from mu.grid.pool import failed, limit_threads

RETRIES = 2
"""How often a cell whose worker is lost goes on elsewhere."""
LOCAL = "local"
"""The address that starts Ray on this machine."""


Results = Iterator[tuple[Cell, Record]]


@contextmanager
def connected(
    address: str, memory: float | None = None, device: str = ""
) -> Iterator[Callable[[Sequence[Cell], Path], Results]]:
    """Be a client of the cluster at ``address`` inside the block, and run cells there.

    Raises `MissingDependency` without Ray, and `OutputError` if there is no cluster."""
    ray = _ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"num_cpus": cores(), "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())[:160]
        raise OutputError(
            f"no Ray cluster at {quoted(address)}: start one with `ray start --head`, or pass --ray local ({told})"
        ) from None
    try:
        yield lambda cells, home: _on_ray(ray, cells, home, memory, device)
    finally:
        ray.shutdown()


def _on_ray(ray: Any, cells: Sequence[Cell], home: Path, memory: float | None, device: str) -> Results:
    """Run ``cells``, and yield each with its outcome as it ends.

    Raises `ConfigError` if no machine of the cluster has the memory (GiB) that a cell needs."""
    wanted = _fit(ray, cells, memory, device)
    task = ray.remote(_run).options(
        num_cpus=wanted.threads, num_gpus=int(wanted.gpus > 0), memory=int(wanted.memory * GIB), max_retries=RETRIES
    )
    place = str(home.resolve())
    waiting = {task.remote(cell.to_json(), place, wanted.threads): cell for cell in cells}
    while waiting:
        (ended, *_), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(ended)
        try:
            record = Record.model_validate(ray.get(ended))
        except ray.exceptions.RayError as error:
            told = " ".join(str(error).split())[:300]
            record = failed(GridFolder(home), cell, f"its Ray worker was lost {RETRIES + 1} times: {told}")
        yield cell, record


def _run(content: dict[str, Any], home: str, threads: int) -> dict[str, Any]:
    """One cell, in a process of the cluster."""
    limit_threads(threads)
    from mu.grid.cell import run_cell

    return run_cell(Cell.read(content), Path(home)).model_dump()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingDependency("ray", "grid", "--ray") from None
    return ray


def _fit(ray: Any, cells: Sequence[Cell], memory: float | None, device: str) -> Fit:
    """What a cell needs, within what the largest machine of the cluster has."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {name: max((each.get(name, 0.0) for each in machines), default=0.0) for name in ("CPU", "memory", "GPU")}
    gpus = int(most["GPU"]) if device in ("", "auto", "cuda") else 0
    wanted = fit(cells, Room(max(int(most["CPU"]), 1), most["memory"] / GIB, gpus), None, memory)
    if wanted.memory * GIB > most["memory"]:
        raise ConfigError(
            f"a cell needs {wanted.memory:g} GiB, and the largest machine of the cluster gives Ray "
            f"{most['memory'] / GIB:.1f} GiB: set memory in the plan if it needs less"
        )
    return wanted
