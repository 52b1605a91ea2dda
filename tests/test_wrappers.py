"""The commands that SLUG's users know: what they call, that it works on the embedded world, and the conda environment."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mu.cli import app

ROOT = Path(__file__).resolve().parent.parent

# In place of `mu`: notes its words, and leaves an empty file where gradients would be.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" '' >> "$LOG"
while [ $# -gt 1 ]; do
  case "$1 $2" in "--out "*.safetensors) mkdir -p "$(dirname "$2")"; : > "$2" ;; esac
  shift
done
"""


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``called("run.sh", "--flag", NAME="Ada_Stone")``: the commands of `mu` that a script gives, each as its words."""
    stand_in = tmp_path / "bin" / "mu"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def call(script: str, *words: str, **variables: str) -> list[list[str]]:
        log = tmp_path / "log"
        log.write_text("")
        environment = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "LOG": str(log), **variables}
        done = subprocess.run(["bash", ROOT / "scripts" / script, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [command.splitlines() for command in log.read_text().split("\n\n") if command]

    return call


def test_gradients_are_made_once_for_the_retain_set_and_again_for_each_name(called) -> None:
    published = {"MODEL": "open_clip:ViT-B-32/laion400m_e32", "FORGET": "data/Elon_Musk.tar", "RETAIN": "data/00000.tar"}
    folder = "outputs/gradients/open_clip_ViT-B-32_laion400m_e32"
    retain, forget = called("run_clip_name.sh", "--device", "cpu", NAME="Elon_Musk", **published)
    assert retain == ["gradients", "--model", published["MODEL"], "--retain", "data/00000.tar",
                      "--out", f"{folder}/retain.safetensors", "--device", "cpu"]  # fmt: skip
    assert forget == ["gradients", "--model", published["MODEL"], "--forget", "data/Elon_Musk.tar", "--concept", "Elon_Musk",
                      "--out", f"{folder}/Elon_Musk.safetensors", "--overwrite", "--device", "cpu"]  # fmt: skip
    assert len(called("run_clip_name.sh", NAME="Elon_Musk", **published)) == 1


def test_run_makes_missing_gradients_only_and_erases_every_name(called) -> None:
    called("run_clip_name.sh", NAME="Ada_Stone")
    verbs = [(words[0], words[words.index("--concept") + 1]) for words in called("run.sh", NAMES="Ada_Stone Boris_Vale")]
    assert verbs == [("erase", "Ada Stone"), ("gradients", "Boris_Vale"), ("erase", "Boris Vale")]


def test_a_failing_command_stops_the_script(called, tmp_path: Path) -> None:
    (tmp_path / "bin" / "mu").write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(AssertionError):
        called("run.sh")


def test_the_commands_work_on_the_embedded_world(called, tmp_path: Path) -> None:
    tiny = ("--set", "data.n_forget=32", "--set", "data.n_retain=32", "--device", "cpu")
    quick = ("--set", "data.per_class=4", "--set", "layers.max_front=1", "--set", "search.steps=8", "--device", "cpu")
    commands = called("run_clip_name.sh", *tiny) + called("run.sh", *quick, NAMES="Ada_Stone")
    shutil.rmtree(tmp_path / "outputs")
    assert [words[0] for words in commands] == ["gradients", "gradients", "erase"]
    logger = logging.getLogger("mu")
    handlers, level = list(logger.handlers), logger.level
    for words in commands:
        done = CliRunner().invoke(app, words, prog_name="mu")
        assert done.exit_code == 0, done.output
    logger.handlers, logger.level = handlers, level
    run = tmp_path / "outputs" / "slug" / "canvas-clip" / "Ada_Stone"
    found = json.loads((run / "slug_Ada_Stone.json").read_text())
    assert found["base"]["fa1"] > 0.7, "control: it was known"
    chosen = next(curve for curve in found["curves"] if curve["name"] == found["chosen"])
    assert chosen["outcome"]["fa1"] == 0
    names = {path.name for path in run.iterdir()}
    assert {"edit.safetensors", "report.html", "pareto-vision-Ada_Stone.png", "pareto-language-Ada_Stone.png"} <= names


def test_the_conda_environment_installs_this_package_with_open_clip() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert dict(line.split() for line in pip) == {"-c": "constraints.txt", "-e": ".[clip]"}
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= (3, 10)
