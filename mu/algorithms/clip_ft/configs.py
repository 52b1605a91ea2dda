"""Settings of fine-tuning, its paper and its presets. Does not import torch."""

from __future__ import annotations

from mu.core.algorithm import Preset, Presets
from mu.data.clip_sets import RetainSet
from mu.training.clip_config import CANVAS_SETS, ClipMethod, TrainedConfig


class ClipFineTuningConfig(TrainedConfig):
    """All settings of fine-tuning. The concepts only name the edit: no forget set is read."""

    data: RetainSet = RetainSet()
    """Source of the pairs. The published comparison does not exclude the concept's own pairs."""
    output_dir: str = "outputs/clip-ft"
    """The run folder."""


class ClipFineTuningMethod(ClipMethod):
    """Fine-tuning of a CLIP on the retain pairs: the weakest form of unlearning.

    @inproceedings{warnecke2023machine,
      title     = {Machine Unlearning of Features and Labels},
      author    = {Warnecke, Alexander and Pirch, Lukas and Wressnegger, Christian and Rieck, Konrad},
      booktitle = {Network and Distributed System Security Symposium (NDSS)},
      year      = {2023}
    }
    """

    name = "clip-ft"
    home = "mu.algorithms.clip_ft.algorithm:ClipFineTuning"
    config_class = ClipFineTuningConfig
    presets = Presets(
        ClipFineTuningConfig,
        Preset("clip", "any concept of a ViT-B/32: the published settings"),
        Preset(
            "canvas-clip",
            "styles, objects and people of the embedded CLIP",
            {
                "model": "canvas-clip",
                "data": {name: CANVAS_SETS[name] for name in ("retain", "n_retain")},
                "train": {"epochs": 2, "lr": 1e-4},
            },
        ),
    )
