"""Settings of gradient ascent, its paper and its presets. Does not import torch."""

from __future__ import annotations

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.core.config import MOST
from mu.data.clip_sets import ForgetSet
from mu.models.objectives import Objective
from mu.training.clip_config import CANVAS_SETS, ClipMethod, TrainedConfig


class ClipGradientAscentConfig(TrainedConfig):
    """All settings of gradient ascent. Defaults: the published settings for a ViT-B/32."""

    data: ForgetSet = ForgetSet()
    """Source of the pairs."""
    forget_loss: Objective = "cosine"
    """The loss to maximise: the mean of 1 - cos, or (``ga_o``) CLIP's contrastive loss."""
    n_retain: int = Field(8000, ge=2, le=MOST)
    """Length of the learning rate schedule: the steps of fine-tuning on this many pairs. No retain pair is read."""
    output_dir: str = "outputs/clip-ga"
    """The run folder."""


class ClipGradientAscentMethod(ClipMethod):
    """Gradient ascent on the concept's pairs alone.

    @inproceedings{thudi2022unrolling,
      title     = {Unrolling {SGD}: Understanding Factors Influencing Machine Unlearning},
      author    = {Thudi, Anvith and Deza, Gabriel and Chandrasekaran, Varun and Papernot, Nicolas},
      booktitle = {IEEE European Symposium on Security and Privacy (EuroS\\&P)},
      year      = {2022}
    }
    """

    name = "clip-ga"
    home = "mu.algorithms.clip_ga.algorithm:ClipGradientAscent"
    config_class = ClipGradientAscentConfig
    presets = Presets(
        ClipGradientAscentConfig,
        Preset("clip", "any concept of a ViT-B/32: the published settings"),
        Preset(
            "canvas-clip",
            "styles, objects and people of the embedded CLIP",
            {
                "model": "canvas-clip",
                "data": {name: CANVAS_SETS[name] for name in ("forget", "n_forget")},
                "n_retain": CANVAS_SETS["n_retain"],
                "train": {"epochs": 2, "lr": 5e-5},
            },
        ),
    )
