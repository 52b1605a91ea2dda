"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.core.errors import ConfigError

Model = Annotated[str, typer.Option(help="canvas, a hub id, a diffusers folder, or a .safetensors/.ckpt file.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, or GPU numbers like 0. Default: the best there is.")]
Precision = Annotated[str, typer.Option(help="What the model computes in: float32, float16 or bfloat16.")]
ClipSkip = Annotated[
    int | None,
    typer.Option(
        min=1, help="The text encoder's hidden state so many layers from the end. Default: as the edits note of it, else 1."
    ),
]
PredictionType = Annotated[
    str | None,
    typer.Option(help="What the UNet predicts: epsilon, v_prediction, sample. Default: as the edits note, or the model says."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted there.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


def whole_numbers(text: str, option: str) -> list[int]:
    """``188,288`` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes whole numbers with commas between, like 188,288, not {text!r}") from None


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """``["train.lr=1e-3"]`` as names and values, both still text."""
    for text in texts:
        if not text.partition("=")[0].strip() or "=" not in text:
            raise ConfigError(f"{option} takes name=value, not {text!r}")
    return {name.strip(): value for name, _, value in (text.partition("=") for text in texts)}
