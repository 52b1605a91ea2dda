"""Gradient ascent on a CLIP: images and captions of the concept are driven apart."""

from __future__ import annotations

from pydantic import Field

from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.data.clip_sets import ForgetSet
from mu.edits.weights import WeightEdit
from mu.models.contrastive import Objective
from mu.training.clip_method import CANVAS_SETS, ClipErasure, TrainedConfig


class ClipGradientAscentConfig(TrainedConfig):
    """All settings of gradient ascent. Without a preset they are the published ones for a ViT-B/32."""

    data: ForgetSet = ForgetSet()
    """Where pairs come from."""
    forget_loss: Objective = "cosine"
    """What is maximised: the mean of 1 - cos, or (``ga_o``) CLIP's contrastive loss."""
    n_retain: int = Field(8000, ge=2)
    """The learning rate falls over as many steps as fine-tuning on so many pairs would take; none are read."""
    output_dir: str = "outputs/clip-ga"
    """The run's folder."""


PRESETS: dict[str, ClipGradientAscentConfig] = {
    "clip": ClipGradientAscentConfig(),
    "canvas-clip": ClipGradientAscentConfig.parse({
        "model": "canvas-clip", "data": {name: CANVAS_SETS[name] for name in ("forget", "n_forget")},
        "n_retain": CANVAS_SETS["n_retain"], "train": {"epochs": 2, "lr": 5e-5},
    }),
}  # fmt: skip


class ClipGradientAscent(ClipErasure):
    """Gradient ascent on the concept's pairs alone.

    Maximise L_f = mean of 1 - cos(v_i, t_i), batch after batch in the set's order. Nothing holds the rest: how much of it
    goes too depends on the learning rate and on nothing else.

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
