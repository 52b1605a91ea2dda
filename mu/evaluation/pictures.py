"""Pictures on disk: written in batches, atomically, and never made twice."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mu.core.errors import DataError, OutputError
from mu.core.files import atomic_path, write_json
from mu.core.run import RunDirectory
from mu.diffusion.sampling import generate_batches
from mu.edits.bank import Bank
from mu.models.diffusion import DiffusionModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PictureRow:
    """One picture to be made: its file's name, and what decides it."""

    name: str
    prompt: str
    seed: int
    guidance: float | None = None


def write_pictures(
    model: DiffusionModel, rows: Sequence[PictureRow], folder: Path, *, steps: int, guidance: float, negative: str = "",
    size: tuple[int, int] | None = None, resume: bool = False, overwrite: bool = False, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Make ``rows`` in ``folder``; the number of pictures made. With ``resume`` those that exist are kept and skipped.

    Raises `OutputError` where a picture exists and neither ``resume`` nor ``overwrite`` is on, before anything is made.
    """
    there = [] if overwrite else [row for row in rows if (folder / row.name).exists()]
    if there and not resume:
        raise OutputError(
            f"{folder / there[0].name} exists already: choose another folder, or pass --resume to make the missing ones, or --overwrite"
        )
    missing = [row for row in rows if row not in there]
    groups: dict[float, list[PictureRow]] = {}
    for row in missing:
        groups.setdefault(guidance if row.guidance is None else row.guidance, []).append(row)
    done, (height, width) = len(there), size or (None, None)
    for scale, group in groups.items():
        left = iter(group)
        prompts, seeds = [row.prompt for row in group], [row.seed for row in group]
        options: dict[str, Any] = {"steps": steps, "guidance": scale, "negative": negative, "height": height, "width": width}
        for batch in generate_batches(model, prompts, seeds, **options):
            for picture in batch:
                save_picture(picture, folder / next(left).name)
            done += len(batch)
            if progress:
                progress(done, len(rows))
    return len(missing)


def save_picture(picture: Tensor, path: Path) -> None:
    """(3, H, W) in 0..1 -> PNG."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    with atomic_path(path) as partial:
        partial.write_bytes(encoded.getvalue())


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """PNG files of one size -> (n, 3, H, W) in 0..1. Raises `DataError` for one that cannot be read."""
    pixels = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                pixels.append(np.asarray(picture.convert("RGB")))
        except OSError as error:
            raise DataError(f"picture {path} cannot be read ({error}): remove it and run again") from None
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def before_after(
    run: RunDirectory, model: DiffusionModel, bank: Bank, target_prompts: Sequence[str] | None = None,
    retain_prompts: Sequence[str] | None = None, seeds: Sequence[int] = (188, 288), *, steps: int = 20, guidance: float = 4.0,
) -> None:  # fmt: skip
    """The same prompts and seeds without and with the bank's edits: ``before/``, ``after/`` and ``prompts.json``.

    Without ``target_prompts`` the bank's concepts in a few phrasings; without ``retain_prompts`` the empty prompt and
    common ones.
    """
    concepts = [concept for edit in bank.on for concept in edit.info.concepts]
    targets = list(target_prompts or [phrase.format(c) for c in concepts for phrase in ("{}", "a picture of {}")])
    retained = list(
        retain_prompts if retain_prompts is not None else ("a picture", "a portrait of a person", "a house, a tree")
    )
    prompts = [(text, "target") for text in targets] + [(text, "retain") for text in retained]
    rows = [PictureRow(f"{k}_{i}.png", text, seed) for k, (text, _) in enumerate(prompts) for i, seed in enumerate(seeds)]
    for folder in (run.before, run.after):
        for stale in folder.glob("*.png"):
            stale.unlink()
    write_pictures(model, rows, run.before, steps=steps, guidance=guidance)
    with bank.applied():
        write_pictures(model, rows, run.after, steps=steps, guidance=guidance)
    entries = []
    for k, (text, role) in enumerate(prompts):
        gates = [round(float(g), 4) for g in bank.gates([text])[0]]
        entries.append({"case_number": k, "prompt": text, "seed": seeds[0], "role": role, "gate": gates})
    write_json(run.folder / "prompts.json", entries)


def claim(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Keep the pictures of ``folder`` only if they were made by the same ``recipe``, and note it there."""
    note = folder / "recipe.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != recipe:
        for stale in folder.glob("*.png"):
            stale.unlink()
    write_json(note, recipe)
