"""Help that helps: quick, without torch, and with an example that is true for every verb."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mu.cli import app

ROOT = Path(__file__).resolve().parents[2]


def verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command


VERBS = dict(verbs(typer.main.get_command(app)))


def example(command: Any) -> list[str]:
    """The words of the docstring's example; empty where it has none."""
    found = re.search(r"^Example: (.+)$", command.help or "", re.MULTILINE)
    return shlex.split(found[1]) if found else []


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("path", VERBS, ids="-".join)
def test_help_has_an_example_that_parses(path: tuple[str, ...], cli: Any) -> None:
    shown = cli(*path, "--help")
    assert shown.exit_code == 0
    assert f"Example: mu {' '.join(path)}" in shown.stdout

    words = example(VERBS[path])
    assert words[: len(path) + 1] == ["mu", *path]
    arguments = [word for word in words[len(path) + 1 :] if word not in (">", "neon.yaml")]
    VERBS[path].make_context(path[-1], arguments)


def test_control_an_example_with_an_unknown_option_is_seen() -> None:
    with pytest.raises(typer.BadParameter.__base__, match="--jsn"):
        VERBS["info",].make_context("info", ["edit.safetensors", "--jsn"])


def test_every_option_says_what_it_does() -> None:
    silent = [f"{' '.join(path)} {p.name}" for path, verb in VERBS.items() for p in verb.params if not p.help]
    assert silent == []


def test_help_loads_no_torch() -> None:
    heavy = ("torch", "diffusers", "transformers", "matplotlib", "pydantic")
    code = f"import sys\nfrom mu.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\nprint('loaded', *set({heavy}) & set(sys.modules))"
    shown = python(code)
    assert shown.stdout.splitlines()[-1].split() == ["loaded"], shown.stdout + shown.stderr
    assert "generate" in shown.stdout


def test_mu_alone_shows_help(cli: Any) -> None:
    assert cli().exit_code == 0
    assert cli().stdout.strip() == cli("--help").stdout.strip()


def test_version(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"mu-unlearning": "1.2.3"}[name])
    shown = cli("--version")
    assert (shown.exit_code, shown.stdout) == (0, "mu 1.2.3\n")


@pytest.mark.parametrize("arguments", [["--help"], ["report", "{run}"]])
def test_a_reader_that_leaves_early_sees_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    arguments = [word.format(run=tmp_path) for word in arguments]
    running = subprocess.Popen(
        [sys.executable, "-m", "mu", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout and running.stderr
    running.stdout.close()
    with running.stderr:
        told = running.stderr.read()
    assert running.wait(timeout=300) == 1
    assert "Traceback" not in told and "BrokenPipe" not in told


def test_merge_names_every_format() -> None:
    from mu.edits.export import FORMATS

    (form,) = (p for p in VERBS["merge",].params if p.name == "form")
    assert all(name in form.help for name in FORMATS)


def test_canvas_train_names_every_stage() -> None:
    from mu.models.canvas.training import STAGES

    (stages,) = (p for p in VERBS["canvas", "train"].params if p.name == "stages")
    assert ",".join(STAGES) in stages.help
