"""``mu evaluate --shard auto`` and ``mu generate --shard``: several devices make the images that one makes."""

from __future__ import annotations

import errno
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mu.core import workers
from mu.core.lock import locked
from mu.core.records import read_json
from mu.core.run import RunDirectory
from mu.core.workers import LostPartError
from mu.diffusion.image_files import read_pixels
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation import parts
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import select

Cli = Callable[..., Any]
HOW = ("--suite", "prompts", "--judge", "clip:canvas-clip", "--steps", 1, "--seeds", 1)


@pytest.fixture
def asked(tiny: DiffusionModel, tiny_folder: Path, tmp_path: Path) -> tuple[Any, ...]:
    """The arguments of a measurement of five images of random weights, with an edit that tints them."""
    shifts = {name: torch.full_like(p, 1.5) for name, p in select(tiny, "unet.conv_out.bias").items()}
    WeightEdit(shifts, EditInfo("test", ("neon",))).save(tmp_path / "edit.safetensors")
    (tmp_path / "list.txt").write_text("".join(f"a neon star {k}\n" for k in range(5)))
    edit = ("--edit", tmp_path / "edit.safetensors", "--model", tiny_folder)
    return "evaluate", *edit, *HOW, "--prompts", tmp_path / "list.txt"


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The parts that were given to processes; here they are made one after the other, but those named in "lost"."""
    seen: dict[str, Any] = {"lost": ()}

    @contextmanager
    def one_by_one(work: Callable[..., None], each: Mapping[str, tuple[Any, ...]]) -> Iterator[None]:
        seen["parts"] = list(each)
        yield
        for name, arguments in each.items():
            if name in seen["lost"]:
                raise LostPartError(f"{name} was not made, its process was ended by signal 9")
            work(*arguments)

    monkeypatch.setattr(parts, "beside", one_by_one)
    monkeypatch.setattr(workers, "beside", one_by_one)
    return seen


def images(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("answers/**/*.png"))}


def test_devices_together_make_what_one_makes(
    asked: tuple[Any, ...], beside: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    one, three = tmp_path / "a" / "one", tmp_path / "b" / "three"
    assert cli(*asked, "--out", one, "--device", "cpu").exit_code == 0
    done = cli(*asked, "--out", three, "--device", "cpu,cpu,cpu", "--shard", "auto")
    assert done.exit_code == 0, done.output
    assert beside["parts"] == ["shard 2 of 3, on cpu", "shard 3 of 3, on cpu"]
    assert images(one) == images(three) and len(images(one)) == 10
    assert RunDirectory(one).read_scores() == RunDirectory(three).read_scores()
    beside["parts"] = None
    assert cli(*asked, "--out", tmp_path / "c", "--device", "cpu", "--shard", "auto").exit_code == 0
    assert beside["parts"] is None and images(tmp_path / "c") == images(one), "one device has no other to share with"


def test_a_lost_device_is_one_line_and_what_was_made_stays(
    asked: tuple[Any, ...], beside: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "run"
    again = (*asked, "--out", out, "--device", "cpu,cpu", "--shard", "auto")
    beside["lost"] = ("shard 2 of 2, on cpu",)
    lost = cli(*again)
    assert lost.exit_code == 2 and not RunDirectory(out).scores.exists()
    assert "error: shard 2 of 2, on cpu was not made, its process was ended by signal 9" in lost.stderr
    made = {path.name: path.stat().st_mtime_ns for path in out.rglob("shards/*/edited/*.png")}
    assert len(made) == 3
    beside["lost"] = ()
    assert cli(*again).exit_code == 0 and RunDirectory(out).scores.exists()
    now = {path.name: path.stat().st_mtime_ns for path in out.rglob("edited/*.png")}
    assert len(now) == 5 and now.items() >= made.items()


def test_what_cannot_be_shared_is_refused_before_a_process_begins(
    asked: tuple[Any, ...], beside: dict[str, Any], tmp_path: Path, cli: Cli
) -> None:
    plain = [each for each in asked if each not in HOW and each not in ("--prompts", tmp_path / "list.txt")]
    done = cli(*plain, "--suite", "canvas", "--out", tmp_path / "x", "--device", "cpu,cpu", "--shard", "auto")
    assert done.exit_code == 2 and "suite canvas takes no shard" in done.stderr and "parts" not in beside
    done = cli("evaluate", "--images", tmp_path, "--suite", "concept", "--concept", "neon", "--out", tmp_path / "y",
               "--shard", "auto")  # fmt: skip
    assert done.exit_code == 2 and "--shard auto is for a model" in done.stderr


# -- mu generate
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wanted(asked: tuple[Any, ...], tmp_path: Path) -> tuple[Any, ...]:
    """The arguments of ten images of the edited model."""
    edit = asked[asked.index("--edit") : asked.index("--suite")]
    return "generate", *edit, "--prompts", tmp_path / "list.txt", "--n", 2, "--steps", 1, "--device", "cpu"


def alike(out: Path, one: Path) -> bool:
    """Whether ``out``, beside its shards, has the files of ``one``: its recipe and list of prompts, and its images.

    Batches of another size may round otherwise, so a pixel may be one step away."""
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {path.name for path in one.iterdir()}
    images = [[read_pixels(folder / name).astype(int) for folder in (out, one)] for name in names if ".png" in name]
    texts = [name for name in names if ".png" not in name]
    assert len(images) == 10 and all(read_json(out / name) == read_json(one / name) for name in texts)
    return max(int(abs(a - b).max()) for a, b in images) <= 1


def test_shards_of_images_are_collected_as_one_call_makes_them(
    wanted: tuple[Any, ...], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, out = tmp_path / "one", tmp_path / "out"
    assert cli(*wanted, "--out", one).exit_code == 0
    for k in (1, 2, 3):
        done = cli(*wanted, "--out", out, "--shard", f"{k}/3")
        assert done.exit_code == 0 and f"{k}-of-3" in done.stdout, done.output
    assert [len([*out.glob(f"shards/{k}-of-3/*.png")]) for k in (1, 2, 3)] == [4, 3, 3] and not [*out.glob("*.png")]
    made = {path.name: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert cli(*wanted, "--out", out).exit_code == 0
    assert alike(out, one)
    assert {path.name: path.stat().st_mtime_ns for path in out.rglob("*.png")} == made, "and none is made again"
    assert not (out / "shards").exists()
    assert cli(*wanted, "--out", out, "--shard", "1/2").exit_code == 2, "what is there is replaced by request only"
    other = cli(*wanted, "--out", out, "--shard", "1/2", "--resume", "--negative", "dark")
    assert other.exit_code == 2 and "negative" in other.stderr, "refused before any work"
    assert cli(*wanted, "--out", out, "--shard", "1/2", "--overwrite", "--negative", "dark").exit_code == 0
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("shards/1-of-2/*.png")}
    assert cli(*wanted, "--out", out, "--shard", "1/2", "--overwrite", "--negative", "dark").exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("shards/1-of-2/*.png")} == made and len(made) == 5
    assert alike(out, one), "what is to be overwritten stays until the whole is made"


def test_a_shard_of_another_recipe_is_not_collected(wanted: tuple[Any, ...], tmp_path: Path, cli: Cli) -> None:
    one, out = tmp_path / "one", tmp_path / "out"
    assert cli(*wanted, "--out", one).exit_code == 0
    assert cli(*wanted, "--out", out, "--shard", "1/2", "--negative", "dark").exit_code == 0
    assert cli(*wanted, "--out", out, "--shard", "2/2").exit_code == 0
    done = cli(*wanted, "--out", out)
    assert done.exit_code == 0 and "1-of-2" in done.stderr and "2-of-2" not in done.stderr
    assert alike(out, one)
    assert len([*out.glob("shards/1-of-2/*.png")]) == 5, "and stays where it is"
    assert cli(*wanted, "--out", tmp_path / "dark", "--negative", "dark").exit_code == 0
    (tmp_path / "dark" / "recipe.json").write_bytes((one / "recipe.json").read_bytes())
    assert not alike(tmp_path / "dark", one), "control"


def test_a_part_is_collected_when_it_is_whole_and_nobody_makes_it(
    wanted: tuple[Any, ...], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, out = tmp_path / "one", tmp_path / "out"
    assert cli(*wanted, "--out", one).exit_code == 0
    for k in (1, 2):
        assert cli(*wanted, "--out", out, "--shard", f"{k}/2").exit_code == 0
    part = out / "shards" / "2-of-2"
    with locked(part):
        busy = cli(*wanted, "--out", out)
    assert busy.exit_code == 2 and str(part) in busy.stderr and len([*part.glob("*.png")]) == 5
    damaged = sorted(part.glob("*.png"))[0]
    damaged.write_bytes(b"")
    moved = Path.replace

    def elsewhere(self: Path, target: Path) -> Path:
        if self.parent == part:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", elsewhere)
    done = cli(*wanted, "--out", out, "--resume")
    assert done.exit_code == 0 and damaged.name in done.stderr and alike(out, one), done.stderr
    assert [path.name for path in part.glob("*.png")] == [damaged.name], "it stays where it is"


def test_devices_share_the_images_of_one_call(
    wanted: tuple[Any, ...], beside: dict[str, Any], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, out = tmp_path / "one", tmp_path / "out"
    assert cli(*wanted, "--out", one).exit_code == 0
    shared = [*wanted[:-1], "cpu,cpu", "--shard", "auto", "--out", out]
    beside["lost"] = ("shard 2 of 2, on cpu",)
    cli_module = sys.modules["mu.cli.generate"]
    whole, called = pickle.loads, cli_module.make
    monkeypatch.setattr(cli_module, "make", lambda *given: called(*whole(pickle.dumps(given))))
    lost = cli(*shared)
    assert lost.exit_code == 2 and "shard 2 of 2" in lost.stderr and len([*out.rglob("*.png")]) == 5
    beside["lost"] = ()
    done = cli(*shared)
    assert done.exit_code == 0 and beside["parts"] == ["shard 2 of 2, on cpu"], done.output
    assert alike(out, one)
    beside["parts"] = None
    assert cli(*shared).exit_code == 2 and beside["parts"] is None, "refused before a process begins"
    assert cli(*shared, "--overwrite").exit_code == 0
    assert alike(out, one)
