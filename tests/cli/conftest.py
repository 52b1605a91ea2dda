"""The command line as a user meets it: what it prints, writes and exits with."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mu.cli import app

Cli = Callable[..., Any]
MESSAGES = Path(__file__).resolve().parents[1] / "reference" / "messages.json"


def messages() -> dict[str, dict[str, list[str]]]:
    """By table and row: the command as typed and the line that it ends with. `test_messages.py` says how to remake
    them."""
    return json.loads(MESSAGES.read_text(encoding="utf-8"))


def keep_messages(kept: Mapping[str, Mapping[str, list[str]]]) -> None:
    MESSAGES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mu")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README's commands wrote into the clone is not in the way of the default places."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="session")
def cli() -> Cli:
    """``cli("info", path)`` with ``exit_code``, ``stdout`` and ``stderr``."""
    return invoke


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Verbs show the log on standard error; afterwards it is as it was."""
    logger = logging.getLogger("mu")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers, logger.level = handlers, level


@pytest.fixture(scope="session")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ``mu erase`` made: two steps on random weights."""
    out = tmp_path_factory.mktemp("runs") / "neon"
    settings = ("train.iterations=2", "train.max_denoising_steps=2")
    done = invoke(
        "erase", "spm", "--concept", " neon  style ", "--model", tiny_folder, "--preset", "canvas", "--device", "cpu",
        *(word for setting in settings for word in ("--set", setting)), "--prompt", "A star, neon", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def as_kept(request: pytest.FixtureRequest) -> Callable[[str, str, Mapping[str, object]], None]:
    """``as_kept(typed, line, places)``: the line is the kept one of this test's row, with ``{name}`` for the path of
    each place."""
    table, row = request.path.stem.removeprefix("test_"), request.node.callspec.id

    def compare(typed: str, line: str, places: Mapping[str, object]) -> None:
        for name, place in sorted(places.items(), key=lambda item: -len(str(item[1]))):
            line = line.replace(str(place), f"{{{name}}}")
        told, kept = [f"mu {typed}", line], messages()
        if os.environ.get("REMAKE_MESSAGES"):
            kept.setdefault(table, {})[row] = told
            keep_messages(kept)
        assert kept.get(table, {}).get(row) == told, (
            "other words than in tests/reference/messages.json: see test_messages.py"
        )

    return compare
