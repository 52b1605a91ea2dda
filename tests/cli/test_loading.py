"""Clip skip and prediction type on the command line: given, noted in what was found, and taken from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mu.models.loader
from mu.edits.files import open_edit
from mu.models import load_diffusion

SHORT = ("train.iterations=1", "denoising_steps=2", "loading.clip_skip=2")


@pytest.fixture(scope="module")
def skipped(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, cli: Any) -> Path:
    """The folder of an ESD run on `tiny_folder`, loaded with a clip skip of 2."""
    out = tmp_path_factory.mktemp("runs") / "skipped"
    done = cli(
        "erase",
        "esd",
        "--concept",
        "neon",
        "--model",
        tiny_folder,
        "--preset",
        "canvas",
        "--device",
        "cpu",
        "--no-pictures",
        *(word for setting in SHORT for word in ("--set", setting)),
        "--out",
        out,
    )
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Name, clip skip and prediction type of each loading."""
    seen: list[tuple[str, Any, Any]] = []
    real = mu.models.loader.load

    def load(name: Any, **how: Any) -> Any:
        seen.append((str(name), how.get("clip_skip"), how.get("prediction_type")))
        return real(name, **how)

    for home in (mu.models, mu.models.loader):
        monkeypatch.setattr(home, "load", load)
    return seen


def test_an_edit_notes_how_its_base_was_loaded(skipped: Path, cli: Any) -> None:
    assert open_edit(skipped).info.loading == {"clip_skip": 2, "prediction_type": "epsilon"}
    assert json.loads(cli("info", skipped, "--json").stdout)["loading"]["clip_skip"] == 2
    assert "clip_skip 2, prediction_type epsilon" in cli("info", skipped).stdout


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ((), (2, "epsilon")),
        (("--clip-skip", 1), (1, "epsilon")),
        (("--prediction-type", "v_prediction"), (2, "v_prediction")),
    ],
)
def test_evaluate_loads_the_runs_base_as_it_was(
    typed: tuple[Any, ...],
    found: Any,
    skipped: Path,
    tiny_folder: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    cli: Any,
) -> None:
    monkeypatch.setattr("mu.evaluation.suites.evaluate", lambda *args, **how: {})
    assert cli("evaluate", skipped, *typed).exit_code == 0
    assert asked == [(str(tiny_folder), *found)]


def test_another_model_is_loaded_as_ever(
    skipped: Path, tiny_folder: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.setattr("mu.evaluation.suites.evaluate", lambda *args, **how: {})
    other = tmp_path / "other"
    other.symlink_to(tiny_folder)
    shown = cli("evaluate", skipped, "--model", other)
    assert shown.exit_code == 0 and asked == [(str(other), None, None)]


def test_generate_takes_what_its_edits_note(
    skipped: Path, finished: Path, tiny_folder: Path, tmp_path: Path, asked: list[Any], cli: Any
) -> None:
    common = ("generate", "--prompt", "neon", "--model", tiny_folder, "--steps", 1, "--strength", 0)
    for name, typed in {"noted": ("--edit", skipped), "given": ("--clip-skip", 2), "plain": ()}.items():
        words = common if "--edit" in typed else common[:-2]
        assert cli(*words, *typed, "--out", tmp_path / name).exit_code == 0
    assert [skip for _, skip, _ in asked] == [2, 2, None]
    noted, given, plain = ((tmp_path / name / "0_0.png").read_bytes() for name in ("noted", "given", "plain"))
    assert noted == given != plain
    both = cli(*common, "--strength", 0, "--edit", skipped, "--edit", finished, "--out", tmp_path / "both")
    assert both.exit_code == 2 and "clip_skip" in both.stderr and "--clip-skip" in both.stderr


def test_a_bank_remembers_how_its_base_was_loaded(
    skipped: Path, tiny_folder: Path, tmp_path: Path, asked: list[Any], cli: Any
) -> None:
    bank = tmp_path / "bank"
    assert cli("bank", "add", skipped, "--bank", bank).exit_code == 0
    assert json.loads((bank / "bank.json").read_text(encoding="utf-8"))["loading"]["clip_skip"] == 2
    assert cli("bank", "check", "--bank", bank).exit_code in (0, 1)
    assert cli("generate", "--prompt", "neon", "--steps", 1, "--bank", bank, "--out", tmp_path / "p").exit_code == 0
    assert asked == [(str(tiny_folder), 2, "epsilon")] * 3


def test_a_merged_folder_says_what_its_unet_predicts(
    finished: Path, tiny_folder: Path, tmp_path: Path, cli: Any
) -> None:
    common = ("merge", finished, "--model", tiny_folder, "--prediction-type", "v_prediction")
    assert cli(*common, "--format", "diffusers", "--out", tmp_path / "merged").exit_code == 0
    assert load_diffusion(tmp_path / "merged", device="cpu").prediction_type == "v_prediction"
    refused = cli(*common, "--format", "unet", "--out", tmp_path / "x.safetensors")
    assert refused.exit_code == 2 and "--prediction-type" in refused.stderr


def test_another_loading_than_the_edits_is_told(skipped: Path, tiny_folder: Path, tmp_path: Path, cli: Any) -> None:
    common = ("generate", "--prompt", "neon", "--model", tiny_folder, "--steps", 1, "--edit", skipped, "--out")
    told = cli(*common, tmp_path / "a", "--clip-skip", 1).stderr
    assert "WARNING" in told and "clip_skip" in told
    assert "clip_skip" not in cli(*common, tmp_path / "b").stderr
