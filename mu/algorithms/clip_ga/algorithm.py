"""Gradient ascent on a CLIP: drive the features of the concept's images and captions apart."""

from __future__ import annotations

from mu.algorithms.clip_ga.configs import ClipGradientAscentConfig, ClipGradientAscentMethod
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.training.clip_method import ClipErasure


class ClipGradientAscent(ClipGradientAscentMethod, ClipErasure):
    """The training of gradient ascent.

    Maximise L_f = mean of 1 - cos(v_i, t_i), batch after batch in the set's order. No term retains other classes: how
    much of them is lost depends only on the learning rate.
    """

    config: ClipGradientAscentConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        return self.edit(self.train({"forget": self.forget_pairs()}, run, log, schedule_pairs=self.config.n_retain))
