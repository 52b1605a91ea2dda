"""``mu import``: weights that others published, as an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import ClipSkip, Overwrite, PredictionType, check_places


def import_(
    other: Annotated[
        str,
        typer.Argument(
            metavar="OTHER",
            help="Edited weights: a diffusers folder, a hub id, a CompVis file, a UNet's or text encoder's state dict "
            "(also in part), delta.bin, or a LoRA.",
        ),
    ],
    model: Annotated[
        str, typer.Option(help="The base model that OTHER was made from: canvas, a hub id, a folder or a file.")
    ],
    out: Annotated[Path, typer.Option(help="The output file, NAME.safetensors.")],
    concept: Annotated[
        list[str] | None, typer.Option(help="What OTHER erases; repeat for several. Default: the name of its file.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="The method that made OTHER. Default: imported.")] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Import the changes of this component alone (unet, text_encoder, text_encoder_2, vae); repeat for "
            "several.",
        ),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Largest error of a low-rank edit, as a share of each matrix's difference; the rounding of OTHER's "
            "number type if that is larger; 0 for a dense edit. Default: 0.001.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="The largest rank instead, whatever its error.")] = None,
    overwrite: Overwrite = False,
    clip_skip: ClipSkip = None,
    prediction_type: PredictionType = None,
) -> None:
    """Turn the difference between published weights and their base model into an edit.

    It can then be put in a bank, scaled, restored, merged, measured and attacked like an edit that mu found. It is
    low-rank if the difference is; `mu info` shows the error that was measured.

    Example: mu import esd.pt --model CompVis/stable-diffusion-v1-4 --concept "Van Gogh" --out van-gogh.safetensors
    """
    from mu.core.concept import distinct
    from mu.core.errors import ConfigError, OutputError
    from mu.core.program import show_log

    show_log()
    distinct(concept or ())
    if rank is not None and error is not None:
        raise ConfigError("--rank and --error exclude each other: pass one of them")
    if out.suffix != ".safetensors":
        raise OutputError(f"{out} is not a .safetensors path: edits are saved as .safetensors")
    check_places(model, edited=other)
    from mu.edits.difference import difference
    from mu.edits.export import check_place
    from mu.models import load_diffusion
    from mu.models.formats.other_weights import check_weights
    from mu.models.load_options import loading

    check_place(out, "peft", overwrite=overwrite, inputs=[other, model])
    check_weights(other)
    options = loading(model, [], clip_skip=clip_skip, prediction_type=prediction_type)
    edit = difference(
        load_diffusion(model, device="cpu", **options),
        other,
        concepts=concept or (),
        method=method,
        components=component or (),
        error=error,
        rank=rank,
        show=True,
    )
    edit.save(out)
    print(out)
