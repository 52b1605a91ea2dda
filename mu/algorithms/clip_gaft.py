"""Gradient ascent and fine-tuning of a CLIP in turns: forget, then repair."""

from __future__ import annotations

from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.training.clip_method import CANVAS_SETS, AlternatingConfig, ClipErasure


class ClipGAFTConfig(AlternatingConfig):
    """All settings of GAFT. Without a preset they are the published ones for a ViT-B/32."""

    output_dir: str = "outputs/clip-gaft"
    """The run's folder."""


PRESETS: dict[str, ClipGAFTConfig] = {
    "clip": ClipGAFTConfig(),
    "canvas-clip": ClipGAFTConfig.parse({"model": "canvas-clip", "data": CANVAS_SETS, "train": {"epochs": 2, "lr": 2e-4}}),
}


class ClipGAFT(ClipErasure):
    """Gradient ascent on the concept, then fine-tuning on the rest, in every epoch.

    Each epoch is one whole pass of ascent over the forget pairs, as in ``clip-ga``, then one whole pass of descent over the
    retain pairs, as in ``clip-ft``; the passes are not interleaved, and share the moments of one AdamW.

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
