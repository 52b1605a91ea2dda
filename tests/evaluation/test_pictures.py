"""Pictures on disk: never made twice, never half a file, the same whatever else is in the batch."""

import pytest
import torch

from mu.core.errors import DataError, OutputError
from mu.core.run import RunDirectory
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.pictures import PictureRow, before_after, claim, read_pictures, write_pictures
from mu.models.parameters import select

ROWS = [PictureRow(f"{k}.png", f"a star {k}", k) for k in range(3)]


def test_what_exists_is_not_made_again(tiny, tmp_path):
    assert write_pictures(tiny, ROWS, tmp_path, steps=1, guidance=2.0) == 3
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    (tmp_path / "1.png").unlink()
    assert write_pictures(tiny, ROWS, tmp_path, steps=1, guidance=2.0, resume=True) == 1
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert after["0.png"] == before["0.png"] and after["1.png"] != before["1.png"]


def test_an_existing_picture_is_never_overwritten_silently(tiny, tmp_path):
    write_pictures(tiny, ROWS[:1], tmp_path, steps=1, guidance=2.0)
    with pytest.raises(OutputError, match="resume"):
        write_pictures(tiny, ROWS, tmp_path, steps=1, guidance=2.0)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_row_may_have_its_own_guidance(tiny, tmp_path):
    rows = [PictureRow("a.png", "a star", 1), PictureRow("b.png", "a star", 1, guidance=30.0), PictureRow("c.png", "a star", 1)]
    write_pictures(tiny, rows, tmp_path, steps=2, guidance=2.0)
    a, b, c = read_pictures([tmp_path / row.name for row in rows])
    assert torch.equal(a, c) and not torch.equal(a, b)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png"):
        read_pictures([tmp_path / "x.png"])


def test_pictures_of_another_recipe_are_dropped(tiny, tmp_path):
    claim(tmp_path, {"edit": "one"})
    write_pictures(tiny, ROWS[:1], tmp_path, steps=1, guidance=2.0)
    claim(tmp_path, {"edit": "one"})
    assert (tmp_path / "0.png").exists()
    claim(tmp_path, {"edit": "another"})
    assert not (tmp_path / "0.png").exists()


def test_before_and_after_differ_by_the_edit_alone(tiny, tmp_path):
    shifts = {name: torch.full_like(p, 0.5) for name, p in select(tiny, "unet.conv_out.bias").items()}
    bank = Bank(tiny, [WeightEdit(shifts, EditInfo("test", ("star",)))])
    run = RunDirectory(tmp_path)
    before_after(run, tiny, bank, ["a star"], ["a house"], seeds=(1,), steps=2)
    names = sorted(path.name for path in run.before.glob("*.png"))
    assert names == sorted(path.name for path in run.after.glob("*.png")) == ["0_0.png", "1_0.png"]
    assert not torch.equal(*(read_pictures([folder / "0_0.png"]) for folder in (run.before, run.after)))
    bank.restore("star")
    again = RunDirectory(tmp_path / "again")
    before_after(again, tiny, bank, ["a star"], ["a house"], seeds=(1,), steps=2)
    assert torch.equal(*(read_pictures([folder / "0_0.png"]) for folder in (again.before, again.after)))
