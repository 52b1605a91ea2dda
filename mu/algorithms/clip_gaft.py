"""Alternating gradient ascent and fine-tuning of a CLIP: forget, then repair."""

from __future__ import annotations

from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.training.clip_method import CANVAS_SETS, AlternatingConfig, ClipErasure


class ClipGAFTConfig(AlternatingConfig):
    """All settings of GAFT. Defaults: the published settings for a ViT-B/32."""

    output_dir: str = "outputs/clip-gaft"
    """The run folder."""


PRESETS: dict[str, ClipGAFTConfig] = {
    "clip": ClipGAFTConfig(),
    "canvas-clip": ClipGAFTConfig.parse(
        {"model": "canvas-clip", "data": CANVAS_SETS, "train": {"epochs": 2, "lr": 2e-4}}
    ),
}


class ClipGAFT(ClipErasure):
    """Gradient ascent on the concept, then fine-tuning on the retain pairs, in every epoch.

    Each epoch is one full pass of ascent over the forget pairs, as in ``clip-ga``, then one full pass of descent over
    the retain pairs, as in ``clip-ft``. The passes are not interleaved. They share the moments of one AdamW.

    @inproceedings{cai2025slug,
      title     = {Targeted Unlearning with Single Layer Unlearning Gradient},
      author    = {Cai, Zikui and Tan, Yaoteng and Asif, M. Salman},
      booktitle = {International Conference on Machine Learning (ICML)},
      year      = {2025}
    }
    """

    name = "clip-gaft"
    config_class = ClipGAFTConfig
    presets = PRESETS
    config: ClipGAFTConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        return self.edit(self.train({"forget": self.forget_pairs(), "retain": self.retain_pairs()}, run, log))
