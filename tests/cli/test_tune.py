"""``mu tune``, and ``mu erase`` with what it found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mu.core.run import RunDirectory
from mu.edits.files import open_edit

Cli = Callable[..., Any]


def test_settings_are_found_and_erase_takes_them(tmp_path: Path, cli: Cli) -> None:
    words = ["tune", "uce", "--concepts", "star,fish", "--seeds", 3, "--steps", 6, "--retain", "heart", "--trials", 1]
    done = cli(*words, "--jobs", 0, "--out", tmp_path / "tune")
    assert done.exit_code == 0, done.output + done.stderr
    assert f"settings {tmp_path / 'tune' / 'uce.yaml'}" in done.stdout and "the method's own settings" in done.stdout
    found = tmp_path / "tune" / "uce.yaml"
    erased = cli("erase", "uce", "--config", found, "--concept", "moon", "--no-images", "--out", tmp_path / "run")
    assert erased.exit_code == 0, erased.output + erased.stderr
    edit = open_edit(RunDirectory(tmp_path / "run").edit)
    assert edit.info.concepts == ("moon",) and edit.info.config["preserve_scale"] == 3.0


def test_what_is_wrong_is_one_line(tmp_path: Path, cli: Cli) -> None:
    for words, line in {
        ("clip-ft", "--concepts", "Ada Stone"): "clip-ft names no settings to search",
        ("ucee", "--concepts", "star"): "Did you mean 'uce'?",
        ("uce", "--concepts", "star,"): "--concepts takes comma-separated names",
        ("uce", "--concepts", "star", "--seeds", "x"): "--seeds takes comma-separated whole numbers",
        ("uce", "--concepts", "star", "--set", "lamb=1"): "'lamb' is set, and the search would change it",
        ("uce", "--concepts", "star", "--suite", "conceptt"): "Did you mean 'concept'?",
        ("uce", "--concepts", "star", "--judge", "a", "--judge", "b"): "takes 1 judge(s), not 2",
    }.items():
        ended = cli("tune", *words, "--out", tmp_path / "tune")
        assert ended.exit_code == 2 and line in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert not (tmp_path / "tune").exists()
