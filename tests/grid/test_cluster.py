"""The same cells on Ray."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mu.core.errors import MissingDependency
from mu.grid.engines import engine_of, in_this_process
from mu.grid.folder import GridFolder
from mu.grid.plan import plan_of
from mu.grid.running import run
from tests.grid.conftest import SUITE, small


@pytest.mark.slow
def test_two_workers_of_ray_do_what_one_process_does_also_if_one_is_lost(tmp_path: Path) -> None:
    """A worker is killed while it works: Ray runs its cell again, which goes on where it was."""
    pytest.importorskip("ray")
    plan = plan_of(small(concepts=["star", "neon", "fish"], suites=[{**SUITE, "steps": 2}], memory=0.5))
    folder, killed = GridFolder(tmp_path / "ray"), list[str]()

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            for cell in plan.cells:
                where = folder.record(cell.name).where
                if where and not killed:
                    os.kill(int(where.rpartition(" ")[2]), signal.SIGKILL)
                    killed.append(cell.name)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    with engine_of(ray="local", memory=0.5) as engine:
        ended = run(plan, folder.folder, engine)
    killer.join()
    assert (ended.done, ended.failed) == (3, []) and len(killed) == 1
    assert folder.record(killed[0]).attempts == 2, "control: one was lost"
    run(plan, tmp_path / "here", in_this_process)
    here = GridFolder(tmp_path / "here")
    for cell in plan.cells:
        assert folder.run(cell.name).read_scores() == here.run(cell.name).read_scores()
    processes = {folder.record(cell.name).where for cell in plan.cells}
    assert len(processes) > 1, "more than one worker"


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"--ray needs the package 'ray': pip install ray \(the extra 'grid'"):
        engine_of(ray="auto").__enter__()
