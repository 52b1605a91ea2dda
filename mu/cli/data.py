"""``mu data``: prepare training data."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mu.cli.options import Device, Json, Overwrite, Precision, check_last_seed
from mu.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from mu.data.pairs import Pair

app = typer.Typer(name="data", help="Prepare data for the methods that need images.", no_args_is_help=False)


@app.command()
def forget_set(
    name: Annotated[str, typer.Option(help="The concept, with spaces or underscores.")],
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Web shards to search: a folder, tar files, {00000..00010}, * and commas. Quote it."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Generate the images instead: canvas, a hub id, a diffusers folder, or a model file."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="With --model: a prompt; several take turns. Default: the name.")
    ] = None,
    n_imgs: Annotated[int, typer.Option(min=1, max=1_000_000, help="The largest number of images.")] = 500,
    out: Annotated[Path, typer.Option(help="The folder for NAME.tar and, with --model, for the images.")] = Path(
        "data/tar_files"
    ),
    seed: Annotated[int, typer.Option(help="With --model: seed of the first image; each next image adds one.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="With --model: denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="With --model: guidance scale.")] = 7.5,
    overwrite: Overwrite = False,
    device: Device = None,
    precision: Precision = "float32",
    as_json: Json = False,
) -> None:
    """Collect the images and captions of one concept in a tar file, from web shards or from a model.

    Example: mu data forget-set --name "Elon Musk" --shards 'data/laion/laion400m/{00000..00010}.tar' --n-imgs 500
    """
    from mu.cli.output import print_json
    from mu.core.concept import Concept
    from mu.core.program import show_log
    from mu.core.progress import progress_bar
    from mu.data.forget_set import forget_set_path, make_forget_set, pack_forget_set
    from mu.data.shards import find_shards

    show_log()
    if bool(shards) == bool(model):
        raise ConfigError("pass --shards PATTERN or --model MODEL" + (", not both" if shards else ""))
    if prompt and not model:
        raise ConfigError("--prompt belongs to --model")
    if model:
        check_last_seed(seed, n_imgs, f"--seed {seed}")
    if shards:
        files = find_shards(shards)
        with progress_bar("shards", len(files)) as advance:
            made = make_forget_set(
                name, files, out, n_imgs, overwrite=overwrite, progress=lambda done, _: advance(done, "")
            )
    else:
        how = {
            "model": model,
            "prompts": prompt or [str(Concept.named(name))],
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
        }
        pairs = _painted(forget_set_path(name, out), how | {"precision": precision}, n_imgs, device, overwrite)
        made = pack_forget_set(name, pairs, out, overwrite=overwrite)
    if as_json:
        print_json(made.to_json())
    else:
        print(made.path)


def _painted(tar: Path, recipe: dict[str, Any], n: int, device: str | None, overwrite: bool) -> list[Pair]:
    """Generate ``n`` images in the folder named like ``tar``. Images that ``recipe`` already made there are kept.

    The recipe is completed by what the model's images follow from, so that those of other weights are not kept."""
    from mu.core.files import check_writing
    from mu.core.lock import locked
    from mu.core.progress import progress_bar
    from mu.data.pairs import Pair
    from mu.data.shards import Extent
    from mu.diffusion.image_folder import RECIPE, ImageRow, claim, claimed_for, recipe_of, write_images
    from mu.diffusion.sampling import check_request
    from mu.edits.bank import Bank
    from mu.models import load_diffusion

    folder = tar.with_suffix("")
    check_writing(tar)
    if folder.exists() and any(folder.iterdir()) and not (folder / RECIPE).exists():
        raise OutputError(f"{folder} holds other files: choose another --out")
    painter = load_diffusion(recipe["model"], device=device, precision=recipe["precision"])
    of_model = recipe_of(Bank(painter))
    made_by = recipe | {key: of_model[key] for key in ("model", "precision")}
    if tar.exists() and not overwrite and claimed_for(folder) != made_by:
        raise OutputError(
            f"{tar} exists and was made with other options or weights: choose another --out, or pass --overwrite"
        )
    ends = (recipe["seed"], recipe["seed"] + n - 1)
    check_request(painter, recipe["prompts"], ends, steps=recipe["steps"], guidance=recipe["guidance"])
    prompts = itertools.islice(itertools.cycle(recipe["prompts"]), n)
    rows = [ImageRow(f"{k:05d}.png", text, recipe["seed"] + k) for k, text in enumerate(prompts)]
    with locked(folder), progress_bar("images", n) as advance:
        claim(folder, made_by)
        write_images(
            painter,
            rows,
            folder,
            steps=recipe["steps"],
            guidance=recipe["guidance"],
            resume=True,
            progress=lambda done, _: advance(done, ""),
        )
    return [Pair(row.name, row.prompt, Extent(folder / row.name), ".png") for row in rows]
