"""Killed at any moment, a command leaves no half file, and the same command ends in the same result.

One process loads the libraries and forks for each command, so that a command dies in its work and not in its imports.
The moments are seeded, and spread over the time that the whole command takes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mu.core.lock import LOCK, locked
from mu.core.run import RunDirectory
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import EditInfo, described
from mu.edits.files import open_edit
from mu.edits.weights import WeightEdit
from mu.models import EMBEDDED, load
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter, select

pytestmark = pytest.mark.slow

SERVER = """
import json, os, signal, sys, traceback
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
torch.set_num_threads(1)
import mu.diffusion.image_folder, mu.evaluation.suites.canvas, mu.evaluation.suites.clip, mu.report
from mu.algorithms import algorithm
from mu.cli import main
for name in ("spm", "sepce"):
    algorithm(name)
for line in sys.stdin:
    if isinstance(asked := json.loads(line), int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        continue
    log, *words = asked
    if not (pid := os.fork()):
        told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1), os.dup2(told, 2)
        code = 1
        try:
            sys.argv = ["mu", *words]
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except KeyboardInterrupt:
            code = 130  # before mu's first line
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
"""


class Commands:
    """``run("erase", ...)`` runs ``mu erase ...`` to its end; with ``after`` and ``how`` it is killed after a time."""

    def __init__(self, home: Path):
        self.home, self.started = home, 0
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *words: object, after: float | None = None, how: signal.Signals = signal.SIGKILL) -> int:
        pid = self.start(*words)
        if after is not None:
            time.sleep(after)
            os.kill(pid, how)  # to one that has ended, which the server has not waited for yet, it does nothing
        return self.end(pid)

    def start(self, *words: object) -> int:
        """Begin a command. Returns its process, which is there until `end`."""
        self.started += 1
        return self._told([str(self.log), *map(str, words)])

    def end(self, pid: int) -> int:
        """Wait for a process of `start`. Returns its exit code."""
        return self._told(pid)

    def _told(self, asked: object) -> int:
        assert self.server.stdin is not None and self.server.stdout is not None
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    @property
    def log(self) -> Path:
        """What the last command printed."""
        return self.home / str(self.started)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("logs"))
    assert made.run("--version") == 0  # from now on the libraries are loaded
    yield made
    made.server.kill()
    made.server.wait()


def no_half_file(folder: Path) -> None:
    """Every file that bears its final name is whole."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        match path.suffix:
            case ".safetensors":
                open_edit(path)
            case ".json":
                json.loads(path.read_text(encoding="utf-8"))
            case ".png":
                Image.open(path).load()
            case ".pt":
                torch.load(path, weights_only=True)


def nothing_hidden(folder: Path) -> None:
    """No lock, no partial file and no run that was set aside."""
    assert not [path for path in folder.rglob(".*") if path.exists()]


def killings(seed: str, count: int, whole: float) -> Iterator[tuple[float, signal.Signals]]:
    """Moments within ``whole`` seconds, by turns with SIGKILL and with Ctrl-C."""
    rng = random.Random(seed)
    for k in range(count):
        yield rng.uniform(0.0, whole), (signal.SIGKILL, signal.SIGINT)[k % 2]


def timed(work: Callable[[], int]) -> float:
    began = time.monotonic()
    assert work() == 0
    return time.monotonic() - began


def killed_and_repeated(
    commands: Commands, words: list[object], again: list[object], seed: str, whole: float, folder: Path, count: int
) -> int:
    """Kill the command ``count`` times, each time going on from what was left. Returns how often it died of that."""
    died = 0
    for after, how in killings(seed, count, whole):
        code = commands.run(*words, after=after, how=how)
        assert code in (0, 2, 130, -signal.SIGKILL), commands.said
        assert "Traceback" not in commands.said, commands.said
        died += code not in (0, 2)
        no_half_file(folder)
        words = again
    return died


def tensors(path: Path) -> dict[str, Any]:
    return open_edit(path).tensors()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SPM = ["erase", "spm", "--concept", "neon", "--preset", "canvas", "--device", "cpu", "--no-images"]
SHORT = {"train.iterations": 12, "save.per_steps": 3, "train.max_denoising_steps": 2}


def set_(settings: dict[str, object]) -> list[object]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def test_a_search_goes_on_to_the_same_edit(commands: Commands, tiny_folder: Path, tmp_path: Path) -> None:
    words = [*SPM, "--model", tiny_folder, *set_(SHORT)]
    whole = timed(lambda: commands.run(*words, "--out", tmp_path / "whole"))
    wanted = tensors(tmp_path / "whole" / "edit.safetensors")
    died = 0
    for k in range(16):
        out = tmp_path / str(k)
        again = [*words, "--out", out, "--resume"]
        died += killed_and_repeated(commands, again, again, f"spm {k}", whole, out, 2)
        assert commands.run(*again) == 0, commands.said
        assert same(tensors(out / "edit.safetensors"), wanted)
        steps = [row["step"] for row in RunDirectory(out).read_metrics()]
        assert steps == sorted(set(steps))
        no_half_file(out)
        nothing_hidden(out)
    assert died, "control: some of them died"


SEPCE = ["erase", "sepce", "--preset", "style", "--device", "cpu", "--no-images"]
SEPARABLE = {
    "train.iterations": 12, "train.checkpoint_every": 3, "train.lr": 0.01, "train.stop": "steps", "data.images": 4,
    "data.steps": 2, "basis.kind": "orthonormal", "basis.scale_factor": 1,
}  # fmt: skip


def test_a_search_with_a_bank_goes_on_to_the_same_bank(
    commands: Commands, tiny_folder: Path, tiny: DiffusionModel, tmp_path: Path
) -> None:
    def words(home: Path, concept: str) -> list[object]:
        out = ["--concept", concept, "--out", home / concept, "--bank", home / "bank"]
        return [*SEPCE, "--model", tiny_folder, *set_(SEPARABLE), *out]

    whole = tmp_path / "whole"
    assert commands.run(*words(whole, "star")) == 0, commands.said
    taken = timed(lambda: commands.run(*words(whole, "moon")))
    wanted = BankFolder(whole / "bank").open(tiny).edits
    home = tmp_path / "killed"
    assert commands.run(*words(home, "star")) == 0
    again = [*words(home, "moon"), "--resume"]
    killed_and_repeated(commands, again, again, "sepce", taken, home, 3)
    code = commands.run(*again)
    assert code == 0 or (code == 2 and "'moon' is in the bank" in commands.said), commands.said
    found = BankFolder(home / "bank").open(tiny).edits
    assert found.keys() == wanted.keys()
    assert all(same(found[name].tensors(), wanted[name].tensors()) for name in wanted)
    nothing_hidden(home)


def shift(model: DiffusionModel, concept: str, folder: Path) -> Path:
    """The file of an edit of all cross-attention keys."""
    generator = torch.Generator().manual_seed(len(concept))
    names = list(select(model, "unet.*.attn2.to_k.weight"))
    shifts = {name: torch.randn(find_parameter(model, name).shape, generator=generator) for name in names}
    WeightEdit(shifts, EditInfo("test", (concept,), **described(model, names))).save(folder / f"{concept}.safetensors")
    return folder / f"{concept}.safetensors"


def listed(bank: BankFolder) -> list[dict[str, object]]:
    return [entry.model_dump(exclude={"file"}) for entry in bank.read().edits]


def test_a_bank_is_as_before_or_as_after(
    commands: Commands, tiny_folder: Path, tiny: DiffusionModel, tmp_path: Path
) -> None:
    neon, star = (shift(tiny, concept, tmp_path) for concept in ("neon", "star"))
    merged = tmp_path / "merged.safetensors"

    def changes(bank: Path, out: Path) -> list[tuple[list[object], str]]:
        """Commands, and what they say if they are repeated although they were finished."""
        return [
            (["bank", "add", neon, "--bank", bank, "--model", tiny_folder, "--device", "cpu"], "is in the bank"),
            (["bank", "add", star, "--bank", bank, "--model", tiny_folder, "--device", "cpu"], "is in the bank"),
            (["bank", "restore", "neon", "--bank", bank], ""),
            (
                ["bank", "merge", "--bank", bank, "--model", tiny_folder, "--device", "cpu", "--format", "unet", "--out", out],
                "exists already",
            ),
        ]  # fmt: skip

    times = [timed(lambda words=words: commands.run(*words)) for words, _ in changes(tmp_path / "whole", merged)]
    for k in range(3):
        bank, out = tmp_path / f"bank {k}", tmp_path / f"merged {k}.safetensors"
        for (words, repeated), whole in zip(changes(bank, out), times, strict=True):
            killed_and_repeated(commands, words, words, f"bank {k} {words[1]}", whole, bank, 2)
            if (bank / "bank.json").exists():
                BankFolder(bank).open(tiny)  # every listed file is there and is the one that was added
            code = commands.run(*words)
            assert code == 0 or (code == 2 and repeated and repeated in commands.said), commands.said
            if code == 0:  # a refusal that needs no lock leaves a killed process's lock file, which holds nothing
                nothing_hidden(bank)
        # An edit's file is written before the bank lists it. The next change deletes it after a kill in between.
        assert {path.name for path in bank.glob("*.safetensors")} == {e.file for e in BankFolder(bank).read().edits}
        assert listed(BankFolder(bank)) == listed(BankFolder(tmp_path / "whole"))
        assert out.read_bytes() == merged.read_bytes()
        verbs = {row["verb"] for row in BankFolder(bank).history()}
        assert {"add", "restore"} <= verbs


def test_images_that_are_resumed_are_the_same(commands: Commands, tiny_folder: Path, tmp_path: Path) -> None:
    words = ["generate", "--prompt", "a star", "--prompt", "a fish", "--n", 12, "--steps", 3, "--model", tiny_folder,
             "--device", "cpu"]  # fmt: skip
    whole = timed(lambda: commands.run(*words, "--out", tmp_path / "whole"))
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for k in range(3):
        out = tmp_path / str(k)
        again = [*words, "--out", out, "--resume"]
        killed_and_repeated(commands, again, again, f"generate {k}", whole, out, 2)
        assert commands.run(*again) == 0, commands.said
        assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted


def test_scores_are_measured_again_the_same(commands: Commands, tmp_path: Path) -> None:
    if not EMBEDDED["canvas-clip"].exists():
        pytest.skip("the embedded model's weights are not in this checkout")
    clip, names = load("canvas-clip", device="cpu"), ["text_projection.weight"]
    shape = find_parameter(clip, names[0]).shape
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    edit = WeightEdit({names[0]: delta}, EditInfo("test", ("Ada Stone",), **described(clip, names)))

    def run(folder: Path) -> Path:
        folder.mkdir()
        edit.save(folder / "edit.safetensors")
        (folder / "environment.json").write_text('{"model": "canvas-clip", "concepts": ["Ada Stone"]}')
        return folder

    words = ["--device", "cpu", "--data", "canvas"]
    whole = timed(lambda: commands.run("evaluate", run(tmp_path / "whole"), *words))
    wanted = RunDirectory(tmp_path / "whole").read_scores()
    again = ["evaluate", run(tmp_path / "killed"), *words]
    killed_and_repeated(commands, again, again, "evaluate", whole, tmp_path / "killed", 2)
    assert commands.run(*again) == 0, commands.said
    assert RunDirectory(tmp_path / "killed").read_scores() == wanted
    nothing_hidden(tmp_path / "killed")


GRID = """
methods:
- {method: esd, preset: styles, set: {train.iterations: 8, train.checkpoint_every: 2, denoising_steps: 2}}
- {method: uce, preset: canvas}
concepts: [star]
models: ["%s"]
device: cpu
suites:
- {suite: concept, judge: canvas, seeds: [1], everyday: 0, steps: 1, retain: [heart]}
"""


def test_a_killed_grid_goes_on_to_the_same_edits(commands: Commands, tiny_folder: Path, tmp_path: Path) -> None:
    if not EMBEDDED["canvas-judge"].exists():
        pytest.skip("the embedded judge is not in this checkout")
    plan = tmp_path / "grid.yaml"
    plan.write_text(GRID % tiny_folder)
    words = ["grid", "run", plan, "--jobs", 0, "--out"]
    whole = timed(lambda: commands.run(*words, tmp_path / "whole"))
    edits = sorted(
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("runs/*/edit.safetensors")
    )
    assert len(edits) == 2
    again = [*words, tmp_path / "killed"]
    died = killed_and_repeated(commands, again, again, "grid", whole, tmp_path / "killed", 4)
    assert commands.run(*again) == 0, commands.said
    for edit in edits:
        assert same(tensors(tmp_path / "killed" / edit), tensors(tmp_path / "whole" / edit))
        scores = [RunDirectory((tmp_path / home / edit).parent).read_scores() for home in ("whole", "killed")]
        assert scores[0] == scores[1]
    nothing_hidden(tmp_path / "killed")
    assert died, "control: some of them died"


def refused(commands: Commands, words: list[object], folder: Path, home: Path) -> None:
    """The command says in one line that another process works in ``folder``, and changes nothing in ``home``."""
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert commands.run(*words) == 2, commands.said
    errors = [line for line in commands.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"another process is working in {folder}" in errors[0], commands.said
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def until_locked(folder: Path) -> None:
    """Wait until a process works in ``folder``."""
    end = time.monotonic() + 60
    while not (folder / LOCK).exists():
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(0.01)  # the file is there just before its lock is held


def test_two_at_once_are_one_and_a_clear_line(commands: Commands, tiny_folder: Path, tmp_path: Path) -> None:
    """The first is stopped at its work, the second is refused, and the first then ends as if it had been alone."""
    if not EMBEDDED["canvas-judge"].exists():
        pytest.skip("the embedded judge is not in this checkout")
    run, grid = tmp_path / "run", tmp_path / "grid"
    (tmp_path / "grid.yaml").write_text(GRID % tiny_folder)
    how = ["--suite", "concept", "--judge", "canvas", "--seeds", 1, "--everyday", 0, "--steps", 1, "--retain", "heart"]
    model = ["--model", tiny_folder, "--device", "cpu"]
    for folder, words in {
        run: [*SPM, "--model", tiny_folder, *set_(SHORT), "--out", run, "--resume"],
        tmp_path / "images": ["generate", "--prompt", "a star", "--steps", 2, *model, "--out", tmp_path / "images"],
        tmp_path / "audit": ["evaluate", "--edit", run, *model, "--out", tmp_path / "audit", *how],
        grid: ["grid", "run", tmp_path / "grid.yaml", "--jobs", 0, "--out", grid],
    }.items():
        first = commands.start(*words)
        until_locked(folder)
        os.kill(first, signal.SIGSTOP)
        try:
            refused(commands, words, folder, tmp_path)
        finally:
            os.kill(first, signal.SIGCONT)
        assert commands.end(first) == 0
        no_half_file(folder)
        nothing_hidden(folder)


def test_two_at_once_in_one_bank_are_one_and_a_clear_line(
    commands: Commands, tiny_folder: Path, tiny: DiffusionModel, tmp_path: Path
) -> None:
    neon, star = (shift(tiny, concept, tmp_path) for concept in ("neon", "star"))
    bank, model = tmp_path / "bank", ["--model", tiny_folder, "--device", "cpu"]
    assert commands.run("bank", "add", neon, "--bank", bank, *model) == 0
    search = [*SEPCE, *model, *set_(SEPARABLE), "--concept", "moon", "--out", tmp_path / "run", "--resume"]
    for words in (
        ["bank", "add", star, "--bank", bank, *model],
        ["bank", "restore", "neon", "--bank", bank],
        [*search, "--bank", bank],  # its run stays, and is not searched again
    ):
        with locked(bank):
            refused(commands, words, bank, bank)
        assert commands.run(*words) == 0, "control"
