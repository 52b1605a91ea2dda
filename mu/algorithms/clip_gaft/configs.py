"""Settings of GAFT, its paper and its presets. Does not import torch."""

from __future__ import annotations

from mu.core.algorithm import Preset, Presets
from mu.training.clip_config import CANVAS_SETS, AlternatingConfig, ClipMethod


class ClipGAFTConfig(AlternatingConfig):
    """All settings of GAFT. Defaults: the published settings for a ViT-B/32."""

    output_dir: str = "outputs/clip-gaft"
    """The run folder."""


class ClipGAFTMethod(ClipMethod):
    """Gradient ascent on the concept, then fine-tuning on the retain pairs, in every epoch.

    @inproceedings{cai2025slug,
      title     = {Targeted Unlearning with Single Layer Unlearning Gradient},
      author    = {Cai, Zikui and Tan, Yaoteng and Asif, M. Salman},
      booktitle = {International Conference on Machine Learning (ICML)},
      year      = {2025}
    }
    """

    name = "clip-gaft"
    home = "mu.algorithms.clip_gaft.algorithm:ClipGAFT"
    config_class = ClipGAFTConfig
    presets = Presets(
        ClipGAFTConfig,
        Preset("clip", "any concept of a ViT-B/32: the published settings"),
        Preset(
            "canvas-clip",
            "styles, objects and people of the embedded CLIP",
            {"model": "canvas-clip", "data": CANVAS_SETS, "train": {"epochs": 2, "lr": 2e-4}},
        ),
    )
