"""Written images: the layouts as the field's readers expect them, the same bytes twice, and no folder harmed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from mu.core.errors import ConfigError, OutputError
from mu.data.canvas import IDENTITIES, OBJECTS, STYLES, Scene, captions, render
from mu.data.canvas.layouts import folder_name, write_celeba, write_shards, write_unlearn_canvas

WRITERS: dict[str, Callable[..., int]] = {
    "unlearn_canvas": lambda folder, seed=0, **more: write_unlearn_canvas(folder, 1, seed, **more),
    "celeba": lambda folder, seed=0, **more: write_celeba(folder, 2, seed, **more),
    "shards": lambda folder, seed=0, **more: write_shards(folder, 25, seed, per_shard=10, **more),
}


@pytest.fixture(params=WRITERS)
def write(request) -> Callable[..., int]:
    return WRITERS[request.param]


def test_names_are_written_as_the_benchmarks_write_them():
    assert folder_name("pop art") == "Pop_Art"
    assert folder_name("Ada Stone") == "Ada_Stone"


def test_unlearn_canvas_has_a_folder_for_each_style_and_object(tmp_path: Path):
    assert write_unlearn_canvas(tmp_path, per_cell=2) == 2 * len(STYLES) * len(OBJECTS)
    assert (tmp_path / "Pop_Art" / "Star" / "1.jpg").is_file()
    cells = [(style.name, cell.name) for style in tmp_path.iterdir() if style.is_dir() for cell in style.iterdir()]
    assert sorted(cells) == sorted((folder_name(s), folder_name(o)) for s in STYLES for o in OBJECTS)
    assert all(sorted(p.name for p in (tmp_path / s / o).iterdir()) == ["1.jpg", "2.jpg"] for s, o in cells)


def test_celeba_lists_every_image_once_after_two_header_lines(tmp_path: Path):
    assert write_celeba(tmp_path, per_identity=2) == 2 * len(IDENTITIES)
    count, header, *lines = (tmp_path / "list_identity_celeba.txt").read_text().splitlines()
    assert int(count) == len(lines) and header.split() == ["image_id", "identity_name"]
    listed = dict(line.split() for line in lines)
    assert sorted(listed) == sorted(p.name for p in (tmp_path / "img_align_celeba").iterdir())
    assert min(listed) == "000001.jpg"
    assert Counter(listed.values()) == {folder_name(name): 2 for name in IDENTITIES}


def test_shards_are_img2dataset_s(tmp_path: Path):
    assert write_shards(tmp_path, 25, seed=3, per_shard=10) == 3
    sizes = {}
    for path in sorted(tmp_path.glob("*.tar")):
        stats = json.loads(Path(str(path).split(".tar")[0] + "_stats.json").read_text())
        sizes[path.name] = stats["successes"]
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            contents = {member.name: tar.extractfile(member).read() for member in members}
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in members)
        keys = [f"{path.stem}{row:04d}" for row in range(stats["successes"])]
        assert list(contents) == [f"{key}.{ending}" for key in keys for ending in ("jpg", "json", "txt")]
        for key in keys:
            about, image = json.loads(contents[f"{key}.json"]), contents[f"{key}.jpg"]
            scene = Scene(about["style"], about["object"], about["identity"])
            assert about["key"] == key and about["status"] == "success"
            assert about["caption"].encode() == contents[f"{key}.txt"]
            assert about["caption"] in [text for text, told in captions(scene) if told]
            assert about["sha256"] == hashlib.sha256(image).hexdigest()
            assert Image.open(io.BytesIO(image)).size == (about["width"], about["height"])
    assert sizes == {"00000.tar": 10, "00001.tar": 10, "00002.tar": 5}


def test_equal_arguments_give_equal_bytes_and_another_seed_gives_others(tmp_path: Path, write):
    write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", seed=1)
    first, again, other = (_bytes(tmp_path / name) for name in "abc")
    assert first == again
    images = [name for name in first if name.endswith((".jpg", ".tar"))]
    assert images and all(first[name] != other[name] for name in images)


def test_a_image_does_not_depend_on_how_many_there_are(tmp_path: Path):
    write_celeba(tmp_path / "few", per_identity=1), write_celeba(tmp_path / "more", per_identity=2)
    few, more = _bytes(tmp_path / "few"), _bytes(tmp_path / "more")
    assert all(more[name] == content for name, content in few.items() if name.endswith(".jpg"))


def test_the_sets_share_no_image_with_each_other_or_the_training_set(tmp_path: Path):
    write_celeba(tmp_path, per_identity=1)
    written = np.asarray(Image.open(tmp_path / "img_align_celeba" / "000001.jpg")).astype(float)
    for seed in (0, (0, 0), (0, 0, 0)):  # numpy takes all three for the same seed
        assert np.abs(written - render(Scene("photo", identity=IDENTITIES[0]), seed)).mean() > 3


@pytest.mark.parametrize("style", STYLES)
def test_jpeg_keeps_the_style(canvas_folder: Path, style: str):
    """4:4:4, and nearer to the image than what Pillow writes by default (4:2:0, quality 75)."""
    path = canvas_folder / folder_name(style) / "Star" / "1.jpg"
    with Image.open(path) as image:
        assert get_sampling(image) == 0
        kept = np.asarray(image).astype(float)
    cell = STYLES.index(style) * len(OBJECTS) + OBJECTS.index("star")
    drawn = render(Scene(style, object="star"), (0, cell, 1, 1))
    rough = io.BytesIO()
    Image.fromarray(drawn).save(rough, "JPEG")
    assert np.abs(kept - drawn).mean() < 4
    assert np.abs(kept - drawn).mean() < 0.5 * np.abs(np.asarray(Image.open(rough)).astype(float) - drawn).mean()


def test_progress_counts_up_to_the_end(tmp_path: Path, write):
    calls: list[tuple[int, int]] = []
    write(tmp_path, progress=lambda done, total: calls.append((done, total)))
    totals = {total for _, total in calls}
    assert len(totals) == 1 and [done for done, _ in calls] == list(range(1, totals.pop() + 1))


def test_an_interrupted_writer_goes_on_where_it_stopped(tmp_path: Path, write):
    def stop(done: int, total: int) -> None:
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", progress=stop)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").rglob("*.*") if p.suffix in (".jpg", ".tar")}
    killed = next(iter(kept)).parent / ".partial-1-abcdefgh.jpg"
    killed.write_bytes(b"half a pic")
    write(tmp_path / "cut", resume=True)
    write(tmp_path / "whole")
    assert kept and all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path, write):
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(OutputError, match=tmp_path.name):
            write(tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_other_settings_is_refused(tmp_path: Path, write):
    write(tmp_path)
    before = _bytes(tmp_path)
    with pytest.raises(OutputError, match=tmp_path.name):
        write(tmp_path)
    with pytest.raises(OutputError, match=r"canvas\.json"):
        write(tmp_path, seed=1, resume=True)
    assert _bytes(tmp_path) == before


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/below"):
        write(tmp_path / "file" / "below")


def test_counts_and_seeds_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, write):
    with pytest.raises(ConfigError, match=r"seed .*-1"):
        write(tmp_path, seed=-1)
    with pytest.raises(ConfigError, match=r"per_cell .*\b0\b"):
        write_unlearn_canvas(tmp_path, per_cell=0)
    with pytest.raises(ConfigError, match="per_shard"):
        write_shards(tmp_path, 5, per_shard=10_001)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def canvas_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("canvas")
    write_unlearn_canvas(folder, per_cell=1)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
