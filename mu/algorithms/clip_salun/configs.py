"""Settings of SalUn on a CLIP, its paper and its presets. Does not import torch."""

from __future__ import annotations

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.training.clip_config import CANVAS_SETS, AlternatingConfig, ClipMethod


class ClipSalUnConfig(AlternatingConfig):
    """All settings of SalUn on a CLIP. Defaults: the published settings for a ViT-B/32."""

    share: float = Field(0.5, gt=0, le=1)
    """Share of all weights that the gradients may change."""
    compat: bool = False
    """Choose the weights as the released program does, by the mean of the batches' mean gradients, in which a shorter
    last batch counts as much as a full one. By default every pair counts the same."""
    output_dir: str = "outputs/clip-salun"
    """The run folder."""


class ClipSalUnMethod(ClipMethod):
    """Saliency unlearning: alternating ascent and fine-tuning, with gradients masked to half of the weights.

    @inproceedings{fan2024salun,
      title     = {{SalUn}: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
                   Image Classification and Generation},
      author    = {Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia},
      booktitle = {International Conference on Learning Representations (ICLR)},
      year      = {2024}
    }
    """

    name = "clip-salun"
    home = "mu.algorithms.clip_salun.algorithm:ClipSalUn"
    config_class = ClipSalUnConfig
    presets = Presets(
        ClipSalUnConfig,
        Preset("clip", "any concept of a ViT-B/32: the published settings"),
        Preset(
            "canvas-clip",
            "styles, objects and people of the embedded CLIP",
            {"model": "canvas-clip", "data": CANVAS_SETS, "train": {"epochs": 2, "lr": 2e-4}},
        ),
    )
