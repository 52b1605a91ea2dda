"""The images of a suite: made once, shared, divided into shards, and put together exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mu
from mu.core.errors import ConfigError, DataError
from mu.core.run import RunDirectory
from mu.core.workers import Shard
from mu.diffusion import image_folder
from mu.diffusion.image_files import read_images, save_image
from mu.diffusion.image_folder import ImageRow
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.answers import Answers, Found, bases_beside, batches
from mu.models.parameters import select


@pytest.fixture(scope="module")
def bank() -> Bank:
    model = mu.load("canvas", device="cpu")
    shifts = {name: torch.full_like(p, 0.5) for name, p in select(model, "unet.conv_out.bias").items()}
    return Bank(model, [WeightEdit(shifts, EditInfo("test", ("neon",)))])


ROWS = [ImageRow(f"a_{k}_seed{k}.png", f"a star {k}", k) for k in range(5)]


def of(bank: Bank, folder: Path) -> Answers:
    return Answers(bank, folder / "base", folder / "edited", steps=2, guidance=1.0)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_shards_together_are_the_whole(bank: Bank, tmp_path: Path) -> None:
    """Byte for byte what each shard made. In one batch, some processors round a value of 255 otherwise."""
    whole, parts = of(bank, tmp_path / "whole"), of(bank, tmp_path / "parts")
    whole.make(ROWS)
    for k in (1, 2):
        one = Shard(k, 2)
        parts.of_shard(one).make(one.of(ROWS))
    before = {path.name: path.read_bytes() for path in (tmp_path / "parts" / "shards").rglob("edited/*.png")}
    parts.make(ROWS)  # gathers: nothing is made again
    for column in ("base", "edited"):
        a, b = (read_images(each.paths(ROWS, column)) for each in (whole, parts))
        assert (a - b).abs().max() < 1.5 / 255
    assert {path.name: path.read_bytes() for path in parts.edited.glob("*.png")} == before and len(before) == 5
    assert not list((tmp_path / "parts" / "shards").rglob("*.png"))
    base, edited = (read_images(whole.paths(ROWS, column)) for column in ("base", "edited"))
    assert (base - edited).abs().max() > 20 / 255, "control"
    assert (base[:-1] - base[1:]).abs().amax((1, 2, 3)).min() > 20 / 255, "control: rows in another order"


def test_images_of_another_recipe_are_not_gathered(bank: Bank, tmp_path: Path) -> None:
    answers, one = of(bank, tmp_path), Shard(1, 2)
    replace(answers, steps=3).of_shard(one).make(one.of(ROWS))
    replace(answers, steps=3).of_shard(one).paths(one.of(ROWS))[0].write_bytes(b"changed")
    answers.make(ROWS)
    assert len(list((tmp_path / "shards").rglob("*.png"))) == 2 * len(one.of(ROWS))
    made = times(tmp_path / "base")
    answers.make(ROWS)
    assert times(tmp_path / "base") == made  # and nothing is made twice


@pytest.mark.parametrize(
    "wrong",
    [{"guidance": float("nan")}, {"guidance": float("inf")}, {"steps": 100_000}, {"steps": 0}, "size", "recipe"],
)
def test_what_cannot_be_made_is_refused_before_earlier_images_make_room(wrong: Any, bank: Bank, tmp_path: Path) -> None:
    def tree() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    answers, rows = of(bank, tmp_path), ROWS[:1]
    answers.make(rows)
    assert len(tree()) == 4
    if wrong == "size":
        rows = [replace(rows[0], size=(63, 64))]
    elif wrong == "recipe":
        (answers.edited / "recipe.json").write_text("[]")
    before = tree()
    other = replace(answers, **{"steps": 1, **(wrong if isinstance(wrong, dict) else {})})
    with pytest.raises((ConfigError, DataError)):
        other.make(rows)
    assert tree() == before
    if wrong == "recipe":
        return
    replace(answers, steps=1).make(ROWS[:1])  # control: another recipe that can be made replaces them
    assert tree().keys() == before.keys() and tree() != before


def test_every_image_belongs_to_one_shard() -> None:
    for n in (1, 2, 3, 7):
        rows = [row.name for k in range(1, n + 1) for row in Shard(k, n).of(ROWS)]
        assert sorted(rows) == sorted(row.name for row in ROWS)


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/99999999999"])
def test_a_shard_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="K/N"):
        Shard.parse(text)
    assert Shard.parse("2/8") == Shard(2, 8)


def test_images_are_read_in_batches(bank: Bank, tmp_path: Path) -> None:
    answers = of(bank, tmp_path)
    answers.make(ROWS)
    sizes = [len(images) for images in batches(answers.paths(ROWS), 2)]
    assert sizes == [2, 2, 1]


def test_images_of_two_sizes_are_never_in_one_batch_and_keep_their_order(tmp_path: Path) -> None:
    sides = [4, 4, 4, 6, 4]
    paths = [tmp_path / f"{k}.png" for k in range(len(sides))]
    for k, (path, side) in enumerate(zip(paths, sides, strict=True)):
        save_image(torch.full((3, side, side), k / 10), path)
    found = list(batches(paths, 2))
    assert [tuple(images.shape[::2]) for images in found] == [(2, 4), (1, 4), (1, 6), (1, 4)]
    levels = [float(image.mean()) for images in found for image in images]
    assert levels == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=0.01)
    paths[2].write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"2\.png"):
        list(batches(paths))


def test_the_strength_of_an_edit_makes_other_images(bank: Bank, tmp_path: Path) -> None:
    answers = of(bank, tmp_path)
    answers.make(ROWS[:1])
    first = read_images(answers.paths(ROWS[:1], "edited"))
    bank.strength["neon"] = 0.3
    try:
        answers.make(ROWS[:1])
        assert not torch.equal(read_images(answers.paths(ROWS[:1], "edited")), first)
    finally:
        bank.strength["neon"] = 1.0
    answers.make(ROWS[:1])
    assert torch.equal(read_images(answers.paths(ROWS[:1], "edited")), first)


def test_a_shared_folder_keeps_every_recipe_and_shards_use_it(bank: Bank, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    three, two = (replace(of(bank, tmp_path / name), steps=steps) for name, steps in (("a", 3), ("b", 2)))
    three.sharing(shared).make(ROWS[:2])
    two.sharing(shared).make(ROWS[:2])
    assert len(list(shared.rglob("*.png"))) == 4  # none was deleted for the other's steps
    part = replace(of(bank, tmp_path / "c"), steps=3).sharing(shared).of_shard(Shard(1, 1))
    part.make(ROWS[:3])
    assert [path.name for path in part.base.glob("*.png")] == [ROWS[2].name]
    assert len(list(part.edited.glob("*.png"))) == 3


def test_runs_beside_each_other_share_the_base_s_images(
    bank: Bank, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    write = image_folder._write_batch
    told = lambda folder, batch, names, bound: (made.extend(names), write(folder, batch, names, bound))  # noqa: E731
    monkeypatch.setattr(image_folder, "_write_batch", told)

    def run(name: str, steps: int = 1) -> Answers:
        place = RunDirectory(tmp_path / name)
        part = place.answers / "concept"
        return Answers(bank, part / "base", part / "edited", steps, 1.0, others=bases_beside(place, "concept"))

    first = run("a")
    first.make(ROWS)
    images = {path.name: path.read_bytes() for path in first.paths(ROWS)}
    made.clear()
    second = run("b")
    with caplog.at_level("INFO", logger="mu"):
        second.make(ROWS)
    assert len(made) == len(ROWS) and f"{len(ROWS)} images of the base are copies of those in" in caplog.text
    assert str(first.base) in caplog.text and {p.name: p.read_bytes() for p in second.paths(ROWS)} == images
    second.make(ROWS)
    assert len(made) == len(ROWS)  # the copies count as made here
    first.paths(ROWS)[0].write_bytes(images[ROWS[1].name])  # changed since: none of it is taken
    made.clear()
    run("c").make(ROWS[:1])  # from b
    assert len(made) == 1 and run("c").paths(ROWS)[0].read_bytes() == images[ROWS[0].name]
    made.clear()
    run("d", steps=2).make(ROWS)  # the control: another recipe
    assert len(made) == 2 * len(ROWS)
    assert bases_beside(RunDirectory(tmp_path / "a"), "prompts") == ()


def test_images_made_elsewhere_are_two_folders_of_one_size(tmp_path: Path) -> None:
    for folder, side in (("base", 8), ("edited", 8), ("large", 16)):
        save_image(torch.zeros(3, side, 8), tmp_path / folder / ROWS[0].name)

    def found(edited: str, base: str | None) -> Found:
        return Found(tmp_path / edited, base and tmp_path / base, torch.device("cpu"))

    found("edited", "base").check()
    found("edited", "base").check_pairs(ROWS[:1])  # the control
    found("large", None).check_pairs(ROWS[:1])
    with pytest.raises(DataError, match="two folders"):
        found("base", "../" + tmp_path.name + "/base").check()
    with pytest.raises(DataError, match="images of one size"):
        found("large", "base").check_pairs(ROWS[:1])
