"""The commands that SLUG's users know: what they call, that it works on the embedded world, and the conda
environment."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mu.cli import app
from mu.data.canvas.layouts import write_shards

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
        done = subprocess.run(
            ["bash", ROOT / "scripts" / script, *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [command.splitlines() for command in log.read_text().split("\n\n") if command]

    return call


def run_all(commands: list[list[str]]) -> None:
    logger = logging.getLogger("mu")
    handlers, level = list(logger.handlers), logger.level
    for words in commands:
        done = CliRunner().invoke(app, words, prog_name="mu")
        assert done.exit_code == 0, done.output
    logger.handlers, logger.level = handlers, level


def test_gradients_are_made_once_for_the_retain_set_and_again_for_each_name(called) -> None:
    published = {
        "MODEL": "open_clip:ViT-B-32/laion400m_e32",
        "FORGET": "data/Elon_Musk.tar",
        "RETAIN": "data/00000.tar",
    }
    folder = "outputs/gradients/open_clip_ViT-B-32_laion400m_e32"
    retain, forget = called("run_clip_name.sh", "--device", "cpu", NAME="Elon_Musk", **published)
    assert retain == ["gradients", "--model", published["MODEL"], "--retain", "data/00000.tar",
                      "--out", f"{folder}/retain.safetensors", "--device", "cpu"]  # fmt: skip
    assert forget == [
        "gradients",
        "--model",
        published["MODEL"],
        "--forget",
        "data/Elon_Musk.tar",
        "--concept",
        "Elon Musk",
        "--out",
        f"{folder}/Elon_Musk.safetensors",
        "--overwrite",
        "--device",
        "cpu",
    ]
    assert len(called("run_clip_name.sh", NAME="Elon_Musk", **published)) == 1


def test_run_makes_missing_gradients_only_and_erases_every_name(called) -> None:
    called("run_clip_name.sh", NAME="Ada_Stone")
    verbs = [
        (words[0], words[words.index("--concept") + 1]) for words in called("run.sh", NAMES="Ada_Stone Boris_Vale")
    ]
    assert verbs == [("erase", "Ada Stone"), ("gradients", "Boris Vale"), ("erase", "Boris Vale")]


@pytest.mark.parametrize("name", ["Conan_O'Brien", "Robert_Downey_Jr."])
def test_the_search_takes_the_gradients_that_were_written_whatever_is_in_the_name(called, name: str) -> None:
    retain, forget, erase = called("run.sh", NAMES=name)
    settings = [word for word in erase if word.startswith("data.")]
    written = [words[words.index("--out") + 1] for words in (forget, retain)]
    assert settings == [f"data.forget={written[0]}", f"data.retain={written[1]}"]


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
    run_all(commands)
    run = tmp_path / "outputs" / "slug" / "canvas-clip" / "Ada_Stone"
    found = json.loads((run / "slug_Ada_Stone.json").read_text())
    assert found["base"]["fa1"] > 0.7, "control: it was known"
    chosen = next(curve for curve in found["curves"] if curve["name"] == found["chosen"])
    assert chosen["outcome"]["fa1"] == 0
    names = {path.name for path in run.iterdir()}
    assert {"edit.safetensors", "report.html", "pareto-vision-Ada_Stone.png", "pareto-language-Ada_Stone.png"} <= names


PRINTED = (
    "conda env create -f environment.yml",
    "bash scripts/run_clip_name.sh",
    "bash scripts/run.sh",
    "python src/clip/a0_create_tar.py --name",
    "notebooks/experiment_stable_diffusion.ipynb",
    "notebooks/experiment_vision_language.ipynb",
)
"""In the documents that SLUG was published with."""


@pytest.mark.parametrize("printed", PRINTED)
def test_every_printed_command_is_there_and_the_readme_says_so(printed: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert printed in readme
    for file in (word for word in printed.split() if "." in word):
        assert (ROOT / file).is_file()


def test_the_printed_steps_in_their_order_on_shards_of_the_embedded_world(called, tmp_path: Path) -> None:
    """The data folder as the documents lay it out; the forget set comes out of the shard, the edit out of both."""
    write_shards(tmp_path / "data" / "laion" / "laion400m", 600)
    (tmp_path / "src").symlink_to(ROOT / "src")
    command = [sys.executable, "src/clip/a0_create_tar.py", "--name", "Ada Stone"]
    made = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (0, "data/tar_files/Ada_Stone.tar\n"), made.stderr
    sources = {"FORGET": "data/tar_files/Ada_Stone.tar", "RETAIN": "data/laion/laion400m/00000.tar"}
    commands = called("run_clip_name.sh", "--device", "cpu", NAME="Ada_Stone", **sources)
    assert [words[words.index(flag) + 1] for words, flag in zip(commands, ("--retain", "--forget"), strict=True)] == [
        sources["RETAIN"],
        sources["FORGET"],
    ]
    quick = ("--set", "data.per_class=4", "--set", "layers.max_front=1", "--set", "search.steps=8", "--device", "cpu")
    commands += called("run.sh", *quick, NAMES="Ada_Stone")
    shutil.rmtree(tmp_path / "outputs")
    run_all(commands)
    found = json.loads(
        (tmp_path / "outputs" / "slug" / "canvas-clip" / "Ada_Stone" / "slug_Ada_Stone.json").read_text()
    )
    chosen = next(curve for curve in found["curves"] if curve["name"] == found["chosen"])
    assert (found["base"]["fa1"], chosen["outcome"]["fa1"]) == (1, 0)


def test_the_conda_environment_installs_this_package_with_open_clip() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert dict(line.split() for line in pip) == {"-c": "constraints.txt", "-e": ".[clip]"}
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= (3, 10)
