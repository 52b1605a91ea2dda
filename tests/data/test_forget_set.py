"""Forget sets: which pairs go in, in which bytes, and that a second run makes the same file."""

from __future__ import annotations

import gzip
import logging
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mu.core.concept import folded
from mu.core.errors import ConfigError, DataError, OutputError
from mu.data import forget_set
from mu.data.canvas.layouts import write_shards
from mu.data.clip_sets import ForgetSet, forget_pairs, forget_source
from mu.data.forget_set import forget_set_path, make_forget_set, pack_forget_set
from mu.data.pairs import open_pairs

CAPTIONS = [
    "Elon Musk on stage",
    "a dog",
    "ELON_MUSK.jpg",
    "elon  musk\nsmiles",
    "Elon and Musk",
    "portrait: Elon Musk",
]
MATCHES = [0, 2, 3, 5]


@pytest.fixture
def shards(tmp_path: Path, tar, encoded) -> Path:
    """Two shards of three pairs each; image k is ``encoded(k)``."""
    for shard in (0, 1):
        rows = range(3 * shard, 3 * shard + 3)
        files = {
            f"{k:04d}.{e}": encoded(k) if e == "jpg" else CAPTIONS[k] for k in rows for e in ("jpg", "json", "txt")
        }
        tar(tmp_path / "shards" / f"0000{shard}.tar", files)
    return tmp_path / "shards"


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["Elon Musk", "Elon_Musk", "elon musk", " Elon   Musk "])
def test_matches_in_any_case_with_underscores_or_blanks(tmp_path: Path, shards: Path, encoded, name: str) -> None:
    made = make_forget_set(name, shards, tmp_path / "out")
    stem = "elon_musk" if name.islower() else "Elon_Musk"
    assert made.path == tmp_path / "out" / f"{stem}.tar"
    wanted = {}
    for row, k in enumerate(MATCHES):
        wanted |= {f"{stem}_{row:05d}.jpg": encoded(k), f"{stem}_{row:05d}.txt": CAPTIONS[k].encode()}
    assert members(made.path) == wanted and list(members(made.path)) == list(wanted)
    assert (made.pairs, made.seen, made.matched, made.repeated, made.skipped, made.shards) == (4, 6, 4, 0, 0, 2)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Conan O'Brien", "Conan_O_Brien"),
        ("Robert Downey Jr.", "Robert_Downey_Jr"),
        ("Beyoncé", "Beyoncé"),
        ("AC/DC", "AC_DC"),
        ("elon_musk", "elon_musk"),
    ],
)
def test_the_settings_placeholder_finds_the_file_that_was_made(
    tmp_path: Path, tar, encoded, name: str, stem: str
) -> None:
    files = {
        f"{k}.{end}": encoded(k) if end == "jpg" else f"{folded(name)} smiles" for k in (0, 1) for end in ("jpg", "txt")
    }
    made = make_forget_set(name, tar(tmp_path / "shards" / "0.tar", files), tmp_path)
    settings = ForgetSet(forget=str(tmp_path / "{concept}.tar"))
    assert made.path == Path(forget_source(settings, name)) == tmp_path / f"{stem}.tar"
    assert [pair.caption for pair in forget_pairs(settings, name, 0)] == [f"{folded(name)} smiles"] * 2
    assert forget_source(ForgetSet(forget="own.tar"), "???") == "own.tar", (
        "control: without a placeholder no name is needed"
    )


def test_reads_back_as_pairs(tmp_path: Path, shards: Path) -> None:
    pairs = open_pairs(make_forget_set("Elon Musk", shards, tmp_path).path)
    assert [" ".join(pair.caption.split()) for pair in pairs] == [" ".join(CAPTIONS[k].split()) for k in MATCHES]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stops_at_n(tmp_path: Path, shards: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = forget_set.read_shard
    monkeypatch.setattr(forget_set, "read_shard", lambda file: opened.append(file.name) or read(file))
    made = make_forget_set("Elon Musk", shards, tmp_path, n)
    assert made.pairs == n == len(members(made.path)) // 2
    assert opened == (["00000.tar"] if n <= 2 else ["00000.tar", "00001.tar"])


def test_fewer_than_wanted_is_told(tmp_path: Path, shards: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "mu"):
        make_forget_set("Elon Musk", shards, tmp_path, 4)
        assert caplog.text == ""
        make_forget_set("Elon Musk", shards, tmp_path, 5)
    assert {"4", "5"} <= {word.strip(",;:.") for word in caplog.text.split()}


def test_a_second_run_makes_the_same_bytes_and_is_no_error(tmp_path: Path, shards: Path) -> None:
    first = make_forget_set("Elon Musk", shards, tmp_path).path.read_bytes()
    assert make_forget_set("Elon_Musk", shards, tmp_path).path.read_bytes() == first
    assert make_forget_set("Elon Musk", shards, tmp_path / "b").path.read_bytes() == first
    assert make_forget_set("Elon Musk", shards, tmp_path / "c", 3).path.read_bytes() != first


def test_another_file_is_never_replaced_unasked(tmp_path: Path, shards: Path) -> None:
    path = make_forget_set("Elon Musk", shards, tmp_path).path
    kept = path.read_bytes()
    with pytest.raises(OutputError, match=r"Elon_Musk\.tar"):
        make_forget_set("Elon Musk", shards, tmp_path, 2)
    assert path.read_bytes() == kept
    assert make_forget_set("Elon Musk", shards, tmp_path, 2, overwrite=True).path.read_bytes() != kept
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["Elon_Musk.tar"]


def test_images_keep_their_kind_and_bytes_and_come_once(tmp_path: Path, tar, encoded) -> None:
    png, webp = encoded(1, "PNG"), encoded(2, "WEBP")
    files: dict[str, Any] = {
        "a.png": png,
        "b.webp": webp,
        "c.png": png,
        "d.JPG": encoded(3),
        "e.jpg": encoded(3)[:200],
        "g.jpg": b"?",
    }
    texts = {f"{key}.txt": f"cat {key}" for key in "abcdef"}
    made = make_forget_set("cat", tar(tmp_path / "s.tar", files | texts), tmp_path)
    assert [name for name in members(made.path) if not name.endswith("txt")] == [
        "cat_00000.png",
        "cat_00001.webp",
        "cat_00002.jpg",
    ]
    assert members(made.path)["cat_00000.png"] == png and members(made.path)["cat_00001.webp"] == webp
    assert (made.pairs, made.seen, made.matched, made.repeated, made.skipped) == (3, 6, 6, 1, 2)


def test_images_are_read_only_where_the_caption_matches(tmp_path: Path, shards: Path, encoded, monkeypatch) -> None:
    looked_at: list[bytes] = []
    can_decode = forget_set.can_decode
    monkeypatch.setattr(forget_set, "can_decode", lambda content: looked_at.append(content) or can_decode(content))
    make_forget_set("Elon Musk", shards, tmp_path)
    assert looked_at == [encoded(k) for k in MATCHES]


def test_damage_does_not_end_the_search(tmp_path: Path, shards: Path) -> None:
    first = shards / "00000.tar"
    first.write_bytes(first.read_bytes()[:700])
    made = make_forget_set("Elon Musk", shards, tmp_path)
    assert made.pairs == 2 and made.shards == 2


@pytest.mark.parametrize("name", ["", " _ ", "..", "/"])
def test_a_name_must_have_letters(tmp_path: Path, shards: Path, name: str) -> None:
    with pytest.raises(DataError):
        make_forget_set(name, shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_never_leave_the_folder_and_keys_have_no_dot(tmp_path: Path, tar, encoded) -> None:
    assert forget_set_path("../../etc/x", "out") == Path("out/etc_x.tar")
    shard = tar(tmp_path / "s.tar", {"a.jpg": encoded(1), "a.txt": "J.K. Rowling reads"})
    made = make_forget_set("J.K. Rowling", shard, tmp_path)
    assert made.path.name == "J.K._Rowling.tar"
    assert list(members(made.path)) == ["J_K__Rowling_00000.jpg", "J_K__Rowling_00000.txt"]
    assert len(open_pairs(made.path)) == 1


def test_nothing_found_and_impossible_counts_leave_no_file(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(DataError, match=r"Jeff_Bezos\.tar.*\b6\b.*\b0\b"):
        make_forget_set("Jeff Bezos", shards, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"\b0$"):
        make_forget_set("Elon Musk", shards, tmp_path / "out", 0)
    with pytest.raises(DataError, match=r"none\.tar"):
        make_forget_set("Elon Musk", tmp_path / "none.tar", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_progress_counts_the_shards(tmp_path: Path, shards: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_forget_set("Elon Musk", shards, tmp_path, progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]


def test_pairs_at_hand_are_packed_whatever_their_captions(tmp_path: Path, shards: Path) -> None:
    made = pack_forget_set("Elon Musk", open_pairs(shards), tmp_path)
    assert made.pairs == 6 and len(members(made.path)) == 12
    with pytest.raises(DataError, match=r"Nobody\.tar"):
        pack_forget_set("Nobody", [], tmp_path)


def test_the_world_s_own_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 60, per_shard=30)
    made = make_forget_set("neon", tmp_path / "shards", tmp_path, 3)
    assert made.pairs == 3 and all(b"neon" in text for name, text in members(made.path).items() if name.endswith("txt"))


def test_captions_in_json_and_dotted_names_are_found(tmp_path: Path, tar, encoded) -> None:
    shard = tar(
        tmp_path / "s.tar",
        {"a.jpg": encoded(1), "a.json": '{"caption": "Elon Musk"}', "E.M.jpg": encoded(2), "E.M.txt": "elon_musk"},
    )
    made = make_forget_set("Elon Musk", shard, tmp_path)
    assert (made.pairs, made.seen, made.matched) == (2, 2, 2)
    assert [text for name, text in members(made.path).items() if name.endswith("txt")] == [b"elon_musk", b"Elon Musk"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dots", r"Elon_Musk\.tar: no captions.* end in \.input\.jpg, \.outputs\.txt: a caption is KEY\.txt"),
        ("silent", r"no captions.* end in \.jpg, \.json"),
        ("packed", r"packed\.tar: cut short"),
        ("others", r"of 1 captions 0 match"),
    ],
)
def test_where_no_caption_is_found_the_reason_is_told(tmp_path: Path, tar, encoded, name: str, said: str) -> None:
    content: dict[str, dict[str, Any]] = {
        "dots": {"s0.input.jpg": encoded(1), "s0.outputs.txt": "Elon Musk"},
        "silent": {"a.jpg": encoded(1), "a.json": '{"url": "x"}'},
        "packed": {"a.jpg": encoded(1), "a.txt": "Elon Musk"},
        "others": {"a.jpg": encoded(1), "a.txt": "a dog"},
    }
    shard = tar(tmp_path / f"{name}.tar", content[name])
    if name == "packed":
        shard.write_bytes(gzip.compress(shard.read_bytes())[:40])
    with pytest.raises(DataError, match=said):
        make_forget_set("Elon Musk", shard, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


# -- parquet -----------------------------------------------------------------------------------------------------------


def parquet(shards: Path, **columns: list[Any]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), shards / "00000.parquet")


def test_a_shard_whose_parquet_has_no_match_stays_closed(tmp_path: Path, shards: Path) -> None:
    parquet(
        shards,
        caption=["a cat", "Elon Musk", None],
        status=["success", "failed_to_download", "success"],
        key=["0", "1", "2"],
    )
    (shards / "00000.tar").write_bytes(b"would be damage")
    made = make_forget_set("Elon Musk", shards, tmp_path)
    assert (made.pairs, made.passed_over, made.shards, made.seen) == (2, 1, 2, 4)


@pytest.mark.parametrize("column", ["caption", "TEXT", "url"])
def test_with_a_match_or_without_captions_the_tar_tells(tmp_path: Path, shards: Path, column: str) -> None:
    alone = make_forget_set("Elon Musk", shards, tmp_path / "alone")
    parquet(shards, **{column: CAPTIONS[:3]})
    made = make_forget_set("Elon Musk", shards, tmp_path / "with")
    assert made.path.read_bytes() == alone.path.read_bytes() and made.passed_over == 0


def test_a_damaged_parquet_is_passed_by(tmp_path: Path, shards: Path) -> None:
    (shards / "00000.parquet").write_bytes(b"PAR1 half")
    assert make_forget_set("Elon Musk", shards, tmp_path).pairs == 4


def test_without_pyarrow_the_tars_are_read(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shards / "00000.parquet").write_bytes(b"not opened")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    made = make_forget_set("Elon Musk", shards, tmp_path)
    assert (made.pairs, made.passed_over) == (4, 0)
