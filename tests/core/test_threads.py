"""The number of threads: one for a small model, the process's share of the machine for a large one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mu.core import threads
from mu.models import load


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The command line's own process on a machine of 8 cores, where nothing is set."""
    before = torch.get_num_threads()
    for name in threads.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "ours", True)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    torch.set_num_threads(3)
    yield monkeypatch
    torch.set_num_threads(before)


@pytest.mark.parametrize(("weights", "wanted"), [(0, 1), (threads.SMALL - 1, 1), (threads.SMALL, 8), (10**9, 8)])
def test_a_small_model_gets_one_and_a_large_one_the_cores(weights: int, wanted: int, given: pytest.MonkeyPatch) -> None:
    threads.fit(weights)
    assert torch.get_num_threads() == wanted


def test_a_loaded_model_says_its_size(given: pytest.MonkeyPatch) -> None:
    load("canvas-clip", device="cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", threads.SET_BY_USER)
def test_what_the_user_set_stays(name: str, given: pytest.MonkeyPatch) -> None:
    given.setenv(name, "3")
    threads.fit(0)
    assert torch.get_num_threads() == 3


def test_another_program_keeps_its_number(given: pytest.MonkeyPatch) -> None:
    given.setattr(threads, "ours", False)
    threads.fit(0)
    assert torch.get_num_threads() == 3


def machine(folder: Path, siblings: list[str], **cgroup: str) -> tuple[Path, Path]:
    """A stand-in for /sys: the hyperthreads of each CPU, and files of the container."""
    for number, of in enumerate(siblings):
        file = folder / f"cpu{number}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(of + "\n")
    for name, text in cgroup.items():
        file = folder / "group" / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder, folder / "group"


TWINS = ["0,4", "1,5", "2,6", "3,7"] * 2


@pytest.mark.parametrize(
    ("allowed", "cgroup", "wanted"),
    [
        (range(8), {}, 4),
        (range(8), {"cpu_DOT_max": "max 100000"}, 4),
        (range(8), {"cpu_DOT_max": "200000 100000"}, 2),
        (range(8), {"cpu_DOT_max": "150000 100000"}, 2),
        (range(8), {"cpu_DOT_max": "10000 100000"}, 1),
        (range(8), {"cpu_DOT_max": "3200000 100000"}, 4),
        (range(8), {"cpu__cpu_DOT_cfs_quota_us": "100000", "cpu__cpu_DOT_cfs_period_us": "100000"}, 1),
        (range(8), {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}, 4),
        ([0, 4], {}, 1),
        ([0, 1, 9], {}, 3),
    ],
)
def test_cores_are_those_the_process_may_use(
    allowed: list[int], cgroup: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    assert threads.cores(*machine(tmp_path, TWINS, **cgroup)) == wanted
