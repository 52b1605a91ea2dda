"""The command line as a user meets it: what it prints, writes and exits with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mu.cli import app

Cli = Callable[..., Any]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mu")


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
