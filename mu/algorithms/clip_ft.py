"""Fine-tuning of a CLIP: continue training without the concept, so that the model may forget it."""

from __future__ import annotations

from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.data.clip_sets import RetainSet
from mu.edits.weights import WeightEdit
from mu.training.clip_method import CANVAS_SETS, ClipErasure, TrainedConfig


class ClipFineTuningConfig(TrainedConfig):
    """All settings of fine-tuning. The concepts only name the edit: no forget set is read."""

    data: RetainSet = RetainSet()
    """Source of the pairs. The published comparison does not exclude the concept's own pairs."""
    output_dir: str = "outputs/clip-ft"
    """The run folder."""


PRESETS: dict[str, ClipFineTuningConfig] = {
    "clip": ClipFineTuningConfig(),
    "canvas-clip": ClipFineTuningConfig.parse(
        {
            "model": "canvas-clip",
            "data": {name: CANVAS_SETS[name] for name in ("retain", "n_retain")},
            "train": {"epochs": 2, "lr": 1e-4},
        }
    ),
}


class ClipFineTuning(ClipErasure):
    """Fine-tuning of a CLIP on the retain pairs: the weakest form of unlearning.

    Minimise CLIP's symmetric contrastive loss on the retain pairs, in shuffled batches. This is the control of the
    comparison: a method that forgets no more than this one does not forget.

    @inproceedings{warnecke2023machine,
      title     = {Machine Unlearning of Features and Labels},
      author    = {Warnecke, Alexander and Pirch, Lukas and Wressnegger, Christian and Rieck, Konrad},
      booktitle = {Network and Distributed System Security Symposium (NDSS)},
      year      = {2023}
    }
    """

    name = "clip-ft"
    config_class = ClipFineTuningConfig
    presets = PRESETS
    config: ClipFineTuningConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        return self.edit(self.train({"retain": self.retain_pairs()}, run, log))
