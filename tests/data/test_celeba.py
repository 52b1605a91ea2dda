"""CelebA's list with names: labels by sorted name, images that are there, and the world's own portraits."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from mu.core.errors import DataError
from mu.data.canvas import IDENTITIES
from mu.data.canvas.layouts import folder_name, write_celeba
from mu.data.celeba import read_celeba

ROWS = ["000001.jpg Elon_Musk", "000002.jpg  Ada_Stone", "000003.jpg Elon_Musk", "000004.jpg Kim_Far"]


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Of four images in the list all but the last are there."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for k in (3, 1, 2):
        (folder / "img_align_celeba" / f"00000{k}.jpg").write_bytes(b"")
    (folder / "list_identity_celeba.txt").write_text("\n".join(["4", "image_id identity_name", *ROWS]) + "\n")
    return folder


def test_identities_are_sorted_and_keep_their_label_without_images(celeba: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "mu"):
        read = read_celeba(celeba)
    home = celeba / "img_align_celeba"
    assert read.identities == ("Ada_Stone", "Elon_Musk", "Kim_Far")
    assert read.images == {
        "Ada_Stone": (home / "000002.jpg",),
        "Elon_Musk": (home / "000001.jpg", home / "000003.jpg"),
        "Kim_Far": (),
    }
    (told,) = caplog.records
    assert read.frequent == () and "1 " in told.getMessage()


def test_without_the_frequent_list_those_with_the_most_images_are_tested(
    celeba: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CelebA has 202,599 images of 10,177 people: all of them are never meant."""
    with caplog.at_level(logging.WARNING, "mu"):
        assert read_celeba(celeba).classified == ("Elon_Musk", "Ada_Stone", "Kim_Far")
        assert len(caplog.records) == 1, "control: few people are all tested, and only a picture is missing"
        monkeypatch.setattr("mu.data.celeba.CLASSIFIED", 2)
        assert read_celeba(celeba).classified == ("Elon_Musk", "Ada_Stone")
    (told,) = [record.getMessage() for record in caplog.records if " 3 " in record.getMessage()]
    assert " 2 " in told
    (celeba / "frequent_celebs.txt").write_text("Kim_Far\nAda_Stone\nElon_Musk")
    assert read_celeba(celeba).classified == ("Kim_Far", "Ada_Stone", "Elon_Musk"), "the list is the list"


@pytest.mark.parametrize("place", [".", ".."])
def test_frequent_names_keep_their_order(celeba: Path, place: str, caplog) -> None:
    (celeba / place / "frequent_celebs.txt").write_text("Kim_Far\nNobody_Known\nAda_Stone\n\n")
    with caplog.at_level(logging.WARNING, "mu"):
        assert read_celeba(celeba).frequent == ("Kim_Far", "Ada_Stone")
    assert "Nobody_Known" in caplog.text and "Ada_Stone" not in caplog.text


def test_the_world_s_own_portraits(tmp_path: Path) -> None:
    write_celeba(tmp_path, per_identity=2)
    read = read_celeba(tmp_path)
    assert read.identities == tuple(sorted(folder_name(name) for name in IDENTITIES))
    assert all(len(images) == 2 and all(p.is_file() for p in images) for images in read.images.values())
    first = (tmp_path / "list_identity_celeba.txt").read_text().splitlines()[2].split()
    assert read.images[first[1]][0].name == first[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\n".join(ROWS), r"\.txt\D*\b1\b"),
        ("4\n" + "\n".join(ROWS), r"\.txt\D*\b2\b"),
        ("1\nimage_id identity_name\n000001.jpg\n", r"\.txt\D*\b3\b.*'000001.jpg'"),
        ("1\nimage_id identity_name\n../../x.jpg Elon_Musk\n", "img_align_celeba .*list_identity_celeba.txt"),
        ("0\nimage_id identity_name\n", "img_align_celeba .*list_identity_celeba.txt"),
        ("", "img_align_celeba .*list_identity_celeba.txt"),
    ],
)
def test_lists_of_another_form(celeba: Path, text: str, why: str) -> None:
    (celeba / "x.jpg").write_bytes(b"")
    (celeba / "list_identity_celeba.txt").write_text(text)
    with pytest.raises(DataError, match=why):
        read_celeba(celeba)


def test_what_is_missing_is_named(celeba: Path) -> None:
    with pytest.raises(DataError, match=r"list_identity_celeba\.txt"):
        read_celeba(celeba.parent)
    (celeba / "img_align_celeba").rename(celeba / "elsewhere")
    with pytest.raises(DataError, match=r"img_align_celeba\.zip"):
        read_celeba(celeba)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"4\nh\n1.jpg A\xff\n", "UTF-8"),
        (b"4\nh\n1.jpg A\x00\n", "NUL"),
        (b"4\nh\n" + b"x " * 9999, "line 3"),
        (None, "is not read"),
    ],
)
def test_a_list_that_is_none_is_a_short_line(celeba: Path, content: bytes | None, said: str) -> None:
    """A pipe is not a list, and would wait for a writer."""
    place = celeba / ("list_identity_celeba.txt" if content else "frequent_celebs.txt")
    place.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(place)
        assert read_celeba(celeba).frequent == ()
        return
    place.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_celeba(celeba)
    assert len(str(caught.value)) < 400
