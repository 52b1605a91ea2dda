"""What needs no model answers before any model library is imported: lists, settings, papers, and mistyped commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "diffusers", "transformers", "peft", "scipy", "matplotlib"}
RUN = f"""
import sys
from mu.cli import main
try:
    main()
finally:
    print("loaded:", *sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)
"""

LISTS = [
    "methods",
    "methods spm",
    "methods sepce --json",
    "config uce",
    "config clip-ssd",
    "config slug --preset canvas",
]
LISTS += ["cite fmn", "cite sepce", "--version", "--help"]
MISTYPED = {
    "methods smp": "'spm'",
    "config spm --preset cnavas": "'canvas'",
    "cite nosuch": "nosuch",
    "erase smp --concept neon": "'spm'",
    "erase fmn --concept neon --preset cnavas": "'canvas'",
    "erase spm --concept neon --set train.iteration=3": "'iterations'",
    "erase clip-ga --concept neon --set train.epochs=none": "train.epochs",
    "erase sepce --concept neon --set train": "--set",
    "erase uce --concept neon --config nope.yaml": "nope.yaml",
    "erase fmn --concept neon --model ./nope.safetensors": "nope.safetensors",
    "erase clip-ft --concept neon --model cnavas-clip": "'canvas-clip'",
    "erase clip-ga --concept neon --set data.forget=nope.tar": "nope.tar",
    "erase clip-ssd --concept neon --model canvas-clip --set data.retain=shards/*.tar": "shards/*.tar",
    "erase slug --concept neon --set data.retain={a,b}.tar": "a.tar",
    "erase esd --concept neon --preset calibrated --set calibrate.clip=./nope": "nope",
    'erase fmn --concept neon --set images.sources={"neon":"./nope"}': "nope does not exist",
    "erase cie --concept neon --concept star --set data.folder=./nope/{}": "nope/neon does not exist",
    "erase sepce --concept neon --set data.folder=./nope": "nope does not exist",
    "erase spm --concept neon --set prompts_file=nope.yaml": "nope.yaml",
    "erase esd --concept a,b": "comma",
    "erase slug": "--concept",
    "erase cie --concept neon --precision float8": "precision",
    "erase cie --concept neon --device cdua": "'cdua'",
    "erase esd --concept neon --track wandbb": "'wandb'",
    "gradients --out g.safetensors --retain canvas --set data.n_retian=3": "'n_retain'",
    "gradients --out g.safetensors --retain canvas --model ./nope": "nope",
    "evaluate run --device cdua": "'cdua'",
    "evaluate nosuchrun": "nosuchrun does not exist",
    "evaluate --edit nosuch.safetensors --out a": "nosuch.safetensors does not exist",
    "evaluate --model nosuch.safetensors --edited b.pt --concept x --out a": "nosuch.safetensors does not exist",
    "evaluate --model canvas --edited nosuch.pt --concept x --out a": "nosuch.pt does not exist",
    "import nosuch.pt --model canvas --out e.safetensors": "nosuch.pt does not exist",
    "info nosuch.safetensors": "nosuch.safetensors does not exist",
    "generate --prompts nosuch.csv --out p": "nosuch.csv does not exist",
    "generate --prompt x --edit nosuch --out p": "nosuch does not exist",
    "generate --prompt x --bank nosuch --out p": "nosuch holds no bank.json",
    "generate --prompt x --model cnavas --out p": "'canvas'",
    "merge nosuch.safetensors --format kohya --out z": "nosuch.safetensors does not exist",
    "bank add nosuch --bank b": "nosuch does not exist",
}


def ran(command: str, folder: Path) -> tuple[int, str, set[str]]:
    """Exit code, standard error, and the heavy libraries that were loaded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", RUN, *command.split()]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    said, _, loaded = done.stderr.rpartition("loaded:")
    return done.returncode, said, set(loaded.split())


@pytest.mark.parametrize("command", LISTS)
def test_lists_import_no_model_library(command: str, tmp_path: Path) -> None:
    assert ran(command, tmp_path) == (0, "", set())


@pytest.mark.parametrize("command", MISTYPED)
def test_a_mistyped_command_is_told_before_any_model_library(command: str, tmp_path: Path) -> None:
    code, said, loaded = ran(command, tmp_path)
    assert (code, loaded) == (2, set())
    assert said.startswith("error: ") and said.count("\n") == 1 and MISTYPED[command] in said
    assert not list(tmp_path.iterdir())


def test_control_a_command_that_needs_tensors_is_seen(tmp_path: Path) -> None:
    (tmp_path / "edit.safetensors").write_bytes(b"no tensors")
    code, _, loaded = ran("info edit.safetensors", tmp_path)
    assert code == 2 and "torch" in loaded
