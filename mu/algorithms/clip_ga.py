"""Gradient ascent on a CLIP: drive the features of the concept's images and captions apart."""

from __future__ import annotations

from pydantic import Field

from mu.core.config import MOST
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.data.clip_sets import ForgetSet
from mu.edits.weights import WeightEdit
from mu.models.contrastive import Objective
from mu.training.clip_method import CANVAS_SETS, ClipErasure, TrainedConfig


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


PRESETS: dict[str, ClipGradientAscentConfig] = {
    "clip": ClipGradientAscentConfig(),
    "canvas-clip": ClipGradientAscentConfig.parse(
        {
            "model": "canvas-clip",
            "data": {name: CANVAS_SETS[name] for name in ("forget", "n_forget")},
            "n_retain": CANVAS_SETS["n_retain"],
            "train": {"epochs": 2, "lr": 5e-5},
        }
    ),
}


class ClipGradientAscent(ClipErasure):
    """Gradient ascent on the concept's pairs alone.

    Maximise L_f = mean of 1 - cos(v_i, t_i), batch after batch in the set's order. No term retains other classes: how
    much of them is lost depends only on the learning rate.

    @inproceedings{thudi2022unrolling,
      title     = {Unrolling {SGD}: Understanding Factors Influencing Machine Unlearning},
      author    = {Thudi, Anvith and Deza, Gabriel and Chandrasekaran, Varun and Papernot, Nicolas},
      booktitle = {IEEE European Symposium on Security and Privacy (EuroS\\&P)},
      year      = {2022}
    }
    """

    name = "clip-ga"
    config_class = ClipGradientAscentConfig
    presets = PRESETS
    config: ClipGradientAscentConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        return self.edit(self.train({"forget": self.forget_pairs()}, run, log, schedule_pairs=self.config.n_retain))
