"""A command that is refused leaves everything as it was: no file, no empty folder, and the run it would overwrite."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mu.core.run import RunDirectory
from mu.models import EMBEDDED

OTHER_KIND = "canvas-clip"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
        if not path.is_fifo()
    }


REFUSED = {
    "erase without its model": "erase spm --concept x --preset canvas --model {tmp}/none --out {tmp}/a/b/c",
    "erase a model of another kind": f"erase spm --concept x --preset canvas --model {OTHER_KIND} --out {{tmp}}/a/b",
    "erase over a run": "erase spm --concept x --preset canvas --model {tmp}/none --out {run} --overwrite",
    "erase over a run by another kind": f"erase esd --concept x --model {OTHER_KIND} --out {{run}} --overwrite",
    "erase into a file": "erase spm --concept x --preset canvas --model {tiny} --out {tmp}/file",
    "erase into a file, over it": "erase spm --concept x --preset canvas --model {tiny} --out {tmp}/file --overwrite",
    "erase into a bank without its model": "erase sepce --concept x --model {tmp}/none --out {tmp}/a --bank {tmp}/bank",
    "bank add on another kind": f"bank add {{run}} --model {OTHER_KIND} --bank {{tmp}}/bank",
    "bank add without a model": "bank add {run} --model {tmp}/none --bank {tmp}/a/bank",
    "bank restore without a bank": "bank restore x --bank {tmp}/a/bank",
    "bank add into a file": "bank add {run} --model {tiny} --bank {tmp}/file",
    "generate without its model": "generate --prompt x --model {tmp}/none --out {tmp}/a/b",
    "generate where its list is a folder": "generate --prompt x --model {tiny} --steps 1 --out {tmp}/taken",
    "erase where its log is a folder": "erase spm --concept x --preset canvas --model {tiny} --out {tmp}/logged",
    "evaluate what is empty": "evaluate {tmp}/empty",
    "evaluate what is a pipe": "evaluate {tmp}/piped",
    "evaluate on a model that is a number": "evaluate {tmp}/numbered",
    "report under a file": "report {run} --out {tmp}/file/page.html",
    "report as a format in capitals": "report {run} --format JSON",
    "evaluate on another kind": f"evaluate {{run}} --model {OTHER_KIND}",
}


@pytest.mark.parametrize("typed", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_leaves_everything_as_it_was(
    typed: str, tmp_path: Path, tiny_folder: Path, finished: Path, cli: Any
) -> None:
    if OTHER_KIND in typed and not EMBEDDED[OTHER_KIND].exists():
        pytest.skip("the embedded model's weights are not in this checkout")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "piped").mkdir()
    (tmp_path / "taken" / "prompts.json").mkdir(parents=True)
    (tmp_path / "logged" / "metrics.jsonl").mkdir(parents=True)
    os.mkfifo(tmp_path / "piped" / "edit.safetensors")
    run = shutil.copytree(finished, tmp_path / "run")
    numbered = RunDirectory(shutil.copytree(finished, tmp_path / "numbered"))
    numbered.environment.write_text(json.dumps({**numbered.read_environment(), "model": 7}))
    before = tree(tmp_path)
    ended = cli(*(word.format(tmp=tmp_path, tiny=tiny_folder, run=run) for word in typed.split()))
    assert ended.exit_code == 2, ended.output
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and ended.stdout == ""
    assert tree(tmp_path) == before


def test_control_a_run_that_is_not_refused_replaces_the_earlier_one(
    tmp_path: Path, tiny_folder: Path, finished: Path, cli: Any
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = tree(tmp_path)
    settings = ("--set", "train.iterations=1", "--set", "train.max_denoising_steps=2", "--no-images")
    common = ("--preset", "canvas", "--device", "cpu", "--model", tiny_folder)
    ended = cli("erase", "spm", "--concept", "star", *common, *settings, "--out", run, "--overwrite")
    assert ended.exit_code == 0, ended.output
    after = tree(tmp_path)
    assert after["run/edit.safetensors"] != before["run/edit.safetensors"]
    assert "run/after/0_0.png" in before and "run/after/0_0.png" not in after
    assert not [name for name in after if "/." in name]
