"""Many concepts from a file: erased in one search, one edit each in a bank, and any of them back."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import pytest
import torch

from mu.algorithms import method as method_of
from mu.cli.erase import _setting
from mu.edits.bank_folder import BankFolder
from mu.models.diffusion import DiffusionModel
from tests.cli.conftest import Cli

NAMES = ["Ada Moss", "Ben Tull", "Cy Rook"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    names, kept = tmp_path / "names.txt", tmp_path / "kept.csv"
    names.write_text("\n".join([*NAMES, ""]), encoding="utf-8")
    kept.write_text("concept\nDee Fox\nEli Ray\na dog\n", encoding="utf-8")
    return names, kept


@pytest.mark.parametrize(("method", "more"), [("speed", ["filter=false"]), ("uce", ["restorable=true", "tokens=last"])])
def test_a_file_of_names_and_one_of_them_restored(
    method: str,
    more: list[str],
    files: tuple[Path, Path],
    cli: Cli,
    tiny: DiffusionModel,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    names, kept = files
    bank = tmp_path / "bank"
    common = [*("--model", tiny_folder, "--no-images", "--device", "cpu"), *(w for s in more for w in ("--set", s))]
    done = cli(
        "erase", method, "--concepts", names, "--anchor", "person", "--retain", kept, "--bank", bank,
        "--out", tmp_path / "run", *common,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [entry.concept for entry in BankFolder(bank).read().edits] == NAMES
    assert cli("bank", "restore", NAMES[1], "--bank", bank, "--no-measure").exit_code == 0
    left = BankFolder(bank).open(tiny).deltas()
    two = tmp_path / "two.txt"
    two.write_text("\n".join([NAMES[0], NAMES[2]]), encoding="utf-8")
    again = cli(
        "erase", method, "--concepts", two, "--anchor", "person", "--retain", kept, "--bank", tmp_path / "bank2",
        "--out", tmp_path / "run2", *common,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    wanted = BankFolder(tmp_path / "bank2").open(tiny).deltas()
    assert cli("bank", "erase", NAMES[1], "--bank", bank).exit_code == 0
    whole = BankFolder(bank).open(tiny).deltas()
    for name, delta in wanted.items():
        scale = float(delta.abs().max())
        assert torch.allclose(left[name], delta, rtol=0, atol=1e-4 * scale)
        assert not torch.allclose(whole[name], delta, rtol=0, atol=1e-2 * scale)  # control


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("speed", "retain"),
        ("uce", "preserve"),
        *((each, "calibrate.retain") for each in ("ca", "cie", "esd", "sepce", "spm")),
    ],
)
def test_what_to_retain_reaches_the_solve_or_the_calibrated_search(name: str, setting: str) -> None:
    chosen = method_of(name)
    assert _setting(chosen, "--retain") == setting
    found = chosen.for_concepts(["neon"], None, "calibrated", {setting: ["sketch", "a fish"]})
    assert found.calibrate.on == (setting == "calibrate.retain")
    assert reduce(getattr, setting.split("."), found) == ["sketch", "a fish"]


def test_bad_files_are_one_line_and_nothing_is_left(files: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    names, kept = files
    out = tmp_path / "out"
    kept.write_text("concept\nben tull\n", encoding="utf-8")
    comma = tmp_path / "comma.txt"
    comma.write_text("a, b\n", encoding="utf-8")
    for arguments, said in [
        (["speed", "--concepts", names, "--retain", kept], "'ben tull' (line 2)"),
        (["speed", "--concepts", comma], "line 1"),
        (["speed", "--concepts", tmp_path / "nope.txt"], "nope.txt"),
        (["esd", "--concepts", names, "--anchor", "person"], "--anchor"),
        (["slug", "--concepts", names, "--retain", kept], "--retain"),
        (["esd", "--concepts", names, "--retain", kept, "--preset", "styles"], "--preset calibrated"),
        (["spm", "--concepts", names, "--retain", kept, "--preset", "canvas"], "--preset calibrated"),
        (["ca", "--concepts", names, "--retain", kept, "--set", "calibrate.retain=[x]"], "--retain"),
        (["speed", "--concepts", names, "--set", "anchors=[a]", "--anchor", "b"], "--anchor"),
        (["uce", "--concepts", names, "--anchor", "a", "--anchor", "b"], "2 anchors for 3 concepts"),
    ]:
        ended = cli("erase", *arguments, "--out", out)
        assert ended.exit_code == 2, ended.output
        errors = [line for line in ended.stderr.splitlines() if line]
        assert said in ended.stderr and len(errors) == 1, json.dumps(errors)
        assert not out.exists()
