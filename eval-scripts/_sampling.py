"""Code that `generate-data.py` and `generate-images.py` share: flags, model names, and the sampler."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mu.core.compute import there
from mu.core.errors import ModelError, nearest
from mu.core.program import Parser
from mu.core.progress import progress_bar

BASES = {
    "SD-v1-4": "CompVis/stable-diffusion-v1-4",
    "SD-V2": "stabilityai/stable-diffusion-2-base",
    "SD-V2-1": "stabilityai/stable-diffusion-2-1-base",
    "canvas": "canvas",
}
ROOTS = (Path("models"), Path("stable-diffusion"), Path("."))
"""The folders that are searched for a model's folder."""


def flags(help_: str, example: str, *, samples: int) -> argparse.ArgumentParser:
    parser = Parser(description=help_, epilog=f"example: {example}")
    parser.add_argument("--save_path", type=Path, required=True, help="images go to <save_path>/<model_name>/")
    parser.add_argument(
        "--base", help="the base model instead of Stable Diffusion 1.4: canvas, a folder, a file, a hub id"
    )
    parser.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    parser.add_argument("--guidance_scale", type=float, default=7.5)
    parser.add_argument(
        "--image_size", type=int, help="pixels (default: the model's training size, 512 for Stable Diffusion 1.4)"
    )
    parser.add_argument("--from_case", type=int, default=0, help="skip cases with smaller numbers")
    parser.add_argument("--num_samples", type=int, default=samples, help=f"images per case (default: {samples})")
    parser.add_argument("--ddim_steps", type=int, default=100, help="denoising steps of the LMS sampler (default: 100)")
    parser.add_argument("--resume", action="store_true", help="generate the missing images")
    parser.add_argument("--overwrite", action="store_true", help="replace existing images")
    return parser


def opened(name: str, base: str | None, device: str) -> tuple[Any, list[Any]]:
    """Load the base model and the edits of ``name``: none for a base, else the run's or bank's in ``models/<name>/``.

    The base gets the clip skip and prediction type that the edits were found with. A file ``models/<name>/<name with
    "diffusers" for "compvis">.pt`` is a UNet's state dict and replaces the base's UNet. Raises `ModelError` for any
    other name, so that images of an unedited model are never mistaken for those of an edited one.
    """
    from mu.edits.bank_folder import BankFolder
    from mu.edits.files import open_edit
    from mu.models import load_diffusion
    from mu.models.formats.checkpoint import read_state_dict
    from mu.models.load_options import loading

    def loaded(name: str, found: Any) -> Any:
        return load_diffusion(name, device=device, **loading(name, [found], clip_skip=None, prediction_type=None))

    if name in BASES:
        return load_diffusion(base or BASES[name], device=device), []
    for folder in (root / name for root in ROOTS):
        if (folder / "bank.json").exists():
            bank = BankFolder(folder)
            model = loaded(base or bank.read().base, bank.read())
            return model, bank.open(model).on
        if (folder / "edit.safetensors").exists():
            edit = open_edit(folder)
            return loaded(base or edit.info.base or BASES["SD-v1-4"], edit.info), [edit]
        weights = _weights(folder)
        if weights.exists():
            model = load_diffusion(base or BASES["SD-v1-4"], device=device)
            try:
                model.unet.load_state_dict(read_state_dict(weights))
            except RuntimeError as error:
                line = " ".join(str(error).split())[:200]
                raise ModelError(f"{weights} does not fit this UNet ({line}): name its base with --base") from None
            return model, []
    there = [path.name for root in ROOTS[:2] if root.is_dir() for path in root.iterdir() if _is_model(path)]
    places = ", ".join(f"{root}/" for root in ROOTS[:2])
    raise ModelError(
        f"no model {name!r} in {places}, and it is not one of {', '.join(BASES)}.{nearest(name, [*BASES, *there])}"
    )


def _weights(folder: Path) -> Path:
    return folder / f"{folder.name.replace('compvis', 'diffusers')}.pt"


def _is_model(folder: Path) -> bool:
    """Whether `opened` opens it: a folder of runs, or what a failed program left, is no model."""
    return any(path.exists() for path in (folder / "bank.json", folder / "edit.safetensors", _weights(folder)))


def sample_seed(seed: int, k: int) -> int:
    """Return the seed of a case's ``k``-th image. The first has the case's own.

    Multiples of 2^32 / phi are spread out modulo 2^32, the range of a seed. The first 1000 images of cases
    whose seeds are less than a million apart all have different seeds.
    """
    return (seed + k * 2654435769) % 2**32 if k else seed


def paint(model: Any, edits: Sequence[Any], rows: Sequence[Any], folder: Path, options: argparse.Namespace) -> None:
    """Generate ``rows`` in ``folder`` with the LMS sampler, like the released program.

    Images are added only to those of the same weights, edits, sampler, steps and guidance: see ``recipe.json`` there.
    """
    from mu.diffusion.image_folder import recipe_of, write_images
    from mu.edits.bank import Bank

    size = (options.image_size, options.image_size) if options.image_size else None
    bank = Bank(model, edits)
    with lms(model):
        recipe = recipe_of(bank)
        with bank.applied(), progress_bar("images", len(rows)) as advance:
            write_images(
                model, rows, folder, steps=options.ddim_steps, guidance=options.guidance_scale, size=size,
                resume=options.resume, overwrite=options.overwrite, progress=lambda done, _: advance(done, ""),
                recipe=recipe,
            )  # fmt: skip


@contextmanager
def lms(model: Any):
    """Make ``model`` sample by the released program's LMS inside the block: all settings are the class's own.

    The noise schedule and the kind of prediction are the model's. For Stable Diffusion these are the program's
    constants; another model could not be sampled with them.
    """
    from mu.models.diffusion.schedulers import training_scheduler

    own, released = model.pipeline.scheduler, training_scheduler("lms")
    noise = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    learned = {name: own.config[name] for name in noise if name in own.config}
    model.pipeline.scheduler = type(released).from_config({**released.config, **learned})
    try:
        yield
    finally:
        model.pipeline.scheduler = own
