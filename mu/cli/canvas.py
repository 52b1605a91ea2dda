"""``mu canvas``: train the embedded model, render its data."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import Device, Resume, pairs, whole_numbers
from mu.core.errors import ConfigError, nearest, quoted

app = typer.Typer(
    name="canvas",
    help="Train the embedded model from scratch, or render its world as a data set.",
    no_args_is_help=False,
)


HIGHEST = 2**32 - 1
"""The highest seed of a world, its images and its training, which make more seeds of it."""


class Layout(str, Enum):
    unlearn_canvas = "unlearn-canvas"
    celeba = "celeba"
    shards = "shards"


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The output folder. A stage whose folder exists is skipped.")] = Path(
        "outputs/canvas"
    ),
    seed: Annotated[int, typer.Option(min=0, max=HIGHEST, help="Seed of all random numbers.")] = 0,
    world: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            min=0,
            max=HIGHEST,
            help="Train a sibling world of other words, looks and sizes, drawn by SEED.",
        ),
    ] = None,
    device: Device = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="Stages to train, comma-separated, in this order. Default: judge,clip,autoencoder,unet,vlm; of a "
            "sibling all but vlm."
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="STAGE=N,...", help="Optimiser steps per stage. Default: each stage's own.")
    ] = None,
) -> None:
    """Train the embedded model from scratch. A second run continues where the first stopped.

    Example: mu canvas train --out outputs/canvas --stages judge,clip --steps judge=200,clip=300
    Example: mu canvas train --world 1 --out outputs/world-1
    """
    from mu.core import threads
    from mu.core.compute import pick_device
    from mu.core.program import show_log
    from mu.models.canvas.training import STAGES, train_world

    show_log()
    counts = {
        stage: whole_numbers(n, "--steps")[0]
        for stage, n in pairs(steps.split(",") if steps else [], "--steps").items()
    }
    named = tuple(stages.split(",")) if stages else STAGES if world is None else STAGES[:-1]
    for stage in (*named, *counts):
        if stage not in STAGES:
            raise ConfigError(f"unknown stage {quoted(stage)}.{nearest(stage, STAGES)}")
    threads.fit(0)
    train_world(out, seed=seed, world=world, device=str(pick_device(device)), stages=named, steps=counts)
    print(out)


@app.command()
def render(
    layout: Annotated[Layout, typer.Argument(help="The layout of the files.")],
    out: Annotated[Path, typer.Argument(help="An empty or new folder.")],
    n: Annotated[
        int,
        typer.Option(
            "--n",
            max=1_000_000,
            help="Images: per style and object (unlearn-canvas), per identity (celeba), in total (shards).",
        ),
    ] = 20,
    seed: Annotated[int, typer.Option(max=HIGHEST, help="Seed of all images.")] = 0,
    resume: Resume = False,
) -> None:
    """Render images of the canvas world in a data set layout that other programs read.

    Example: mu canvas render unlearn-canvas outputs/images --n 5
    """
    from mu.core.progress import progress_bar
    from mu.data import canvas as world
    from mu.data.canvas import layouts

    writers: dict[Layout, tuple[Callable[..., int], int]] = {
        Layout.unlearn_canvas: (layouts.write_unlearn_canvas, n * len(world.STYLES) * len(world.OBJECTS)),
        Layout.celeba: (layouts.write_celeba, n * len(world.IDENTITIES)),
        Layout.shards: (layouts.write_shards, n),
    }
    writer, total = writers[layout]
    with progress_bar("rendering", total) as advance:
        writer(out, n, seed, resume=resume, progress=lambda done, _: advance(done, ""))
    print(out)
