"""ImageNet's validation set: labels by sorted wnid, and the very 2,500 images that published numbers are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mu.core.errors import DataError
from mu.data.imagenet import SHIPPED, read_imagenet, subset_rows

WNIDS = ["n01440764", "n01443537", "n02110185"]
NAMES = ("tench", "goldfish", "Siberian Husky")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for k, wnid in enumerate(reversed(WNIDS)):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for row in (2, 1):
            (tmp_path / "val" / wnid / f"ILSVRC2012_val_0000{row}{k}.JPEG").write_bytes(b"")
        (tmp_path / "val" / wnid / "notes.txt").write_text("")
    (tmp_path / "val" / "empty").mkdir()
    return tmp_path


def test_labels_are_places_in_the_sorted_wnids(imagenet: Path) -> None:
    read = read_imagenet(imagenet, NAMES)
    assert read.wnids == tuple(WNIDS) and read.names == NAMES
    assert read.labels == (0, 0, 1, 1, 2, 2)
    assert [p.name for p in read.images[:3]] == [
        "ILSVRC2012_val_000012.JPEG",
        "ILSVRC2012_val_000022.JPEG",
        "ILSVRC2012_val_000011.JPEG",
    ]
    assert all(p.parent.name == WNIDS[label] for p, label in zip(read.images, read.labels, strict=True))
    assert read_imagenet(imagenet / "val", NAMES) == read


def test_the_fixed_subset() -> None:
    """The first and last of the 2,500, and their sum."""
    rows = subset_rows(50_000)
    assert len(rows) == len(set(rows.tolist())) == 2500
    assert (rows[:5].tolist(), rows[-1], rows.sum()) == ([11841, 19602, 45519, 25747, 42642], 46201, 63054358)
    assert np.array_equal(rows, np.random.RandomState(0).choice(50_000, 2500, replace=False))


def test_a_subset_keeps_image_and_label_together(imagenet: Path) -> None:
    read = read_imagenet(imagenet, NAMES)
    half = read.subset(part=2)
    assert len(half.images) == 3 and half.names == NAMES
    assert all(p.parent.name == WNIDS[label] for p, label in zip(half.images, half.labels, strict=True))
    assert len(read.subset().images) == 1


@pytest.mark.parametrize("place", [".", "val"])
@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("classes.txt", NAMES),
        ("classes.txt", [f"{wnid} {name}" for wnid, name in zip(reversed(WNIDS), reversed(NAMES), strict=True)]),
        (
            "LOC_synset_mapping.txt",
            ["n09999999 more", *(f"{wnid} {name}, Other name" for wnid, name in zip(WNIDS, NAMES, strict=True))],
        ),
    ],
)
def test_names_from_a_file(imagenet: Path, place: str, file: str, lines: list[str]) -> None:
    (imagenet / place / file).write_text("\n".join(lines) + "\n")
    assert read_imagenet(imagenet).names == NAMES
    assert read_imagenet(imagenet / "val").names == NAMES
    assert read_imagenet(imagenet, ["a", "b", "c"]).names == ("a", "b", "c")


def test_the_layout_of_the_documents_needs_nothing_else(imagenet: Path) -> None:
    assert read_imagenet(imagenet).names == NAMES
    (imagenet / "classes.txt").write_text("a\nb\nc\n")  # control: the folder's own names come first
    assert read_imagenet(imagenet).names == ("a", "b", "c")


def test_the_shipped_list_has_the_thousand_classes_in_the_order_of_their_ids() -> None:
    """With classes that other lists know by their index, and the two names that published numbers count twice."""
    rows = [line.split(" ", 1) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    wnids, names = zip(*rows, strict=True)
    assert len(set(wnids)) == 1000 and list(wnids) == sorted(wnids)
    known = {
        0: "tench",
        1: "goldfish",
        151: "Chihuahua",
        207: "Golden Retriever",
        281: "tabby cat",
        999: "toilet paper",
    }
    assert {k: names[k] for k in known} == known
    assert {name for name in names if names.count(name) > 1} == {"missile", "sunglasses"}


def test_what_is_missing_is_one_clear_error(imagenet: Path, tmp_path: Path) -> None:
    (imagenet / "val" / "n00007846").mkdir()
    (imagenet / "val" / "n00007846" / "1.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match=r"^n00007846 in .*Put classes\.txt or LOC_synset_mapping\.txt"):
        read_imagenet(imagenet)
    (imagenet / "val" / "n00007846" / "1.JPEG").unlink()
    with pytest.raises(DataError, match=r"\b2\b.*\b3\b"):
        read_imagenet(imagenet, ["a", "b"])
    (imagenet / "classes.txt").write_text("tench\ngoldfish\n")
    with pytest.raises(DataError, match=r"\b2\b.*\b3\b"):
        read_imagenet(imagenet)
    (imagenet / "classes.txt").write_text(f"{WNIDS[0]} tench\n")
    with pytest.raises(DataError, match=r"classes\.txt .*n01443537.*\b1\b"):
        read_imagenet(imagenet)
    with pytest.raises(DataError, match="/none"):
        read_imagenet(tmp_path / "none", NAMES)
    with pytest.raises(DataError, match="val/empty"):
        read_imagenet(imagenet / "val" / "empty", NAMES)


@pytest.mark.parametrize(("content", "said"), [(b"caf\xe9\n", "UTF-8"), (b"a\x00\n", "line 1 has a NUL")])
def test_names_that_are_no_text_are_one_clear_error(imagenet: Path, content: bytes, said: str) -> None:
    (imagenet / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"classes\.txt.*{said}"):
        read_imagenet(imagenet)
