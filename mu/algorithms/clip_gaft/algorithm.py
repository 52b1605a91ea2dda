"""Alternating gradient ascent and fine-tuning of a CLIP: forget, then repair."""

from __future__ import annotations

from mu.algorithms.clip_gaft.configs import ClipGAFTConfig, ClipGAFTMethod
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.training.clip_method import ClipErasure


class ClipGAFT(ClipGAFTMethod, ClipErasure):
    """The training of GAFT.

    Each epoch is one full pass of ascent over the forget pairs, as in ``clip-ga``, then one full pass of descent over
    the retain pairs, as in ``clip-ft``. The passes are not interleaved. They share the moments of one AdamW.
    """

    config: ClipGAFTConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        return self.edit(self.train({"forget": self.forget_pairs(), "retain": self.retain_pairs()}, run, log))
