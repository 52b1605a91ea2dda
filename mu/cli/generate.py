"""``mu generate``: make images."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mu.cli.options import (
    AUTO,
    ClipSkip,
    Compile,
    Device,
    Overwrite,
    Precision,
    PredictionType,
    Resume,
    check_last_seed,
    check_places,
    compiling,
    height_width,
)
from mu.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from mu.core.workers import Shard
    from mu.data.prompts import PromptRow
    from mu.diffusion.image_folder import ImageRow
    from mu.edits.bank import Bank
    from mu.edits.gates import Gate
    from mu.models.diffusion import DiffusionModel


log = logging.getLogger("mu")


class GateChoice(str, Enum):
    file = "file"
    none = "none"
    facilitated_transport = "facilitated_transport"


def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=".csv (ESD, I2P, COCO lists), .txt, .json or .jsonl in place of --prompt."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="canvas, a hub id, a diffusers folder, or a .safetensors/.ckpt file. Default: the edits' or the "
            "bank's own base; without edits, canvas."
        ),
    ] = None,
    edit: Annotated[
        list[str] | None, typer.Option(metavar="FILE|RUN", help="An edit to apply; repeat for several.")
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead of --edit: apply the edits that are on in this bank; see `mu bank`."),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="One strength per edit, in order. Default: the bank's, else 1.")
    ] = None,
    gate: Annotated[
        GateChoice, typer.Option(help="Gate of low-rank edits: the file's own, none (always in full), or by prompt.")
    ] = GateChoice.file,
    factor: Annotated[
        float | None, typer.Option(help="Multiplies the gate of facilitated_transport. Default: 1.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FIELD=NAME",
            help="With --prompts: the column of the prompts, or of a field (seed, guidance, width, height, "
            "case_number); repeat for several.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of each prompt's first image, unless the prompt file has one.")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Images per prompt; each next seed adds one.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale. Default: the prompt file's, else 7.5.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="The negative prompt. Default: none.")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Height x width in pixels. Default: the prompt file's, else the model's."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The output folder for CASE_K.png and prompts.json.")] = Path(
        "outputs/images"
    ),
    overwrite: Overwrite = False,
    resume: Resume = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N|auto",
            help="Make only every N-th image, from the K-th on, in a folder of its own in --out: machines share the "
            "work. The same command without it collects them. auto: a process for each GPU of this machine, or for "
            "each device of --device 0,1, makes its share; then collect.",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = "float32",
    compile: Compile = False,
    clip_skip: ClipSkip = None,
    prediction_type: PredictionType = None,
) -> None:
    """Generate images from prompts, with any number of edits applied.

    Example: mu generate --prompt "A star image in neon style." --edit outputs/neon --n 4 --out outputs/images
    """
    from mu.core.program import show_log
    from mu.core.workers import WHOLE, Shard, beside, devices_of

    show_log()
    devices = devices_of(device) if shard == AUTO else []
    part = Shard.parse(shard) if shard and shard != AUTO else WHOLE
    if bool(prompt) == bool(prompts):
        raise ConfigError(
            "no prompts: pass --prompt TEXT, or --prompts FILE"
            if not prompt
            else "pass --prompt or --prompts, not both"
        )
    if factor is not None and gate is not GateChoice.facilitated_transport:
        raise ConfigError("--factor belongs to --gate facilitated_transport")
    if factor is not None and not math.isfinite(factor):
        raise ConfigError(f"--factor must be a number, not {factor}")
    if edit and bank:
        raise ConfigError("pass --edit or --bank, not both: `mu bank add` adds an edit to the bank")
    if column and not prompts:
        raise ConfigError("--column belongs to --prompts FILE")
    pixels = height_width(size) if size else None
    cases = _cases(prompt, prompts, column, seed)
    check_places(model, edit or (), bank)
    from mu.diffusion.image_folder import existing, part_of

    _check_list(out, prompts, overwrite)
    rows = _rows(cases, n, guidance, pixels)
    existing(rows, out, resume=resume, overwrite=overwrite)
    asked = Asked(
        cases, rows, out, resume, overwrite, model, tuple(edit or ()), bank, strength or None, _gate(gate, factor),
        {"steps": steps, "guidance": 7.5 if guidance is None else guidance, "negative": negative, "size": pixels},
        {"precision": precision}, {"clip_skip": clip_skip, "prediction_type": prediction_type}, compile,
    )  # fmt: skip
    if len(devices) > 1:
        shards = [Shard(k + 1, len(devices)) for k in range(len(devices))]
        parts = {
            f"shard {each.k} of {each.n}, on {of}": (asked, of, each)
            for each, of in zip(shards[1:], devices[1:], strict=True)
        }
        with beside(make, parts):
            make(asked, devices[0], shards[0])
    make(asked, devices[0] if devices else device, part)
    if part != WHOLE:
        print(part_of(out, part.k, part.n))
        log.info("after all %d shards, the same command without --shard collects them", part.n)
    else:
        print(out)


@dataclass(frozen=True)
class Asked:
    """What one call asks for: a process that makes a part of it gets it whole."""

    cases: list[PromptRow]
    rows: list[ImageRow]
    out: Path
    resume: bool
    overwrite: bool
    model: str | None
    edits: tuple[str, ...]
    bank: Path | None
    strength: list[float] | None
    gate: Gate | None
    sampling: Mapping[str, Any]
    loaded: Mapping[str, Any]
    noted: Mapping[str, Any]
    """Options of loading that are the edits' own, if they are None here."""
    compile: bool


def make(asked: Asked, device: str | None, part: Shard) -> None:
    """Make the images of ``part`` in a folder of its own, and those of the whole in the one that was asked for."""
    from mu.core.lock import locked
    from mu.core.progress import progress_bar
    from mu.core.records import Prompt
    from mu.core.run import RunDirectory
    from mu.core.workers import WHOLE
    from mu.diffusion.image_folder import part_of, recipe_of, write_images

    whole, rows = part == WHOLE, part.of(asked.rows)
    folder = asked.out if whole else part_of(asked.out, part.k, part.n)
    loaded = {"device": device, **asked.loaded}
    painter, put_on = _opened(asked.edits, asked.bank, asked.model, loaded, **asked.noted)
    compiling(painter, asked.compile)
    recipe = recipe_of(put_on, asked.strength, asked.gate)
    with locked(folder), put_on.applied(asked.strength, asked.gate), progress_bar("images", len(rows)) as advance:
        write_images(
            painter, rows, folder, resume=asked.resume, overwrite=asked.overwrite, recipe=recipe,
            whole=None if whole else asked.out, progress=lambda done, _: advance(done, ""), **asked.sampling,
        )  # fmt: skip
        if whole:
            RunDirectory(folder).write_prompts(
                [Prompt(case_number=c.case_number, prompt=c.prompt, seed=c.evaluation_seed) for c in asked.cases]
            )


def _check_list(out: Path, given: Path | None, overwrite: bool) -> None:
    """Raise `OutputError` if ``out`` has a list of prompts that this command did not write, or the ``given`` one."""
    from mu.core.files import check_writing
    from mu.core.run import RunDirectory
    from mu.diffusion.image_folder import RECIPE, noted

    written = RunDirectory(out).prompts
    if given and given.resolve() == written.resolve():
        raise OutputError(f"{given} lies where the list of the images is written: choose another --out")
    check_writing(written)
    foreign = [file for file in (written, out / RECIPE) if file.exists()]
    if foreign and not overwrite and "pictures" not in noted(out):
        raise OutputError(f"{foreign[0]} was not written by mu generate: choose another --out, or pass --overwrite")


def _cases(prompt: list[str] | None, file: Path | None, columns: list[str] | None, seed: int) -> list[PromptRow]:
    """Return the prompts, each with the seed of its first image."""
    from mu.data.columns import columns_given
    from mu.data.prompts import PromptRow, read_prompts, seeded

    if not file:
        return [PromptRow(text, k, seed) for k, text in enumerate(prompt or ())]
    return seeded(read_prompts(file, columns_given(columns or ())), seed, file)


def _rows(cases: Sequence[PromptRow], n: int, guidance: float | None, size: tuple[int, int] | None) -> list[ImageRow]:
    """Return ``n`` rows per case, with consecutive seeds. Its own guidance and size apply if these are None."""
    from mu.core.config import MOST
    from mu.diffusion.image_folder import ImageRow

    if len(cases) * n > MOST:
        raise ConfigError(f"{len(cases)} prompts with {n} images each are more than {MOST:,} images: lower --n")

    for case in cases:
        seed = cast("int", case.evaluation_seed)
        check_last_seed(seed, n, f"seed {seed} of prompt {case.case_number}")
    return [
        ImageRow(
            f"{case.case_number}_{k}.png",
            case.prompt,
            cast("int", case.evaluation_seed) + k,
            case.evaluation_guidance if guidance is None else None,
            (case.height, case.width) if size is None else (None, None),
        )
        for case in cases
        for k in range(n)
    ]


def _opened(
    edits: Sequence[str], bank: Path | None, model: str | None, loaded: Mapping[str, Any], **noted: Any
) -> tuple[DiffusionModel, Bank]:
    """Load the model, and a bank with the edits or with ``bank``'s.

    Options in ``noted`` that are None take the edits' values.
    """
    from mu.edits.bank import Bank
    from mu.edits.bank_folder import BankFolder
    from mu.edits.files import open_edit
    from mu.models import load_diffusion
    from mu.models.load_options import base_of, loading

    opened = [open_edit(each) for each in edits]
    kept = BankFolder(bank) if bank else None
    found = [kept.read()] if kept else [each.info for each in opened]
    name = base_of(model, found)
    painter = load_diffusion(name, **loaded, **loading(name, found, **noted))
    return painter, kept.open(painter) if kept else Bank(painter, opened)


def _gate(choice: GateChoice, factor: float | None) -> Gate | None:
    """Return the gate that replaces the edits' own; None keeps theirs."""
    from mu.edits.gates import FacilitatedTransport, FixedStrength

    match choice:
        case GateChoice.file:
            return None
        case GateChoice.none:
            return FixedStrength()
        case GateChoice.facilitated_transport:
            return FacilitatedTransport(1.0 if factor is None else factor)
