"""Pairs from every layout: the right caption with the right image, in an order of names, and nothing broken."""

from __future__ import annotations

import json
import logging
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mu.core.errors import ConfigError, DataError
from mu.data.canvas import OBJECTS, STYLES, Scene
from mu.data.canvas.layouts import write_shards, write_unlearn_canvas
from mu.data.pairs import can_decode, decode, open_pairs


def told(pairs) -> list[tuple[str, str]]:
    return [(pair.key, pair.caption) for pair in pairs]


def test_shards_in_sorted_order_with_their_own_images(tmp_path: Path, tar, encoded) -> None:
    tar(
        tmp_path / "1.tar",
        {"b.jpg": encoded(2), "b.txt": " two\n", "a.txt": "one", "a.png": encoded(1, "PNG"), "a.json": "{}"},
    )
    tar(tmp_path / "2.tar", {"A.webp": encoded(3, "WEBP"), "A.txt": "drei: ä"})
    pairs = open_pairs(tmp_path / "{1,2}.tar")
    assert told(pairs) == [("a", "one"), ("b", "two"), ("A", "drei: ä")]
    assert [pair.ending for pair in pairs] == [".png", ".jpg", ".webp"] and pairs.skipped == 0
    assert told(open_pairs(tmp_path)) == told(open_pairs([tmp_path / "1.tar", tmp_path / "2.tar"])) == told(pairs)
    for k, pair in zip((1, 2, 3), pairs, strict=True):
        image = pair.image()
        assert image.mode == "RGB" and image.size == (24, 16)
        assert pair.place.read() == encoded(k, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[pair.ending])
    lossless = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(pairs[0].image()), lossless)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The images that were opened to see whether they can be."""
    seen: list[bytes] = []
    monkeypatch.setattr("mu.data.pairs.can_decode", lambda content: seen.append(content) or can_decode(content))
    return seen


def test_no_more_is_decoded_than_is_asked_for(tmp_path: Path, tar, encoded, decoded: list[bytes]) -> None:
    captions = ["a dog", "Ada Stone", "ada_stone smiles", "a cat", "Ada Stone again"]
    for shard in (0, 1):
        files = {
            f"{k}.{end}": encoded(k) if end == "jpg" else text
            for k, text in enumerate(captions)
            for end in ("jpg", "txt")
        }
        tar(tmp_path / f"{shard}.tar", files | {"0.jpg": b"broken"})

    def taken(n: int | None, naming: str = "") -> list[str]:
        decoded.clear()
        return [pair.caption for pair in open_pairs(tmp_path, limit=n, naming=naming)]

    whole = taken(None)
    assert whole == captions[1:] * 2 and len(decoded) == 10, "control"
    for n in (1, 3, 4, 6, 8, 9):
        assert taken(n) == whole[:n]
    assert taken(3) and decoded == [b"broken", *map(encoded, (1, 2, 3))]
    named = [captions[k] for k in (1, 2, 4)] * 2
    assert taken(None, "ADA STONE") == named and len(decoded) == 6
    assert taken(4, "Ada_Stone") == named[:4] and decoded == list(map(encoded, (1, 2, 4, 1)))
    assert taken(None, "Nobody Here") == [] and decoded == [], "all are others"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, tar, encoded, mode: str) -> None:
    tar(tmp_path / "s.tar", {"a.png": encoded(1, "PNG", mode), "a.txt": "one"})
    assert open_pairs(tmp_path / "s.tar")[0].image().mode == "RGB"


def test_broken_members_are_left_out_counted_and_told(tmp_path: Path, tar, encoded, caplog) -> None:
    jpeg, png = encoded(1), encoded(1, "PNG")
    tar(
        tmp_path / "s.tar",
        {
            "good.jpg": jpeg, "good.txt": "good",
            "silent.jpg": jpeg, "blank.jpg": jpeg, "blank.txt": " \n",
            "blind.txt": "no picture",
            "html.jpg": b"<html>", "html.txt": "x", "cut.jpg": jpeg[: len(jpeg) // 2], "cut.txt": "x",
            "end.png": png[: len(png) // 2], "end.txt": "x", "empty.jpg": b"", "empty.txt": "x",
        },
    )  # fmt: skip
    whole = tar(tmp_path / "t.tar", {"a.jpg": jpeg, "a.txt": "a", "b.jpg": jpeg, "b.txt": "b"}).read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: whole.rindex(b"b.txt")])
    (tmp_path / "u.tar").write_bytes(b"no tar")
    with caplog.at_level(logging.WARNING, "mu"):
        pairs = open_pairs([tmp_path / name for name in ("s.tar", "t.tar", "u.tar")])
    assert told(pairs) == [("good", "good"), ("a", "a")]
    assert pairs.reasons == {
        "without a caption": 3,
        "without a picture": 1,
        "pictures that cannot be read": 4,
        "damaged tar": 2,
    }
    assert pairs.skipped == 10
    counts = [[word for word in record.getMessage().split() if word.isdigit()] for record in caplog.records]
    assert ["2", "2", "4", "3", "1"] in counts, "the pairs, and how many each reason left out"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_quick_look_and_the_decoder_agree(encoded, kind: str) -> None:
    content = encoded(5, kind)
    assert can_decode(content)
    for kept in (0, 1, len(content) // 4, len(content) // 2, len(content) * 9 // 10):
        assert not can_decode(content[:kept])
        with pytest.raises(DataError, match=r"\bp\b"):
            decode(content[:kept], "p")


@pytest.mark.parametrize("form", ["csv", "jsonl", "txt"])
def test_folders_with_captions(tmp_path: Path, encoded, form: str) -> None:
    for k, name in enumerate(("b.png", "a.JPG", "deep/c.jpg", ".hidden.jpg"), start=1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(k, "PNG" if name.endswith("png") else "JPEG"))
    captions = {"b.png": 'two, "quoted"', "a.JPG": "one", "deep/c.jpg": "three"}
    if form == "csv":
        rows = [f'{name},"{text.replace(chr(34), chr(34) * 2)}",x' for name, text in captions.items()]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,more", *rows]) + "\n")
    elif form == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    else:
        for name, text in captions.items():
            (tmp_path / name).with_suffix(".txt").write_text(text)
    pairs = open_pairs(tmp_path)
    assert told(pairs) == [("a", "one"), ("b", 'two, "quoted"'), ("deep/c", "three")]
    assert pairs[1].place.read() == encoded(1, "PNG") and pairs[2].place.read() == encoded(3)
    assert pairs.skipped == 0


def test_metadata_never_leads_out_of_its_folder(tmp_path: Path, encoded) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    (home / "a.jpg").write_bytes(encoded(2))
    (home / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "gone.jpg", "a.jpg"]
    lines = [json.dumps({"file_name": name, "text": "x"}) for name in names]
    (home / "metadata.jsonl").write_text(
        "\n".join([*lines, "{broken", '{"text": "no file"}', '["list"]', '{"file_name": "b.jpg", "text": 3}'])
    )
    pairs = open_pairs(home)
    assert told(pairs) == [("a", "x")]
    assert pairs.reasons == {"without a picture": 4, "lines that cannot be read": 3, "without a caption": 1}


def test_metadata_without_its_columns(tmp_path: Path, encoded) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    (tmp_path / "metadata.csv").write_text("file,words\na.jpg,x\n")
    with pytest.raises(DataError, match=r"'file_name'.*'text'"):
        open_pairs(tmp_path)


@pytest.fixture(scope="module")
def unlearn_canvas(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uc")
    write_unlearn_canvas(folder, per_cell=1)
    for k in (2, 10):
        (folder / "Pop_Art" / "Star" / f"{k}.jpg").write_bytes((folder / "Pop_Art" / "Star" / "1.jpg").read_bytes())
    return folder


def test_unlearn_canvas(unlearn_canvas: Path) -> None:
    pairs = open_pairs(unlearn_canvas)
    assert len(pairs) == len(STYLES) * len(OBJECTS) + 2 and pairs.skipped == 0
    assert [p.caption for p in pairs if p.key == "Pop_Art/Star/1"] == ["A Star image in Pop Art style."]
    assert {p.caption.casefold() for p in pairs} == {
        Scene(s, object=o).prompt.casefold() for s in STYLES for o in OBJECTS
    }
    assert [p.key for p in pairs if p.key.startswith("Pop_Art/Star")] == [f"Pop_Art/Star/{k}" for k in (1, 2, 10)]


def test_unlearn_canvas_by_style_and_object(unlearn_canvas: Path) -> None:
    for style in ("Pop_Art", "pop art"):
        chosen = open_pairs(unlearn_canvas, style=style)
        assert len(chosen) == len(OBJECTS) + 2 and all(p.key.startswith("Pop_Art/") for p in chosen)
    assert {p.key.split("/")[1] for p in open_pairs(unlearn_canvas, object="star")} == {"Star"}
    assert told(open_pairs(unlearn_canvas, style="neon", object="star", caption="neon")) == [("Neon/Star/1", "neon")]
    with pytest.raises(DataError, match=r"'Noen'.*'Neon'"):
        open_pairs(unlearn_canvas, style="Noen")


def test_choosing_where_there_is_nothing_to_choose_from(tmp_path: Path, tar, encoded) -> None:
    shard = tar(tmp_path / "s.tar", {"a.jpg": encoded(1), "a.txt": "x"})
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(encoded(1))
    for source in (shard, tmp_path / "flat"):
        with pytest.raises(ConfigError, match=r"(?=.*style)(?=.*object)"):
            open_pairs(source, style="neon", caption="x")


def test_one_caption_for_all(tmp_path: Path, tar, encoded) -> None:
    for name in ("b.jpg", "a.png"):
        (tmp_path / name).write_bytes(encoded(1, "JPEG" if name == "b.jpg" else "PNG"))
    with pytest.raises(DataError, match=r"NAME\.txt.*metadata\.csv"):
        open_pairs(tmp_path)
    assert told(open_pairs(tmp_path, caption="Elon Musk")) == [("a", "Elon Musk"), ("b", "Elon Musk")]
    shard = tar(tmp_path / "s.tar", {"a.jpg": encoded(1), "a.txt": "own", "b.jpg": encoded(2)})
    assert told(open_pairs(shard)) == [("a", "own")]
    assert told(open_pairs(shard, caption="Elon Musk")) == [("a", "Elon Musk"), ("b", "Elon Musk")]


def test_missing_and_empty_sources(tmp_path: Path, tar) -> None:
    empty = tar(tmp_path / "e.tar", {"a.txt": "no picture"})
    (tmp_path / "folder").mkdir()
    for source, why in (
        (tmp_path / "none", "/none"),
        (tmp_path / "folder", "/folder"),
        (empty, r"e\.tar.*\b1\b"),
    ):
        with pytest.raises(DataError, match=why) as raised:
            open_pairs(source)
        assert "\n" not in str(raised.value)


def test_a_image_that_went_away(tmp_path: Path, encoded) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    (pair,) = open_pairs(tmp_path, caption="x")
    (tmp_path / "a.jpg").write_bytes(b"other")
    with pytest.raises(DataError, match=r"a\.jpg.*\(cannot identify"):
        pair.image()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg does not exist"):
        pair.image()


def test_the_order_is_that_of_names_not_of_the_disk(tmp_path: Path, tar, encoded) -> None:
    members = {
        f"{k:03d}.{ending}": encoded(k) if ending == "jpg" else f"text {k}"
        for k in range(20)
        for ending in ("jpg", "txt")
    }
    names = list(members)
    random.Random(0).shuffle(names)
    mixed = tar(tmp_path / "mixed.tar", {name: members[name] for name in names})
    assert told(open_pairs(mixed)) == told(open_pairs(tar(tmp_path / "sorted.tar", members)))
    assert told(open_pairs(mixed)) == [(f"{k:03d}", f"text {k}") for k in range(20)]


def test_many_pairs_need_little_memory(tmp_path: Path, tar, encoded) -> None:
    """The images alone are ten times what is kept."""
    image = Image.effect_noise((64, 64), 90)
    image.save(tmp_path / "p.png")
    content = (tmp_path / "p.png").read_bytes()
    shard = tar(
        tmp_path / "s.tar",
        {f"{k}.{e}": content if e == "png" else "a caption" for k in range(500) for e in ("png", "txt")},
    )
    open_pairs(shard)
    tracemalloc.start()
    pairs = open_pairs(shard)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 500 and kept < 500 * 1000 < 500 * len(content) / 3


def test_the_world_s_own_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, 12, per_shard=5)
    pairs = open_pairs(str(tmp_path / "{00000..00002}.tar"))
    assert [pair.key for pair in pairs] == [f"{k // 5:05d}{k % 5:04d}" for k in range(12)] and pairs.skipped == 0
    assert {pair.image().size for pair in pairs} == {(64, 64)}


@pytest.mark.parametrize("column", ["text", "caption", "TEXT", "prompt"])
def test_captions_have_several_names(tmp_path: Path, encoded, tar, column: str) -> None:
    """In tables, in lines of JSON, and in a shard's JSON where there is no text."""
    for form in ("csv", "jsonl"):
        (tmp_path / form).mkdir()
        (tmp_path / form / "a.jpg").write_bytes(encoded(1))
    (tmp_path / "csv" / "metadata.csv").write_text(f"file_name,{column}\na.jpg,one\n")
    (tmp_path / "jsonl" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", column: "one"}))
    tar(tmp_path / "shard.tar", {"a.jpg": encoded(1), "a.json": json.dumps({"key": "a", column: "one"})})
    for place in ("csv", "jsonl", "shard.tar"):
        assert told(open_pairs(tmp_path / place)) == [("a", "one")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('file_name,text\na.jpg,"a dog\nb.jpg,x\n', "line 3.*quote"),
        ("file_name,text,text\na.jpg,a,b\n", "'text' twice"),
        (b"file_name,text\na.jpg,caf\xe9\n", "UTF-8"),
        ("file_name,text\na.jpg,a\x00\n", "line 2 has a NUL"),
    ],
)
def test_metadata_that_would_be_misread_is_refused(tmp_path: Path, encoded, text: str | bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    (tmp_path / "metadata.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=rf"metadata\.csv.*{said}"):
        open_pairs(tmp_path)


def test_lines_that_no_reader_can_bear_are_left_out(tmp_path: Path, encoded) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    good = json.dumps({"file_name": "a.jpg", "text": "one"})
    odd = ["[" * 100_000, '{"file_name": ' + "7" * 5000 + "}", r'{"file_name": "\ud83d.jpg", "text": "x"}', "7", "{"]
    names = [json.dumps({"file_name": name, "text": "x"}) for name in ("n" * 5000, "a\x00.jpg", "..", "")]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*odd, good, *names]))
    pairs = open_pairs(tmp_path)
    assert told(pairs) == [("a", "one")]
    assert pairs.reasons == {"lines that cannot be read": 5, "without a picture": 4}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,one\na.jpg,a dog, running\n")
    assert open_pairs(tmp_path).reasons == {"lines that cannot be read": 1}, "half a caption is none"


def test_pipes_are_not_waited_for(tmp_path: Path, encoded) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    os.mkfifo(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: it is a pipe"):
        open_pairs(tmp_path, caption="x")
    (tmp_path / "b.jpg").unlink()
    os.mkfifo(tmp_path / "metadata.csv")
    with pytest.raises(DataError, match=r"metadata\.csv: it is a pipe"):
        open_pairs(tmp_path)
