"""Images on disk: never made twice, never half a file, the same whatever else is in the batch."""

import json

import pytest
import torch

from mu.core.errors import ConfigError, DataError, OutputError
from mu.core.files import sha256, write_json
from mu.core.run import RunDirectory
from mu.diffusion import image_folder
from mu.diffusion.image_files import read_images
from mu.diffusion.image_folder import ImageRow, _as_made, before_after, claim, recipe_of, write_images
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.gates import FixedStrength
from mu.edits.weights import WeightEdit
from mu.models import load
from mu.models.parameters import select

ROWS = [ImageRow(f"{k}.png", f"a star {k}", k) for k in range(3)]


def test_what_exists_is_not_made_again(tiny, tmp_path):
    assert write_images(tiny, ROWS, tmp_path, steps=1, guidance=2.0) == 3
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    (tmp_path / "1.png").unlink()
    assert write_images(tiny, ROWS, tmp_path, steps=1, guidance=2.0, resume=True) == 1
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert after["0.png"] == before["0.png"] and after["1.png"] != before["1.png"]


def test_an_existing_image_is_never_overwritten_silently(tiny, tmp_path):
    write_images(tiny, ROWS[:1], tmp_path, steps=1, guidance=2.0)
    with pytest.raises(OutputError, match="--resume"):
        write_images(tiny, ROWS, tmp_path, steps=1, guidance=2.0)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_row_may_have_its_own_guidance(tiny, tmp_path):
    rows = [
        ImageRow("a.png", "a star", 1),
        ImageRow("b.png", "a star", 1, guidance=30.0),
        ImageRow("c.png", "a star", 1),
    ]
    write_images(tiny, rows, tmp_path, steps=2, guidance=2.0)
    a, b, c = read_images([tmp_path / row.name for row in rows])
    assert torch.equal(a, c) and not torch.equal(a, b)


def test_a_row_may_have_its_own_size(tiny, tmp_path):
    rows = [
        ImageRow("a.png", "a star", 1),
        ImageRow("b.png", "a star", 1, size=(32, 128)),
        ImageRow("c.png", "a star", 1, size=(None, 32)),
    ]
    make(tiny, tmp_path, rows)
    sizes = [read_images([tmp_path / row.name]).shape[2:] for row in rows]
    assert [tuple(size) for size in sizes] == [(64, 64), (32, 128), (64, 32)]
    with pytest.raises(OutputError, match=r"b\.png.*size \[32, 128\], now \[64, 128\]"):
        make(tiny, tmp_path, [ImageRow("b.png", "a star", 1, size=(64, 128))], resume=True)
    assert make(tiny, tmp_path, rows, resume=True) == 0  # control


@pytest.mark.parametrize("size", [(33, 64), (64, 64 * 9), (10**6, 10**6), (0, 64)])
def test_a_size_that_the_model_cannot_make_is_told_before_the_first_image(size, tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"height and width.*b\.png.*--size"):
        make(tiny, tmp_path, [ImageRow("a.png", "a star", 1), ImageRow("b.png", "a star", 1, size=size)])
    assert not list(tmp_path.iterdir())


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"x\.png"):
        read_images([tmp_path / "x.png"])


def test_images_of_another_recipe_are_dropped(tiny, tmp_path):
    claim(tmp_path, {"edit": "one"})
    write_images(tiny, ROWS[:1], tmp_path, steps=1, guidance=2.0)
    claim(tmp_path, {"edit": "one"})
    assert (tmp_path / "0.png").exists()
    (tmp_path / "mine.png").touch()
    claim(tmp_path, {"edit": "another"})
    assert not (tmp_path / "0.png").exists() and (tmp_path / "mine.png").exists()


@pytest.mark.parametrize("change", ["another image", "damaged", "not noted", "as it was"])
def test_a_suite_uses_an_image_only_as_it_was_made(change, tiny, tmp_path, caplog):
    """Whoever exchanged it, and also one of an interrupted run, of which nothing is known."""
    claim(tmp_path, {"edit": "one"})
    how = {"steps": 1, "guidance": 2.0, "resume": True}
    write_images(tiny, ROWS, tmp_path, **how)
    first, kept = tmp_path / "0.png", (tmp_path / "1.png").stat().st_mtime_ns
    made, recipe = read_images([first]), json.loads((tmp_path / "recipe.json").read_text())
    if change == "another image":
        first.write_bytes((tmp_path / "2.png").read_bytes())
    elif change == "damaged":
        first.write_bytes(b"")
    elif change == "not noted":
        del recipe["images"]["0.png"]
        write_json(tmp_path / "recipe.json", recipe)
    claim(tmp_path, {"edit": "one"})
    assert write_images(tiny, ROWS, tmp_path, **how) == (change != "as it was")
    assert (read_images([first]) - made).abs().max() <= 1.01 / 255
    assert (tmp_path / "1.png").stat().st_mtime_ns == kept
    assert ("0.png: they are made again" in caplog.text) == (change != "as it was")
    assert write_images(tiny, ROWS, tmp_path, **how) == 0


def test_changed_images_are_told_from_the_others_by_name_alone(tmp_path, monkeypatch, caplog):
    """Thirty thousand rows, each compared with each, would take hours."""
    rows = [ImageRow(f"{k}.png", "a star", k) for k in range(30)]
    for row in rows:
        (tmp_path / row.name).write_bytes(row.name.encode())
    made = {row.name: sha256(tmp_path / row.name) for row in rows[:-1]}
    write_json(tmp_path / "recipe.json", {"images": made})
    compared = []
    monkeypatch.setattr(ImageRow, "__eq__", lambda self, other: compared.append(self) or self.name == other.name)
    assert len(_as_made(tmp_path, rows)) == 29 and not compared
    assert "1 images in" in caplog.text and "29.png" in caplog.text


def make(tiny, folder, rows=ROWS, *, recipe=None, **how):
    return write_images(
        tiny, rows, folder, **{"steps": 1, "guidance": 2.0, **how}, recipe=recipe or {"edits": {"a": "1"}}
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 2}, "steps 1.* 2"),
        ({"guidance": 3.0}, "guidance 2.0.* 3.0"),
        ({"negative": "bad"}, 'negative "".* "bad"'),
        ({"size": (32, 64)}, r"size .*\[32, 64\]"),
        ({"recipe": {"edits": {"a": "2"}}}, r"0\.png.*edits"),
        ({"rows": [ImageRow("1.png", "a dog", 1)]}, 'prompt "a star 1".* "a dog"'),
        ({"rows": [ImageRow("1.png", "a star 1", 9)]}, "seed 1.* 9"),
        ({"rows": [ImageRow("1.png", "a star 1", 1, guidance=5.0)]}, "guidance 2.0.* 5.0"),
    ],
)
def test_images_of_another_recipe_are_not_resumed(change, told, tiny, tmp_path):
    make(tiny, tmp_path, ROWS[:2])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=told):
        make(tiny, tmp_path, resume=True, **change)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert make(tiny, tmp_path, resume=True) == 1  # control: of the same recipe, and more of them


def test_images_that_tell_no_recipe_are_not_resumed(tiny, tmp_path):
    write_images(tiny, ROWS[:1], tmp_path, steps=1, guidance=2.0)
    for content in (None, "{", "[]"):
        if content:
            (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(OutputError, match=r"/0\.png"):
            make(tiny, tmp_path, resume=True)
    assert make(tiny, tmp_path, overwrite=True) == 3
    assert make(tiny, tmp_path, resume=True) == 0


def test_an_interrupted_overwriting_leaves_no_image_of_the_old_recipe_beside_the_new_note(tiny, tmp_path, monkeypatch):
    make(tiny, tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    with pytest.raises(ConfigError):  # what cannot be made at all leaves everything as it was
        make(tiny, tmp_path, overwrite=True, size=(63, 64))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == old and make(
        tiny, tmp_path, resume=True
    ) == 0

    real = image_folder.atomic_path

    def interrupted(path):
        if path.name == "1.png":
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "atomic_path", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tiny, tmp_path, overwrite=True, steps=3)
    assert [path.name for path in tmp_path.glob("*.png")] == ["0.png"]
    assert make(tiny, tmp_path, resume=True, steps=3) == 2
    make(tiny, tmp_path / "whole", steps=3)
    for name in old:
        ours, whole = (read_images([folder / name]) for folder in (tmp_path, tmp_path / "whole"))
        assert (ours - whole).abs().max() <= 1.01 / 255  # a image made alone may differ in a last bit


@pytest.mark.parametrize("name", ["recipe.json", "2.png"])
def test_a_place_that_cannot_be_written_is_told_before_the_first_image(name, tiny, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=name):
        make(tiny, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).rmdir()
    assert make(tiny, tmp_path, overwrite=True) == 3  # control


def test_the_recipe_tells_model_edits_and_how_they_pass(tiny, tiny_folder):
    def edit(size):
        return WeightEdit({"unet.conv_out.bias": torch.full((4,), size)}, EditInfo("test", ("star",)))

    bank = Bank(tiny, [edit(0.5)])
    base = recipe_of(bank)
    assert recipe_of(Bank(tiny, [edit(0.5)])) == base == json.loads(json.dumps(base))
    others = {
        "model": recipe_of(Bank(load(tiny_folder, device="cpu", clip_skip=2), [edit(0.5)])),
        "edits": recipe_of(Bank(tiny, [edit(0.6)])),
        "strength": recipe_of(bank, [0.5]),
        "gate": recipe_of(bank, gate=FixedStrength()),
    }
    for what, other in others.items():
        assert {key for key in base if base[key] != other[key]} == {what}


def test_before_and_after_differ_by_the_edit_alone(tiny, tmp_path):
    shifts = {name: torch.full_like(p, 0.5) for name, p in select(tiny, "unet.conv_out.bias").items()}
    bank = Bank(tiny, [WeightEdit(shifts, EditInfo("test", ("star",)))])
    run = RunDirectory(tmp_path)
    before_after(run, tiny, bank, ["a star"], ["a house"], seeds=(1,), steps=2)
    names = sorted(path.name for path in run.before.glob("*.png"))
    assert names == sorted(path.name for path in run.after.glob("*.png")) == ["0_0.png", "1_0.png"]
    assert not torch.equal(*(read_images([folder / "0_0.png"]) for folder in (run.before, run.after)))
    bank.restore("star")
    again = RunDirectory(tmp_path / "again")
    before_after(again, tiny, bank, ["a star"], ["a house"], seeds=(1,), steps=2)
    assert torch.equal(*(read_images([folder / "0_0.png"]) for folder in (again.before, again.after)))


def test_a_suite_never_takes_over_images_made_by_request(tmp_path):
    write_json(tmp_path / "recipe.json", {"edits": {}, "pictures": {"a.png": {"prompt": "a cat"}}})
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(OutputError, match="mu generate"):
        claim(tmp_path, {"edit": "one"})
    assert (tmp_path / "a.png").exists()


def test_a_killed_process_leaves_no_image_that_nobody_noted(tiny, tmp_path, monkeypatch, caplog):
    """Its images are kept by the next one, without a word against them."""
    rows = [ImageRow(f"{k}.png", "a star", k) for k in range(4)]
    claim(tmp_path, {"steps": 1})
    real, written = image_folder.atomic_path, []

    def killed(path):
        if path.suffix == ".png":
            written.append(path)
            if len(written) == 3:
                raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_folder, "atomic_path", killed)
        write_images(tiny, rows, tmp_path, steps=1, guidance=1.0, resume=True)
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert len(made) == 2
    assert write_images(tiny, rows, tmp_path, steps=1, guidance=1.0, resume=True) == 2 and not caplog.records
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}.items()
