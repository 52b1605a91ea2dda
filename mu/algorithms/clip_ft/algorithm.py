"""Fine-tuning of a CLIP: continue training without the concept, so that the model may forget it."""

from __future__ import annotations

from mu.algorithms.clip_ft.configs import ClipFineTuningConfig, ClipFineTuningMethod
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.training.clip_method import ClipErasure


class ClipFineTuning(ClipFineTuningMethod, ClipErasure):
    """The control of the comparison.

    Minimise CLIP's symmetric contrastive loss on the retain pairs, in shuffled batches. This is the control of the
    comparison: a method that forgets no more than this one does not forget.
    """

    config: ClipFineTuningConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        return self.edit(self.train({"retain": self.retain_pairs()}, run, log))
