"""Settings of SSD on a CLIP, its paper and its presets. Does not import torch."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from mu.core.algorithm import Preset, Presets
from mu.data.clip_sets import BothSets
from mu.models.objectives import Objective
from mu.training.clip_config import CANVAS_SETS, ClipErasureConfig, ClipMethod

CONSTANTS = tuple(0.1 + 4.9 / 9 * k for k in range(10))
"""The constants of the published comparison, one per epoch: evenly spaced from 0.1 to 5."""


class ClipSSDConfig(ClipErasureConfig):
    """All settings of SSD. Defaults: those of the first epoch of the published comparison, which is its best."""

    data: BothSets = BothSets()
    """Source of the pairs."""
    forget_loss: Objective = "cosine"
    """Loss whose squared gradients are the concept's importances: mean of 1 - cos, or (``ssd_o``) the contrastive
    loss."""
    selection: float = Field(10.0, gt=0)
    """alpha: dampen a weight if its importance to the concept is more than this many times its importance to the retain
    pairs. A lower value dampens more weights."""
    dampening: float = Field(0.1, gt=0)
    """lambda: the factor that is left of a dampened weight, in units of F_r / F_f. A lower value forgets more."""
    compat: bool = False
    """Dampen by each of 0.1, 0.64, ... 5 up to ``dampening`` in turn, as the released program does over its epochs. The
    factors multiply."""
    output_dir: str = "outputs/clip-ssd"
    """The run folder."""

    @model_validator(mode="after")
    def _has_a_first(self) -> Self:
        if self.compat and self.dampening < CONSTANTS[0]:
            raise ValueError(f"compat begins with {CONSTANTS[0]:g}: set dampening to at least that")
        return self


class ClipSSDMethod(ClipMethod):
    """Selective synaptic dampening: no training, two passes for importances, one multiplication.

    @inproceedings{foster2024fast,
      title     = {Fast Machine Unlearning without Retraining through Selective Synaptic Dampening},
      author    = {Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra},
      booktitle = {AAAI Conference on Artificial Intelligence},
      year      = {2024}
    }
    """

    name = "clip-ssd"
    home = "mu.algorithms.clip_ssd.algorithm:ClipSSD"
    config_class = ClipSSDConfig
    presets = Presets(
        ClipSSDConfig,
        Preset("clip", "any concept of a ViT-B/32: the first epoch of the published comparison"),
        Preset(
            "canvas-clip",
            "styles, objects and people of the embedded CLIP",
            {"model": "canvas-clip", "data": CANVAS_SETS, "forget_loss": "contrastive", "selection": 5.0},
        ),
    )
