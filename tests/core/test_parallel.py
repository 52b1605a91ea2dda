"""Several processes find what one finds, only the first writes, and none outlives another's failure.

This file is also the program of the processes: ``python -m tests.core.test_parallel WHAT FOLDER``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.algorithms import algorithm
from mu.core import launch, parallel
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError
from mu.core.loop import train
from mu.core.run import RunDirectory
from mu.data.canvas.layouts import write_shards
from mu.data.pairs import Pair
from mu.edits.files import open_edit
from mu.training.calibration import Calibration
from mu.training.calibration_config import CalibrateConfig
from mu.training.gradient_files import open_gradients
from mu.training.probe import Reading
from mu.training.watch import Watch
from tests.core.regression import Regression

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 4
LONGEST = 600
"""Seconds that processes may take on a busy machine."""
METHODS: dict[str, dict[str, Any]] = {
    "esd": {"denoising_steps": 4, "train": {"lr": 1e-4}},
    "ca": {"images": {"steps": 2, "count": 8}, "train": {"lr": 1e-4}},
    "spm": {"train": {"max_denoising_steps": 4, "lr": 1e-3, "optimizer_type": "AdamW", "lr_warmup_steps": 0}},
    "cie": {"data": {"images": 4, "steps": 2}, "train": {}},
    "sepce": {"data": {"images": 4, "steps": 2}, "train": {}},
    "fmn": {"images": {"steps": 2, "count": 8}, "train": {"gradients": "zeroed"}},
}
"""Small searches on the embedded model."""
ByTwo = tuple[Path, list[subprocess.CompletedProcess[str]]]


class Readings:
    """Stands in a probe's place: what is left sinks with every reading, as the first process reads it."""

    def __init__(self) -> None:
        self.number = 0

    def read(self) -> Reading:
        assert not parallel.follows(), "the probe is read once for all"
        self.number += 1
        return Reading(max(0.9 - 0.3 * self.number, 0.0), 0.0, 0.01, 0.01, 0.1)


class Watched(Regression):
    """A regression that a watch steers and ends."""

    curve: Sequence[dict[str, float]] = ()

    def run(self, draws: int, fail: int | None = None, **options: Any) -> Tensor:
        around: Any = None
        probe: Any = Readings()
        calibration = Calibration(CalibrateConfig(every=1), around, probe)
        optimizer = torch.optim.SGD([self.weights[0]], lr=0.1)
        watch = Watch([calibration], optimizer, [self.weights[0]])
        train(self.step, optimizer, 12, generator=self.numbers, draws=draws, state={"watch": watch}, stop=watch)
        watch.keep_best()
        self.curve = watch.curve
        return self.weights[0].detach()


def settings(name: str, folder: Path, draws: int | None) -> BaseConfig:
    kind, place = algorithm(name), {"output_dir": str(folder / name)}
    own = METHODS[name] | {"train": METHODS[name]["train"] | {"iterations": ITERATIONS, "draws": draws}}
    where = place | ({"run_dir": str(folder / name)} if name == "spm" else {})
    return kind.for_concepts(["star"], "canvas", {}, own, where, {"devices": "cpu"})


def deltas(edit: Any) -> Tensor:
    return torch.cat([edit.delta(name).reshape(-1) for name in sorted(edit.parameters)])


def save_gradients(source: Path, out: Path) -> None:
    """SLUG's two gradient files of the pairs in the tar files of ``source``; of the retain pairs three fill no block."""
    data = {"forget": str(source / "*.tar"), "retain": str(source / "*.tar"), "caption": "concept"}
    values = {"data": data, "gradients": {"batch_size": 4, "chunk": 4}, "devices": "cpu"}
    slug: Any = algorithm("slug")
    for kind, concept in (("forget", "nobody"), ("retain", "")):
        given = slug.for_concepts([concept] if concept else [], "canvas-clip", None, values)
        slug(given).save_gradients(kind, out / f"{kind}.safetensors", concept)


def read_files() -> set[str]:
    """The names of the tar files whose images this process reads from now on."""
    read: set[str] = set()
    image = Pair.image

    def noting(pair: Pair) -> Any:
        read.add(pair.place.file.name)
        return image(pair)

    Pair.image = noting  # type: ignore[method-assign]
    return read


def main(what: str, place: str) -> None:
    """The program of each process: one task of ``what`` after another."""
    rank = parallel.rank()
    for task in what.split(","):
        work(task, Path(place), rank)
    assert parallel.leave() == (rank > 0)
    assert parallel.count() == 1


def work(task: str, folder: Path, rank: int) -> None:
    match task:
        case _ if task in METHODS:
            found = algorithm(task)(settings(task, folder, None)).run()
            torch.save(deltas(found.edit), folder / f"{task}-{rank}.pt")
        case "loop" | "interrupted":
            search = Regression()
            kept = {"checkpoint": folder / "kept.pt"} if task == "interrupted" and not rank else {}
            torch.save(search.run(4, **kept), folder / f"{task}-{rank}.pt")
            (folder / f"{task}-{rank}.json").write_text(json.dumps(search.rows))
        case "watched":
            watched = Watched()
            torch.save(watched.run(2), folder / f"watched-{rank}.pt")
            (folder / f"watched-{rank}.json").write_text(json.dumps(watched.curve))
        case "gradients":
            read = read_files()
            save_gradients(folder, folder)
            (folder / f"read-{rank}.json").write_text(json.dumps(sorted(read)))


def processes(*program: str, n: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Run the module and arguments of ``program`` in ``n`` processes, as a launcher does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(n)}
    shared |= {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", *program]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=shared | {"RANK": str(k), "LOCAL_RANK": str(k)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for k in range(n)
    ]  # fmt: skip
    try:
        ends = [(each, *each.communicate(timeout=LONGEST)) for each in started]
        return [subprocess.CompletedProcess(command, each.returncode, *told) for each, *told in ends]
    finally:
        for each in started:
            each.kill()


# -- the loop ---------------------------------------------------------------------------------------------------------


class Stopped(Regression):
    """After seven of twelve steps."""

    def step(self, i: int) -> dict[str, Tensor]:
        if i == 4 * 7 + 2:
            raise KeyboardInterrupt
        return super().step(i)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> ByTwo:
    """What two processes left that trained, went on, were watched and read gradients, and how they ended."""
    folder = tmp_path_factory.mktemp("by-two")
    with pytest.raises(KeyboardInterrupt):
        Stopped().run(4, checkpoint=folder / "kept.pt")
    assert torch.load(folder / "kept.pt")["done"] == 7
    for number, count in enumerate((8, 6, 5)):
        write_shards(folder / "made", count, number)
        next((folder / "made").glob("*.tar")).rename(folder / f"{number}.tar")
        shutil.rmtree(folder / "made")
    ends = processes("tests.core.test_parallel", "loop,interrupted,watched,gradients", str(folder))
    assert [each.returncode for each in ends] == [0, 0], ends
    return folder, ends


def test_two_processes_train_as_one(by_two: ByTwo) -> None:
    folder, ends = by_two
    one, control = Regression(), Regression()
    expected = one.run(4)
    first, second = (torch.load(folder / f"loop-{k}.pt") for k in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
    assert (control.run(1) - expected).abs().max() > 1e-2, "control"
    assert torch.equal(expected[-2:], torch.ones(2)), "without a gradient there is no decay"
    for k in range(2):
        rows = json.loads((folder / f"loop-{k}.json").read_text())
        assert [row["step"] for row in rows] == list(range(12))
        for row, same in zip(rows, one.rows, strict=True):
            assert row == pytest.approx(same, abs=1e-5)
    assert "loss" in ends[0].stderr
    (only,) = ends[1].stderr.splitlines()
    assert "19 pairs" in only and ends[1].stdout == "", "of the gradients; its training tells nothing"


def test_one_draw_is_the_plain_loop() -> None:
    """Without ``draws``, the numbers are those of a loop that knows no draws."""
    work, by_hand = Regression(), Regression()
    optimizer = torch.optim.AdamW([*by_hand.weights, by_hand.unused], lr=0.1, weight_decay=0.1)
    for i in range(12):
        optimizer.zero_grad(set_to_none=True)
        by_hand.step(i)["loss"].backward()
        optimizer.step()
    assert torch.equal(work.run(1), torch.cat([*by_hand.state_dict(), by_hand.unused.detach()]))
    assert torch.equal(work.numbers.get_state(), by_hand.numbers.get_state())


def test_a_checkpoint_of_one_process_is_resumed_by_two(by_two: ByTwo) -> None:
    folder, _ = by_two
    assert json.loads((folder / "interrupted-1.json").read_text())[0]["step"] == 7
    torch.testing.assert_close(torch.load(folder / "interrupted-1.pt"), Regression().run(4), rtol=0, atol=1e-6)
    assert not (folder / "kept.pt").exists()


def test_a_watch_decides_for_all_processes(by_two: ByTwo) -> None:
    folder, _ = by_two
    one = Watched()
    expected = one.run(2)
    assert 3 <= len(one.curve) < 12 and one.curve[-1]["lr"] >= 0.1
    for k in range(2):
        torch.testing.assert_close(torch.load(folder / f"watched-{k}.pt"), expected, rtol=0, atol=1e-6)
        assert json.loads((folder / f"watched-{k}.json").read_text()) == one.curve


def test_a_failure_in_one_process_ends_the_other() -> None:
    """Draw 5 is the second process's."""
    first, second = processes("tests.core.regression", "5")
    assert (first.returncode, second.returncode) == (2, 2)
    assert second.stderr == "error: this draw cannot be made\n"
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("error")]
    assert "process 1 of 2 lost the others" in line


def test_gradients_over_tar_files_are_those_of_one_process(by_two: ByTwo, tmp_path: Path) -> None:
    """19 pairs in three files: the first process reads the images of the first ones, the second those of the others."""
    folder, _ = by_two
    save_gradients(folder, tmp_path)
    for kind in ("forget", "retain"):
        (info, two), (same, one) = (open_gradients(place / f"{kind}.safetensors") for place in (folder, tmp_path))
        assert info == same and info.pairs == (19 if kind == "forget" else 16)
        assert two.keys() == one.keys() and len(one) > 10
        for name, g in one.items():
            torch.testing.assert_close(two[name], g, rtol=0, atol=1e-6 * float(g.abs().max()))
    read = [json.loads((folder / f"read-{k}.json").read_text()) for k in range(2)]
    assert read == [["0.tar"], ["1.tar", "2.tar"]], "each its own shards"


def test_draws_are_shared_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel.check_draws(3)
    _as_one_of(3, 0, monkeypatch)
    parallel.check_draws(6)
    with pytest.raises(ConfigError, match=r"3 processes cannot share 4 draws.*train\.draws"):
        Regression().run(4)


# -- devices ----------------------------------------------------------------------------------------------------------


def _as_one_of(n: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(rank))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(n))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.parametrize(
    ("wanted", "own"),
    [
        ("0,1,2", "1"), ("cpu,cpu,cpu", "cpu"), ("cuda:3, cuda:5, 7", "cuda:5"), ("0", "cuda:1"), ("cuda:4", "cuda:5"),
        ("cuda", "cuda:1"), ("cpu", "cpu"), ("mps", "mps"),
    ],
)  # fmt: skip
def test_each_process_has_its_own_device(wanted: str, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parallel.own_device(wanted) == wanted, "one process chooses itself"
    _as_one_of(3, 1, monkeypatch)
    assert parallel.own_device(wanted) == own
    with pytest.raises(ConfigError, match="2 devices for 3 processes"):
        parallel.own_device("0,1")


def test_what_gets_a_process_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mu", *sys.orig_argv[1:]])
    esd, uce = (algorithm(name).config_class.parse({"devices": "cpu,cpu"}) for name in ("esd", "uce"))
    assert launch.several(esd) == ["cpu", "cpu"]
    assert launch.several(uce) == [], "nothing of it can be shared"
    assert launch.several(esd.merged({"devices": "cpu"})) == []
    with pytest.raises(ConfigError, match="2 processes cannot share 3 draws"):
        launch.several(esd.merged({"train.draws": 3}))
    spm = algorithm("spm").config_class.parse({"devices": "cpu,cpu", "train": {"draws": 1, "batch_size": 2}})
    assert launch.several(spm) == ["cpu", "cpu"], "two draws in all"
    if not torch.cuda.is_available():
        assert launch.several(esd.merged({"devices": "0,1"})) == [], "the GPUs are not there"
    _as_one_of(2, 0, monkeypatch)
    assert launch.several(esd) == [], "it is one of several already"
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["mu", "erase"])
    assert launch.several(esd) == [], "the process runs another command"


# -- methods ----------------------------------------------------------------------------------------------------------


def launched(names: Sequence[str], folder: Path) -> None:
    """Run the methods by two processes that ``accelerate launch`` starts."""
    how = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no -m".split()
    program = [sys.executable, "-m", "accelerate.commands.launch", *how, "tests.core.test_parallel", ",".join(names)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    end = subprocess.run(
        [*program, str(folder)], cwd=ROOT, env=environment, timeout=LONGEST, capture_output=True, text=True
    )
    assert end.returncode == 0, end.stderr


@pytest.mark.parametrize("names", [("esd", "ca", "spm", "cie"), pytest.param(("sepce", "fmn"), marks=pytest.mark.slow)])
def test_two_processes_find_the_edits_of_one(names: Sequence[str], tmp_path: Path) -> None:
    launched(names, tmp_path)
    for name in names:
        run = RunDirectory(tmp_path / name)
        two = deltas(open_edit(run.edit))
        one, control = (
            deltas(algorithm(name)(settings(name, tmp_path / "one", draws)).find_edit()) for draws in (2, 1)
        )
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
        assert (one - control).abs().max() > 1e-5, "control"
        first, second = (torch.load(tmp_path / f"{name}-{k}.pt") for k in range(2))
        assert torch.equal(first, second)
        assert [row["step"] for row in run.read_metrics()] == list(range(ITERATIONS))
        assert "draws: 2" in run.config.read_text()
        assert run.read_environment()["processes"] == 2


def test_reused_latents_cannot_be_shared() -> None:
    kind = algorithm("spm").config_class
    for reused in ({"latent_pool": 4}, {"timesteps_per_trajectory": 2}):
        with pytest.raises(ConfigError, match=rf"train\.{next(iter(reused))}.*train\.draws"):
            kind.parse({"train": {"draws": 2, **reused}})
        kind.parse({"train": {"draws": 1, **reused}})


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("end", ["a follower is killed", "the command is interrupted"])
def test_the_command_ends_all_its_processes_and_keeps_what_is_done(end: str, tmp_path: Path) -> None:
    run, words = (
        RunDirectory(tmp_path / "run"),
        "erase esd --concept star --preset styles --model canvas --no-images --devices cpu,cpu",
    )
    quick = ["--set", "denoising_steps=1", "--set", "train.iterations=1000000", "--out", str(run.folder)]
    command = subprocess.Popen(
        [sys.executable, "-m", "mu", *words.split(), *quick], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        until = time.monotonic() + 240
        while not (run.metrics.exists() and run.metrics.read_text()):
            assert command.poll() is None, command.communicate()
            assert time.monotonic() < until
            time.sleep(0.2)
        first, second = children(command.pid)
        if end == "a follower is killed":
            os.kill(second, signal.SIGKILL)
        else:
            command.send_signal(signal.SIGINT)
        told = command.communicate(timeout=60)[1]
    finally:
        command.kill()
    assert not any(Path(f"/proc/{number}").exists() for number in (first, second))
    last = [line for line in told.splitlines() if not line.startswith("esd: ")]
    if end == "a follower is killed":
        assert command.returncode == 2
        assert last == [last[0]] and last[0].startswith("error: process 2 of 2, on cpu, was ended by signal 9")
        assert last[0].endswith("; run again with --resume to continue")
    else:
        assert command.returncode == 130
        assert last == ["interrupted: finished work is kept; run again with --resume to continue"]
    done = torch.load(run.checkpoints / "training.pt", weights_only=True)["done"]
    assert len(run.read_metrics()) == done >= 10


def children(parent: int) -> Sequence[int]:
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


if __name__ == "__main__":
    main(*sys.argv[1:])
