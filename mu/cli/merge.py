"""``mu merge``: write edits for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mu.cli.options import BaseOfEdits, Device, Overwrite, PredictionType, check_places


def merge(
    edits: Annotated[list[str], typer.Argument(metavar="EDIT|RUN...", help="Edit files or run folders.")],
    out: Annotated[Path, typer.Option(help="The output file; for diffusers, transformers, open_clip: a folder.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="kohya, peft: one LoRA file. diffusers: a folder with the merged model (CLIP, LLaVA: transformers; "
            "CLIP of open_clip: open_clip). "
            "unet, compvis: merged weights in one file.",
        ),
    ],
    model: BaseOfEdits = None,
    strength: Annotated[list[float] | None, typer.Option(help="One strength per edit, in order. Default: 1.")] = None,
    overwrite: Overwrite = False,
    device: Device = None,
    prediction_type: PredictionType = None,
) -> None:
    """Write edits for other tools, as one LoRA or merged into the model.

    Example: mu merge outputs/neon outputs/star --format diffusers --out outputs/merged
    """
    from mu.core.errors import ConfigError
    from mu.core.program import show_log
    from mu.edits.places import edit_file

    show_log()
    recorded = form in ("diffusers", "compvis")
    if prediction_type and not recorded:
        raise ConfigError(
            "--prediction-type belongs to --format diffusers and compvis: other formats do not record what the UNet "
            "predicts"
        )
    inputs = [edit_file(Path(each)) for each in edits]
    check_places(model)
    from mu.edits.bank import Bank
    from mu.edits.export import check_place, export
    from mu.edits.files import open_edit
    from mu.edits.protection import tell_leaks
    from mu.models import load
    from mu.models.load_options import base_of, loading

    check_place(out, form, overwrite=overwrite, inputs=inputs)
    opened = [open_edit(each) for each in edits]
    found = [edit.info for edit in opened]
    name = base_of(model, found)
    how = loading(name, found, prediction_type=prediction_type) if recorded else {}
    bank = Bank(load(name, device=device, **how), opened)
    tell_leaks(bank)
    print(export(bank, out, form, strengths=strength, overwrite=overwrite, inputs=inputs))
