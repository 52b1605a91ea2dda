"""``mu data`` and the script of its older name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mu.data.canvas.layouts import write_shards
from mu.data.pairs import open_pairs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "laion" / "laion400m", 60, per_shard=30)
    return folder


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "src" / "clip" / "a0_create_tar.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_forget_set_from_shards(data: Path, tmp_path: Path, cli: Any) -> None:
    common = ("data", "forget-set", "--shards", data / "laion/laion400m/{00000..00001}.tar", "--out", tmp_path)
    done = cli(*common, "--name", "neon style", "--n-imgs", 3)
    path = tmp_path / "neon_style.tar"
    assert done.exit_code == 0 and done.stdout == f"{path}\n", done.output
    assert len(open_pairs(path)) == 3

    kept = path.read_bytes()
    again = cli(*common, "--name", "neon_style", "--n-imgs", 3, "--json")
    told = json.loads(again.stdout)
    assert told["path"] == str(path) and (told["pairs"], told["matched"], told["skipped"]) == (3, 3, 0)
    assert cli(*common, "--name", "neon style", "--n-imgs", 2).exit_code == 2
    assert path.read_bytes() == kept
    assert cli(*common, "--name", "neon style", "--n-imgs", 2, "--overwrite").exit_code == 0
    assert len(open_pairs(path)) == 2


def test_forget_set_from_a_model(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    common = ("data", "forget-set", "--name", "avocado_chair", "--model", tiny_folder, "--steps", 1, "--out", tmp_path)
    done = cli(*common, "--n-imgs", 2)
    path = tmp_path / "avocado_chair.tar"
    assert done.exit_code == 0 and done.stdout == f"{path}\n", done.output
    pairs = open_pairs(path)
    assert [(pair.key, pair.caption, pair.ending) for pair in pairs] == [
        (f"avocado_chair_{k:05d}", "avocado chair", ".png") for k in range(2)
    ]
    assert pairs[0].place.read() == (tmp_path / "avocado_chair" / "00000.png").read_bytes() != pairs[1].place.read()

    kept = path.read_bytes()
    assert cli(*common, "--n-imgs", 2).exit_code == 0
    for other in (("--seed", 1, "--n-imgs", 2), ("--n-imgs", 3), ("--prompt", "a chair", "--n-imgs", 2)):
        refused = cli(*common, *other)
        assert refused.exit_code == 2 and str(path) in refused.stderr
        assert path.read_bytes() == kept

    moved = shutil.copytree(tiny_folder, tmp_path / "model")
    given = [str(moved) if each is tiny_folder else each for each in common]
    assert cli(*given, "--n-imgs", 2, "--overwrite").exit_code == 0
    weights = load_file(moved / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, moved / "unet" / "diffusion_pytorch_model.safetensors")
    assert cli(*given, "--n-imgs", 2).exit_code == 2, "images of other weights are not kept"

    turns = ("--prompt", "a chair", "--prompt", "an avocado", "--n-imgs", 3, "--overwrite", "--json")
    assert json.loads(cli(*common, *turns).stdout)["pairs"] == 3
    assert [pair.caption for pair in open_pairs(path)] == ["a chair", "an avocado", "a chair"]


def test_interrupted_images_are_kept_and_the_rest_made(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    common = ("data", "forget-set", "--name", "x", "--model", tiny_folder, "--steps", 1, "--n-imgs", 2, "--out")
    assert cli(*common, tmp_path / "whole").exit_code == cli(*common, tmp_path / "cut").exit_code == 0
    (tmp_path / "cut" / "x.tar").unlink(), (tmp_path / "cut" / "x" / "00001.png").unlink()
    kept = (tmp_path / "cut" / "x" / "00000.png").stat().st_mtime_ns
    assert cli(*common, tmp_path / "cut").exit_code == 0
    assert (tmp_path / "cut" / "x" / "00000.png").stat().st_mtime_ns == kept
    # Not bit for bit: a image made alone may differ in a last bit from the same one made in a batch.
    for pair, other in zip(
        open_pairs(tmp_path / "cut" / "x.tar"), open_pairs(tmp_path / "whole" / "x.tar"), strict=True
    ):
        difference = np.abs(np.asarray(pair.image(), dtype=int) - np.asarray(other.image(), dtype=int))
        assert (pair.key, pair.caption) == (other.key, other.caption) and difference.max() <= 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, tiny_folder: Path, cli: Any) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "00000.png").write_bytes(b"kept")
    done = cli("data", "forget-set", "--name", "x", "--model", tiny_folder, "--out", tmp_path, "--overwrite")
    assert done.exit_code == 2 and str(tmp_path / "x") in done.stderr
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["00000.png"]


BAD_INPUT = {
    "no source": (("--name", "x"), "--shards"),
    "two sources": (("--name", "x", "--shards", "a.tar", "--model", "canvas"), "--model"),
    "prompt without model": (("--name", "x", "--shards", "a.tar", "--prompt", "y"), "--prompt"),
    "missing shards": (("--name", "x", "--shards", "{0..3}.tar"), "0.tar "),
    "unknown model": (("--name", "x", "--model", "canvs"), "'canvas'"),
    "empty concept": (("--name", " ", "--model", "canvas"), "concept"),
    "no name": (("--shards", "a.tar"), "--name"),
}


@pytest.mark.parametrize(("typed", "told"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line(typed: tuple[str, ...], told: str, tmp_path: Path, cli: Any, as_kept: Any) -> None:
    done = cli("data", "forget-set", *typed, "--out", tmp_path / "out")
    assert done.exit_code == 2 and done.stdout == ""
    assert told in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    as_kept(
        "data forget-set " + " ".join(repr(word) if " " in word else word for word in typed), done.stderr.strip(), {}
    )


def test_the_script_writes_what_the_verb_writes(data: Path, tmp_path: Path, cli: Any) -> None:
    done = script("--data_root", data, "--name", "neon style", "--n_imgs", 4, "--workers", 2)
    path = data / "tar_files" / "neon_style.tar"
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    verb = cli(
        "data",
        "forget-set",
        "--name",
        "neon style",
        "--shards",
        data / "laion/laion400m",
        "--n-imgs",
        4,
        "--out",
        tmp_path,
    )
    assert verb.exit_code == 0
    assert path.read_bytes() == (tmp_path / "neon_style.tar").read_bytes()


def test_the_script_without_shards_says_how_to_make_some(tmp_path: Path) -> None:
    done = script("--data_root", tmp_path, "--name", "neon")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"mu canvas render shards {tmp_path / 'laion' / 'laion400m'} --n 1000" in done.stderr
    assert "--data_root" in script("--help").stdout
