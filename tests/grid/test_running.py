"""Cells are run once, go on where they were, and fail without ending the grid."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mu.core.errors import DataError, OutputError
from mu.core.lock import locked
from mu.core.run import RunDirectory
from mu.edits.files import open_edit
from mu.grid import cell as cells
from mu.grid import pool
from mu.grid.engines import engine_of, in_this_process
from mu.grid.folder import GridFolder, Record
from mu.grid.machine import GIB, Room, fit, free_memory, needed
from mu.grid.plan import Cell, Plan, plan_of
from mu.grid.running import run
from tests.grid.conftest import SUITE, small

KILLER = """
import json, os, pathlib, signal, sys, time
record = pathlib.Path(sys.argv[1])
while not record.exists(): time.sleep(0.02)
os.kill(int(json.loads(record.read_text())["where"].rpartition(" ")[2]), signal.SIGKILL)
"""


def states(folder: GridFolder) -> list[str]:
    return [state for state, _ in folder.states().values()]


def test_a_cell_is_an_ordinary_run_and_shares_the_base_s_images(finished: tuple[Plan, GridFolder]) -> None:
    plan, folder = finished
    assert states(folder) == ["done", "failed", "done", "failed"]
    done = [cell for cell in plan.cells if folder.is_done(cell)]
    for cell in done:
        run = folder.run(cell.name)
        assert open_edit(run.edit).info.concepts == cell.concepts
        assert run.read_scores()["concept"]["edited"] and run.report.exists()
        assert run.read_environment()["seconds"] > 0
    (shared,) = [path for path in folder.base.rglob("*") if path.is_dir() and list(path.glob("*.png"))]
    images = list(shared.glob("*.png"))
    assert len(images) == 10 + 2 * 4, "targets and neighbours, once for both cells"
    edited = [len(list(folder.run(cell.name).answers.rglob("edited/*.png"))) for cell in done]
    assert edited == [18, 18]


def test_a_failed_cell_is_a_row_with_its_reason(finished: tuple[Plan, GridFolder]) -> None:
    plan, folder = finished
    lost = [record for state, record in folder.states().values() if state == "failed"]
    assert [record.reason.partition(":")[0] for record in lost] == ["'moon' is erased, so it cannot stay"] * 2
    assert not any(record.traceback for record in lost), "control: a defect has one"
    assert folder.run(plan.cells[1].name).edit.exists(), "the search is not lost"


def test_what_has_its_result_is_not_run_again(
    finished: tuple[Plan, GridFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = finished
    asked: list[str] = []

    def engine(todo: Sequence[Cell], home: Path) -> Iterator[tuple[Cell, Record]]:
        asked.extend(cell.name for cell in todo)
        return iter(())

    run(plan, folder.folder, engine)
    assert asked == [plan.cells[1].name, plan.cells[3].name], "only the failed ones are tried again"
    other = plan_of(small(suites=[{**SUITE, "steps": 3}]))
    assert not folder.is_done(other.cells[0]), "control: another measurement of the same edit"
    assert other.cells[0].name == plan.cells[0].name


def test_another_measurement_keeps_the_edit(tmp_path: Path) -> None:
    run(plan_of(small()), tmp_path, in_this_process)
    folder, name = GridFolder(tmp_path), plan_of(small()).cells[0].name
    edit = folder.run(name).edit.stat()
    before = folder.record(name)
    run(plan_of(small(suites=[{**SUITE, "steps": 2}])), tmp_path, in_this_process)
    assert folder.run(name).edit.stat() == edit
    (score, *_) = folder.run(name).read_scores()["concept"]["edited"]
    assert "2 steps" in score.protocol
    after = folder.record(name)
    assert after.attempts == 2 and after.seconds > before.seconds
    assert before.evaluations == 2 * 4 * (18 + 18), "two latents a step with guidance, of base and edited images"
    assert after.evaluations == 2 * 2 * (18 + 18), "no search"


def test_a_search_s_evaluations_are_counted(tmp_path: Path, tiny_folder: Path) -> None:
    method = {"method": "esd", "preset": "styles", "set": {"train.iterations": 3, "denoising_steps": 2}}
    plan = plan_of(small(methods=[method], models=[str(tiny_folder)], suites=[{**SUITE, "steps": 1}]))
    run(plan, tmp_path, in_this_process)
    searched = GridFolder(tmp_path).record(plan.cells[0].name).evaluations - 2 * (18 + 18)
    assert 3 * 3 <= searched <= 3 * 5, "an update of k = 0 or 1 steps takes 2 (k + 1) + 1"


def test_a_killed_search_goes_on(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"train.iterations": 6, "train.checkpoint_every": 2, "denoising_steps": 2}
    method = {"method": "esd", "preset": "styles", "set": few}
    plan = plan_of(small(methods=[method], models=[str(tiny_folder)], suites=[{**SUITE, "steps": 1}]))
    run(plan, tmp_path / "whole", in_this_process)
    wanted = open_edit(GridFolder(tmp_path / "whole").run(plan.cells[0].name).edit).tensors()
    steps = 0

    class Killed(BaseException): ...

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Killed

    watched = RunDirectory.recording

    @contextmanager
    def recording(self: RunDirectory, *given: Any, **named: Any) -> Iterator[Any]:
        with watched(self, *given, **named) as log:
            yield lambda row: (step(), log(row))

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "recording", recording)
        with pytest.raises(Killed):
            run(plan, tmp_path / "killed", in_this_process)
    folder = GridFolder(tmp_path / "killed")
    assert states(folder) == ["waiting"] and folder.record(plan.cells[0].name).state == "running"
    assert run(plan, tmp_path / "killed", in_this_process).done == 1
    found = open_edit(folder.run(plan.cells[0].name).edit).tensors()
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_a_defect_and_too_little_memory_are_rows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: list[Exception] = [
        ZeroDivisionError("a defect"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ]

    def search(*given: Any) -> Any:
        raise troubles.pop(0)

    monkeypatch.setattr(cells, "_search", search)
    plan = plan_of(small(concepts=["star", "moon", "fish"]))
    ended = run(plan, tmp_path, in_this_process)
    reasons = [record.reason for _, record in ended.failed]
    assert reasons[0] == "ZeroDivisionError: a defect" and "ZeroDivisionError" in ended.failed[0][1].traceback
    assert reasons[1].startswith("not enough memory: ask for smaller images")
    assert reasons[2].startswith("not enough memory")


@pytest.mark.slow
def test_processes_work_and_one_that_is_killed_costs_one_cell(tmp_path: Path) -> None:
    """Two workers; the first is killed as soon as it works, and the other cells come to their results."""
    plan = plan_of(small(concepts=["star", "neon", "fish"], suites=[{**SUITE, "steps": 1}]))
    folder = GridFolder(tmp_path)
    folder.write("", plan.cells)

    record = tmp_path / "cells" / f"{plan.cells[0].name}.json"
    killer = subprocess.Popen([sys.executable, "-c", KILLER, str(record)])
    with engine_of(jobs=2) as engine:
        found = {cell.name: record for cell, record in engine(plan.cells, tmp_path)}
        assert isinstance(engine, pool.Pool)
        processes = [worker.process for worker in engine.workers]
        again = plan_of(small(suites=[{**SUITE, "steps": 3}])).cells
        assert [record.state for _, record in engine(again, tmp_path)] == ["done"]
        assert engine.workers[0].process is processes[0], "it stays"
    assert killer.wait() == 0
    assert not any(process.is_alive() for process in processes)
    assert [found[cell.name].state for cell in plan.cells] == ["failed", "done", "done"], found
    assert "killed by signal 9" in found[plan.cells[0].name].reason
    assert folder.workers.exists(), "what workers print is kept"
    assert run(plan, tmp_path, in_this_process).before >= 1, "and the next run goes on"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    plan = plan_of(small())
    with locked(tmp_path / "grid"), pytest.raises(OutputError, match="another process is working in"):
        run(plan, tmp_path / "grid", in_this_process)
    assert not (tmp_path / "grid").exists()


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files, such as 'thesis\.tex'"):
        run(plan_of(small()), tmp_path, in_this_process)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="is not a grid's folder"):
        GridFolder(tmp_path).cells()


def test_as_many_at_once_as_fit() -> None:
    some = plan_of(small(concepts=["star", "moon", "fish", "neon"])).cells
    assert fit(some, Room(8, 100.0)) == (4, 1, needed("canvas"), False)
    assert fit(some, Room(2, 100.0)).jobs == 2
    assert fit(some, Room(8, 3.9), memory=2.0).jobs == 1
    assert fit(some, Room(8, 0.1)).jobs == 1, "one always runs"
    assert fit(some, Room(8, None), jobs=7).jobs == 7
    assert fit(some, Room(8, 3.0, gpus=2)) == (2, 1, needed("canvas"), 2)
    large = plan_of(small(models=["CompVis/stable-diffusion-v1-4"])).cells
    assert fit(large, Room(8, 40.0)) == (1, 8, 16.0, False), "a large model gets the threads"


def test_a_container_s_memory_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:  {8 * 2**20} kB\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == 8
    (tmp_path / "memory.max").write_text(str(6 * GIB)), (tmp_path / "memory.current").write_text(str(4 * GIB))
    assert free_memory(tmp_path / "meminfo", tmp_path) == 2
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == 8
    assert free_memory(tmp_path / "none", tmp_path / "none") is None


def test_workers_get_their_threads_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "5")
    pool.limit_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "5"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name)
    pool.limit_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    with engine_of(jobs=0) as engine:
        assert engine is in_this_process


def test_more_workers_than_gpus_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with the number of a GPU that is not there would take the CPU without a word."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [pool.gpu_of(worker, 2) for worker in range(5)] == ["0", "1", "0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert [pool.gpu_of(worker, 2) for worker in range(3)] == ["3", "7", "3"]
