"""SalUn on a CLIP: alternate forgetting and repair, in the weights with the largest forget gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mu.algorithms.clip_salun.configs import ClipSalUnConfig, ClipSalUnMethod
from mu.core.errors import EditError
from mu.core.loop import Log
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models.contrastive import Captioned, mean_gradients, mean_of_batches
from mu.training.clip_method import ClipErasure
from mu.training.tuning import tuned


def salient(gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the ``share`` of all elements with the largest |g|, ranked over all tensors together by one k-th value.

    Ties with the k-th value are all included; an element with gradient 0 never is. A sort would add arbitrary elements,
    for example embeddings of tokens that occur in no caption. Raises `EditError` if all gradients are 0.
    """
    sizes = torch.cat([g.detach().abs().flatten() for g in gradients.values()])
    k = max(1, int(share * len(sizes)))
    level = sizes.kthvalue(len(sizes) - k + 1).values
    if not sizes.any():
        raise EditError("the forget pairs give no gradient: check that their captions and images show the concept")
    return {name: (g.abs() >= level) & (g != 0) for name, g in gradients.items()}


class ClipSalUn(ClipSalUnMethod, ClipErasure):
    """The training of SalUn.

    The mask is 1 for the 50 % of all weights, embeddings included, with the largest |gradient of L_f| at the base
    weights. Otherwise the method is ``clip-gaft``. The mask multiplies only gradients, as in the released code of the
    comparison, so weight decay (lr * 0.1 per step) moves the other half too. The original SalUn relabels instead of
    ascending.
    """

    config: ClipSalUnConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        self.load_model()
        forget, retain = self.forget_pairs(), self.retain_pairs()
        return self.edit(self.train({"forget": forget, "retain": retain}, run, log, mask=self.mask(forget)))

    def mask(self, forget: Sequence[Captioned]) -> dict[str, Tensor]:
        """The mask of every tensor, from the gradient of the mean loss of the pairs, or with ``compat`` of batches."""
        B, parameters, compat = self.config.batch_size, self.parameters(), self.config.compat
        compute = mean_of_batches if compat else mean_gradients
        with tuned(parameters), progress_bar("saliency", len(forget)) as advance:
            g_f = compute(
                self.model,
                forget,
                parameters,
                self.config.forget_loss,
                block=B,
                chunk=B,
                partial=compat,
                progress=lambda done, _: advance(done, ""),
            )
        return salient(g_f, self.config.share)
