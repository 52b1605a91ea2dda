"""Pairs of the concept and of everything else: by name, with seeds that keep the two sets apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mu.core.errors import ConfigError, DataError
from mu.data.canvas import rendered_pairs
from mu.data.clip_sets import BothSets, class_of, forget_pairs, forget_source, retain_pairs

CANVAS = BothSets(forget="canvas", retain="canvas", n_forget=6, n_retain=8)


def test_rendered_pairs_follow_concept_and_seed() -> None:
    assert forget_pairs(CANVAS, "Neon style", 0) == rendered_pairs(6, 1, "neon")
    assert retain_pairs(CANVAS, 3) == rendered_pairs(8, 32)
    assert forget_pairs(CANVAS, "neon", 1) != forget_pairs(CANVAS, "neon", 0)
    with pytest.raises(ConfigError, match=r"'Elon Musk'.*data\.forget"):
        forget_pairs(CANVAS, "Elon Musk", 0)


def test_pairs_of_a_folder_are_those_whose_caption_names_the_concept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Ada_Stone"
    folder.mkdir()
    for k, caption in enumerate(("a portrait of ada stone", "a tree", "Ada  Stone smiles")):
        Image.new("RGB", (8, 8)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(caption, encoding="utf-8")
    data = BothSets(forget=str(tmp_path / "{concept}"), retain=str(folder), n_retain=2)
    assert forget_source(data, "Ada Stone") == str(folder)
    assert [pair.caption for pair in forget_pairs(data, "Ada Stone", 0)] == [
        "a portrait of ada stone",
        "Ada  Stone smiles",
    ]
    with pytest.raises(DataError, match=r"'Ada Stone'.*\b1\b"):
        forget_pairs(data.merged({"n_forget": 1}), "Ada Stone", 0)
    named = forget_pairs(data.merged({"caption": "concept"}), "Ada Stone", 0)
    assert {pair.caption for pair in named} == {"Ada Stone"} and named[0].image().size == (8, 8)
    opened: list[bytes] = []
    monkeypatch.setattr("mu.data.pairs.can_decode", lambda content: opened.append(content) or True)
    assert len(retain_pairs(data, 0)) == 2 == len(opened), "what is cut off is not opened"
    opened.clear()
    assert len(forget_pairs(data.merged({"n_forget": 2}), "Ada Stone", 0)) == 2 == len(opened)
    (tmp_path / "Kim").symlink_to(folder, target_is_directory=True)
    with pytest.raises(DataError, match=r"'Kim'.*data\.caption=concept"):
        forget_pairs(data, "Kim", 0)


def test_a_class_is_found_whatever_case_and_underscores() -> None:
    classes = ("Pop Art", "neon")
    assert (class_of("pop_art", classes), class_of("Neon Style", classes), class_of("neo", classes)) == (0, 1, None)
