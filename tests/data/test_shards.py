"""Naming shards and indexing them: what a reader of tar files must find, and what damage must not take along."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mu.core.errors import DataError
from mu.data.shards import Extent, caption_in, find_paths, find_shards, image_in, read_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("00008.tar", "00009.tar", "00010.tar", "8.tar", "a.tar", "b.tar", "a,b.tar", "00008.parquet"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{f}/00009.tar", ["00009.tar"]),
        ("{f}/{{00008..00010}}.tar", ["00008.tar", "00009.tar", "00010.tar"]),
        ("{f}/{{00010..00008}}.tar", ["00010.tar", "00009.tar", "00008.tar"]),
        ("{f}/{{8..8}}.tar", ["8.tar"]),
        ("{f}/{{b,a}}.tar", ["b.tar", "a.tar"]),
        ("{f}/000{{0,1}}{{0,8}}.tar", None),
        ("{f}/0000?.tar", ["00008.tar", "00009.tar"]),
        ("{f}/b.tar, {f}/a.tar,{f}/b.tar", ["b.tar", "a.tar"]),
        ("{f}/{{b,a}}.tar,{f}/8.tar", ["b.tar", "a.tar", "8.tar"]),
        ("{f}/a,b.tar", ["a,b.tar"]),
    ],
)
def test_names_of_shards(folder: Path, source: str, names: list[str] | None) -> None:
    written = source.format(f=folder)
    if names is None:
        with pytest.raises(DataError, match=r"00000\.tar.*\*"):
            find_paths(written)
    else:
        assert find_paths(written) == find_shards(written) == [folder / name for name in names]


def test_a_list_keeps_its_order_and_a_folder_stands_for_its_tars(folder: Path) -> None:
    assert find_paths([folder / "b.tar", str(folder / "a.tar")]) == [folder / "b.tar", folder / "a.tar"]
    assert find_paths(folder) == [folder]
    assert find_shards(folder) == sorted(folder.glob("*.tar"))


RANGE = r"\{00000\.\.00010\}\.tar"  # the example that is told where nothing is named


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{f}/none.tar", r"none\.tar"),
        ("{f}/x*.tar", r"x\*\.tar"),
        ("{f}/{{8..9}}.tar", r"/9\.tar"),
        ("", r"^\. "),
        (" , ", RANGE),
        ([], RANGE),
        ("{f}/empty", "/empty"),
    ],
)
def test_what_is_not_there_is_one_clear_error(folder: Path, source: str | list[str], named: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=named):
        find_shards(source.format(f=folder) if isinstance(source, str) else source)


def test_members_are_grouped_by_key_wherever_they_lie(tmp_path: Path, tar, encoded) -> None:
    shard = read_shard(
        tar(
            tmp_path / "s.tar",
            {"b.TXT": "two", "d/a.seg.png": b"mask", "a.txt": "one", "b.jpeg": encoded(1), "README": "x", ".x.txt": ""},
        )
    )
    assert shard.damage is None
    assert {key: list(sample) for key, sample in shard.samples.items()} == {
        "a": [".txt"],
        "b": [".txt", ".jpeg"],
        "d/a": [".seg.png"],
    }
    assert shard.samples["b"][".txt"].read() == b"two"
    ending, place = image_in(shard.samples["b"]) or ("", Extent(tmp_path))
    assert (ending, place.read()) == (".jpeg", encoded(1))
    assert image_in(shard.samples["d/a"]) is None


def test_long_names_and_links(tmp_path: Path) -> None:
    """Names beyond 100 characters have headers of their own; a link has no bytes, and what it points to is never
    opened."""
    key = "k" * 150
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        content = tmp_path / "text"
        content.write_text("caption")
        archive.add(content, f"{key}.txt")
        link = tarfile.TarInfo("passwd.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    samples = read_shard(tmp_path / "s.tar").samples
    assert list(samples) == [key] and samples[key][".txt"].read() == b"caption"


@pytest.mark.parametrize("kept", [0, 100, 512, 513, 1024, 1200, 1536, 1700, 2048 + 100])
def test_a_cut_tar_keeps_what_lies_before_the_cut(tmp_path: Path, tar, kept: int) -> None:
    """Three members of a header and a block each: 1024 bytes apiece."""
    whole = tar(tmp_path / "s.tar", {"a.txt": "one", "b.txt": "two", "c.txt": "three"})
    assert read_shard(whole).damage is None and len(read_shard(whole).samples) == 3
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:kept])
    shard = read_shard(cut)
    assert shard.damage
    assert len(shard.samples) == sum(
        kept >= 1024 * k + 512 + len(text) for k, text in enumerate(("one", "two", "three"))
    )


def test_names_with_more_dots_are_keys_where_image_and_caption_share_them(tmp_path: Path, tar, encoded) -> None:
    """``.input.jpg`` and ``.outputs.txt`` are two things of one sample, not an image and its caption."""
    shard = read_shard(
        tar(
            tmp_path / "s.tar",
            {"J.K._R.JPG": encoded(1), "J.K._R.txt": "one", "a.jpg": encoded(2), "a.txt": "two", "a.seg.png": b"mask"}
            | {"b.v2.png": encoded(3, "PNG"), "b.v2.json": '{"caption": "three"}', "b.txt": "beside"}
            | {"c.input.jpg": encoded(4), "c.outputs.txt": "four"},
        )
    )
    assert {key: list(sample) for key, sample in shard.samples.items()} == {
        "J.K._R": [".jpg", ".txt"],
        "a": [".jpg", ".txt", ".seg.png"],
        "b": [".txt"],
        "b.v2": [".png", ".json"],
        "c": [".input.jpg", ".outputs.txt"],
    }
    assert [caption_in(sample) for sample in shard.samples.values()] == ["one", "two", "beside", "three", None]


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ('{"caption": "one", "url": "x"}', "one"),
        ('{"TEXT": "one"}', "one"),
        ('{"caption": null, "text": "one"}', "one"),
        ('{"url": "x"}', None),
        ('["one"]', None),
        ("one", None),
        ("[" * 100_000, None),
        ('{"caption": ' + "7" * 5000 + "}", None),
        (r'{"caption": "\ud83d"}', None),
        ('{"caption": "' + "x" * 2**20 + '"}', None),
    ],
)
def test_a_caption_in_json(tmp_path: Path, tar, content: str, caption: str | None) -> None:
    shard = read_shard(tar(tmp_path / "s.tar", {"a.json": content, "b.json": '{"caption": "no"}', "b.txt": "its text"}))
    assert caption_in(shard.samples["a"]) == caption
    assert caption_in(shard.samples["b"]) == "its text"


PACKED = {".tar.gz": gzip.compress, ".TGZ": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


@pytest.mark.parametrize("ending", PACKED)
def test_a_compressed_tar_is_the_same_shard(tmp_path: Path, tar, ending: str) -> None:
    """Also under a plain name, and anew once it was changed; cut short, its first samples are there."""
    plain = tar(tmp_path / "plain.tar", {"a.txt": "one", "b.txt": "two" * 3000, "b.jpg": os.urandom(9000)})
    folder = tmp_path / "packed"
    folder.mkdir()
    packed = folder / f"00000{ending}"
    packed.write_bytes(PACKED[ending](plain.read_bytes()))
    assert find_shards(folder) == [packed]
    (tmp_path / "renamed.tar").write_bytes(packed.read_bytes())
    known = read_shard(plain)
    for file in (packed, tmp_path / "renamed.tar"):
        found = read_shard(file)
        assert (found.file, found.damage) == (file, None) and found.samples.keys() == known.samples.keys()
        assert [e.read() for e in found.samples["b"].values()] == [e.read() for e in known.samples["b"].values()]
        assert read_shard(file).samples == found.samples, "unpacked once"
    packed.write_bytes(PACKED[ending](tar(tmp_path / "other.tar", {"c.txt": "three"}).read_bytes()))
    assert list(read_shard(packed).samples) == ["c"]
    whole = (tmp_path / "renamed.tar").read_bytes()
    packed.write_bytes(whole[: len(whole) * 2 // 3])
    assert set(read_shard(packed).samples) <= {"a", "b"} and "cut short" in str(read_shard(packed).damage)
    assert sorted(path.name for path in folder.iterdir()) == [packed.name]


def test_what_cannot_be_unpacked_is_named(tmp_path: Path, tar, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)  # its import fails
    (tmp_path / "s.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    assert "pip install zstandard" in str(read_shard(tmp_path / "s.tar.zst").damage)
    (tmp_path / "s.zip").write_bytes(b"PK\x03\x04 rest")
    assert "zip" in str(read_shard(tmp_path / "s.zip").damage)
    whole = tar(tmp_path / "s.tar", {"a.txt": "one"}).read_bytes()
    (tmp_path / "twice.tar.gz").write_bytes(gzip.compress(gzip.compress(whole)))
    shard = read_shard(tmp_path / "twice.tar.gz")
    assert shard.samples == {} and shard.damage
    monkeypatch.setattr("mu.data.unpacked.SMALL", 2**20)
    (tmp_path / "bomb.tgz").write_bytes(gzip.compress(bytes(2**22)))
    assert "unpacks to more than 1048576 bytes" in str(read_shard(tmp_path / "bomb.tgz").damage)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "s.tar.lz4").touch()
    with pytest.raises(DataError, match=r"no tar files, only archives of other kinds such as s\.tar\.lz4: unpack"):
        find_shards(folder)


def test_a_library_of_its_own_reads_zstandard(tmp_path: Path, tar, monkeypatch) -> None:
    """By what the package zstandard offers: a file that is opened for its content."""
    whole = tar(tmp_path / "s.tar", {"a.txt": "one"}).read_bytes()
    monkeypatch.setitem(sys.modules, "zstandard", SimpleNamespace(open=lambda *_: io.BytesIO(whole)))
    (tmp_path / "s.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    assert list(read_shard(tmp_path / "s.tar.zst").samples) == ["a"]


def test_absurd_names_and_headers_are_damage_and_no_exception(tmp_path: Path, tar) -> None:
    """Random bytes in the headers; control: unchanged, all samples are there."""
    whole = tar(tmp_path / "s.tar", {f"{k}.txt": "one" for k in range(4)}).read_bytes()
    assert len(read_shard(tmp_path / "s.tar").samples) == 4
    draw = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            content[draw.randrange(512) + 1024 * draw.randrange(4)] = draw.choice(b"\x00 -0179xgLKS\xff\x80")
        (tmp_path / "m.tar").write_bytes(content)
        assert len(read_shard(tmp_path / "m.tar").samples) <= 4


def test_pipes_and_endless_patterns_are_one_clear_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.tar")
    shard = read_shard(tmp_path / "p.tar")
    assert shard.samples == {} and "pipe" in (shard.damage or "")
    for pattern, said in (
        ("{f}/{0..99999999999999}.tar", r"0\.tar does not exist"),
        ("{f}/" + "{0..1}" * 500, "braces"),
        ("{f}/" + "n" * 5000, "does not exist"),
        ("{f}/a\x00b", "does not exist"),
        ("{f}/{1.." + "9" * 5000 + "}.tar", "does not exist"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            find_paths(pattern.replace("{f}", str(tmp_path)))
        assert len(str(caught.value)) < 400


def test_garbled_and_compressed_files_are_damage_and_no_exception(tmp_path: Path, tar) -> None:
    whole = tar(tmp_path / "s.tar", {"a.txt": "one", "b.txt": "two"}).read_bytes()
    (tmp_path / "garbled.tar").write_bytes(whole[:1024] + b"\xff" * 512 + whole[1536:])
    (tmp_path / "gz.tar").write_bytes(gzip.compress(whole)[:30])
    (tmp_path / "page.tar").write_bytes(b"<html>404</html>" * 100)
    garbled = read_shard(tmp_path / "garbled.tar")
    assert list(garbled.samples) == ["a"] and garbled.damage
    for name in ("gz.tar", "page.tar", "gone.tar"):
        shard = read_shard(tmp_path / name)
        assert shard.samples == {} and shard.damage
