"""``mu classifier`` on rendered images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mu.data import canvas as world
from mu.data.canvas import Scene


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for style in ("neon", "sketch"):
        for k, image in enumerate(world.images([Scene(style, object="star")] * 4, 0)):
            (tmp_path / "pictures" / style).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "pictures" / style / f"{k}.png")
    return tmp_path / "pictures"


def test_train_then_score(images: Path, tmp_path: Path, cli: Any) -> None:
    out = tmp_path / "classifier"
    common = (
        "classifier",
        "train",
        "--train",
        images,
        "--eval",
        images,
        "--out",
        out,
        "--epochs",
        1,
        "--device",
        "cpu",
    )
    done = cli(*common, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["classifier"], told["n"], set(told["per_item"])) == (str(out), 8, {"neon", "sketch"})

    scored = cli("classifier", "score", out, images, "--device", "cpu", "--json")
    assert json.loads(scored.stdout)["value"] == told["value"]
    again = cli(*common)
    assert again.exit_code == 2 and f"{out} " in again.stderr and "--overwrite" in again.stderr


def test_the_embedded_judge_tells_what_it_sees(images: Path, cli: Any) -> None:
    judge = ("classifier", "score", "canvas-judge", images / "neon", "--head", "style", "--device", "cpu")
    assert json.loads(cli(*judge, "--json").stdout) == {"n": 4, "seen": {"neon": 4}}
    assert json.loads(cli(*judge, "--concept", "neon", "--json").stdout)["value"] == 1
    assert json.loads(cli(*judge, "--concept", "photo", "--json").stdout)["value"] == 0
    assert "neon" in cli(*judge).stdout and {"1", "4"} <= set(cli(*judge, "--concept", "neon").stdout.split())
    unasked = cli("classifier", "score", "canvas-judge", images / "neon")
    assert unasked.exit_code == 2 and "style, object, identity" in unasked.stderr
