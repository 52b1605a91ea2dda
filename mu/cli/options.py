"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from mu.core.devices import check_device
from mu.core.errors import ConfigError, quoted, titled

BaseOfEdits = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="canvas, a hub id, a diffusers folder, or a .safetensors/.ckpt file. Default: the edits' own base.",
    ),
]


def _device(wanted: str | None) -> str | None:
    check_device(wanted or "")
    return wanted


Device = Annotated[
    str | None,
    typer.Option(callback=_device, help="cpu, cuda, mps, or GPU numbers like 0. Default: the best available."),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device",
        "--devices",
        callback=_device,
        help="cpu, cuda, mps, or GPU numbers. Of several, like 0,1, each gets a process, and all share the "
        "work. Default: the best available.",
    ),
]
Precision = Annotated[str, typer.Option(help="The model's number format: float32, float16 or bfloat16.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Make the images through torch.compile: takes minutes to start, then a GPU is faster."
    ),
]
ClipSkip = Annotated[
    int | None,
    typer.Option(
        min=1, help="Use the text encoder's hidden state N layers from the end. Default: the edits' value, else 1."
    ),
]
PredictionType = Annotated[
    str | None,
    typer.Option(
        help="What the UNet predicts: epsilon, v_prediction, sample. Default: the edits' value, else the model's."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]

AUTO = "auto"
"""The word of ``--shard`` for all devices of this machine."""
HIGHEST_SEED = 2**64 - 1
"""The highest seed of a generator of random numbers."""


def check_places(
    model: str | None = None, edits: Iterable[Path | str] = (), bank: Path | None = None, edited: str | None = None
) -> None:
    """Raise the error of a base model, an edit, a bank or ``edited`` weights that do not exist.

    A bank's folder is an edit's place too. Call it before anything imports a model library, which takes seconds.
    """
    from mu.edits.bank_folder import BankFolder
    from mu.edits.places import edit_file
    from mu.models.places import check_name

    if bank is not None:
        BankFolder(bank).read()
    for each in map(Path, edits):
        if not BankFolder(each).json.exists():
            edit_file(each)
    for name in (model, edited):
        if name is not None:
            check_name(name)


def compiling(model: Any, wanted: bool) -> None:
    """Let ``model`` compile if it is ``wanted``. Raises `ConfigError` for a model that makes no images."""
    from mu.models.diffusion import DiffusionModel

    if wanted and not isinstance(model, DiffusionModel):
        raise ConfigError(
            f"--compile is for models that make images, and {titled(model.name)} makes none: leave it out"
        )
    if wanted:
        model.compiles = True


def check_last_seed(seed: int, count: int, said: str) -> None:
    """Raise `ConfigError` that repeats what was ``said`` if a seed of ``count`` ones from ``seed`` is too high."""
    if not 0 <= seed <= HIGHEST_SEED:
        raise ConfigError(f"{said}: a seed is a number from 0 to 2**64 - 1")
    if seed + count - 1 > HIGHEST_SEED:
        raise ConfigError(f"{said} with {count} images each: seeds count up and end at 2**64 - 1, give a lower one")


def whole_numbers(text: str, option: str) -> list[int]:
    """Parse ``188,288`` into numbers from 0 to 2**64 - 1. Raises `ConfigError`."""
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() and len(part) < 21 and int(part) < 2**64 for part in parts):
        return [int(part) for part in parts]
    raise ConfigError(f"{option} takes comma-separated whole numbers, like 188,288, not {quoted(text)}")


def height_width(text: str) -> tuple[int, int]:
    """Parse ``512x768``. Raises `ConfigError`."""
    height, _, width = text.lower().partition("x")
    if not all(side.isdecimal() and len(side) < 10 and int(side) for side in (height, width)):
        raise ConfigError(f"--size takes height x width in pixels, like 512x768, not {quoted(text)}")
    return int(height), int(width)


def named(text: str | None, option: str) -> list[str]:
    """Parse ``Van_Gogh,Monet`` into names; none for None. Raises `ConfigError` for an empty name."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ConfigError(f"{option} takes comma-separated names, like Van_Gogh,Monet, not {quoted(text)}")
    return parts


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """Parse ``["train.lr=1e-3"]`` into names and values, both text. Raises `ConfigError`, also for a name twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise ConfigError(f"{option} takes name=value, not {quoted(text)}")
        if name.strip() in found:
            raise ConfigError(f"{option} gives {quoted(name.strip())} twice: leave one of the two out")
        found[name.strip()] = value
    return found
