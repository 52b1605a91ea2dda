"""``mu evaluate --shard auto``: several devices make the images that one makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mu.core.run import RunDirectory
from mu.core.workers import LostPartError
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
