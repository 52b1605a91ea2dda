"""The folder of a world's models, as `mu canvas train` writes it, and the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mu.core.errors import DataError, ModelError, titled
from mu.core.records import read_record
from mu.data.canvas.grammar import sibling
from mu.data.canvas.world import CANVAS, World
from mu.models.canvas.architecture import Sizes
from mu.models.places import EMBEDDED

RECIPE = "world.json"
"""What a sibling is and how it was made, in its folder."""
DIFFUSION, JUDGE = "diffusion", "judge"


class WorldFolder(NamedTuple):
    """A world, the sizes of its models, and the folder of the judge that was trained on its rendered images."""

    world: World
    sizes: Sizes
    judge: Path


def world_of(model: str) -> WorldFolder:
    """The world of the diffusion model ``model``: canvas, or the folder ``diffusion`` of a sibling.

    Raises `ModelError` for another model, and `DataError` if the folder was made by another version of the grammar.
    """
    if model == "canvas":
        return WorldFolder(CANVAS, Sizes(), EMBEDDED["canvas-judge"])
    home = Path(model).parent
    if not (home / RECIPE).is_file():
        raise ModelError(
            f"{titled(model)} is of no known world: name canvas, or the folder {DIFFUSION} in what "
            "`mu canvas train --world SEED` wrote"
        )
    recipe = read_record(home / RECIPE, dict[str, Any])
    try:
        world, sizes = sibling(recipe["world"]), Sizes(**{**recipe["sizes"], "unet": tuple(recipe["sizes"]["unet"])})
        same = [*world.styles, *world.objects] == [*recipe["styles"], *recipe["objects"]]
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise DataError(f"{home / RECIPE} names no world that this version of mu draws: train the world again")
    return WorldFolder(world, sizes, home / JUDGE)
