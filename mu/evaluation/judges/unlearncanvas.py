"""The two published classifiers of UnlearnCanvas: ViT-L/16 of timm, with 51 styles or 20 objects.

The file holds timm's names under ``model_state_dict``. Images are resized to 224 x 224 and normalised with mean and
standard deviation 0.5, as in the authors' script.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mu.core.errors import ModelError
from mu.data.unlearncanvas import OBJECTS, STYLES
from mu.evaluation.judges.classifier import ClassifierJudge
from mu.models.formats.checkpoint import read_state_dict
from mu.models.formats.timm_vit import vit
from mu.models.judge import Judge as Classifier

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
