"""The two published classifiers of UnlearnCanvas: ViT-L/16 of timm, with 51 styles or 20 objects.

The file holds timm's names under ``model_state_dict``. Images are resized to 224 x 224 and normalised with mean and
standard deviation 0.5, as in the authors' script.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mu.core.errors import ModelError
from mu.evaluation.judges.classifier import ClassifierJudge
from mu.models.formats.checkpoint import read_state_dict
from mu.models.formats.timm_vit import vit
from mu.models.judge import Judge as Classifier

STYLES = tuple(
    """
    Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon
    Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield
    Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel
    Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring
    Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter
    """.split()
)
"""The 51 styles in the order of the classifier's outputs."""
OBJECTS = tuple(
    """
    Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches
    Sea Statues Towers Trees Waterfalls
    """.split()
)
"""The 20 objects in the order of the classifier's outputs."""
HEADS = {len(STYLES): ("style", STYLES), len(OBJECTS): ("object", OBJECTS)}


def open_unlearncanvas(place: str, device: torch.device | str) -> ClassifierJudge:
    """The classifier in the file ``place``: ``style50.pth`` or ``style50_cls.pth``, or one of the same layout.

    Raises `ModelError` for a file of another layout, and names the first tensor that is unknown or missing.
    """
    tensors = read_state_dict(Path(place))
    try:
        head, classes = HEADS[len(tensors["head.weight"])]
    except KeyError:
        heads = " or ".join(str(number) for number in HEADS)
        raise ModelError(
            f"{place} is no classifier of UnlearnCanvas: a ViT of timm with {heads} classes is needed, with head.weight"
        ) from None
    return ClassifierJudge(
        Classifier(*vit(tensors, [f"{head}/{name}" for name in classes], place), device), f"unlearncanvas:{place}"
    )
