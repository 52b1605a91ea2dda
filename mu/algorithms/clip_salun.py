"""SalUn on a CLIP: forget and repair in turns, in the weights that the concept's gradient points at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from mu.core.errors import EditError
from mu.core.loop import Log
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models.contrastive import Captioned, mean_gradients
from mu.training.clip_method import CANVAS_SETS, AlternatingConfig, ClipErasure
from mu.training.tuning import tuned


class ClipSalUnConfig(AlternatingConfig):
    """All settings of SalUn on a CLIP. Without a preset they are the published ones for a ViT-B/32."""

    share: float = Field(0.5, gt=0, le=1)
    """The share of all weights that the gradients may move."""
    output_dir: str = "outputs/clip-salun"
    """The run's folder."""


PRESETS: dict[str, ClipSalUnConfig] = {
    "clip": ClipSalUnConfig(),
    "canvas-clip": ClipSalUnConfig.parse({"model": "canvas-clip", "data": CANVAS_SETS, "train": {"epochs": 2, "lr": 2e-4}}),
}


def salient(gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Which numbers are among the ``share`` of all with the largest |g|: one ranking over all tensors, by one k-th value.

    Equals of the k-th are all in; a number without any gradient never is. A sort would fill up with arbitrary ones, such as
    embeddings of tokens that occur in no caption. `EditError` where nothing has a gradient.
    """
    sizes = torch.cat([g.detach().abs().flatten() for g in gradients.values()])
    k = max(1, int(share * len(sizes)))
    level = sizes.kthvalue(len(sizes) - k + 1).values
    if not sizes.any():
        raise EditError("the forget pairs give no gradient: are their captions and pictures those of the concept?")
    return {name: (g.abs() >= level) & (g != 0) for name, g in gradients.items()}


class ClipSalUn(ClipErasure):
    """Saliency unlearning: ascent and fine-tuning in turns, with gradients masked to half of the weights.

    The mask is 1 for the 50 % of all weights, embeddings included, whose |gradient of L_f| at the untouched weights is largest.
    It is ``clip-gaft`` otherwise. The mask multiplies gradients alone, as in the released code of the comparison: weight
    decay (lr * 0.1 a step) moves the other half. SalUn itself relabels where this ascends.

    @inproceedings{fan2024salun,
      title     = {{SalUn}: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and Generation},
      author    = {Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia},
      booktitle = {International Conference on Learning Representations (ICLR)},
      year      = {2024}
    }
    """

    name = "clip-salun"
    config_class = ClipSalUnConfig
    presets = PRESETS
    config: ClipSalUnConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        forget, retain = self.forget_pairs(), self.retain_pairs()
        return self.edit(self.train({"forget": forget, "retain": retain}, run, log, mask=self.mask(forget)))

    def mask(self, forget: Sequence[Captioned]) -> dict[str, Tensor]:
        B, parameters = self.config.batch_size, self.parameters()
        with tuned(parameters), progress_bar("saliency", len(forget)) as advance:
            g_f = mean_gradients(
                self.model, forget, parameters, self.config.forget_loss, block=B, chunk=B, progress=lambda done, _: advance(done, "")
            )  # fmt: skip
        return salient(g_f, self.config.share)
