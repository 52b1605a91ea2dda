"""Concept ablation: train the UNet to predict for prompts of the concept what it predicts for prompts of an anchor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.algorithms.concept_ablation.configs import (
    ConceptAblationConfig,
    ConceptAblationMethod,
)
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.diffusion.noised_images import concept_images, noised
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.training.diffusion_method import WeightErasure
from mu.training.tuning import Tuning


class ConceptAblation(ConceptAblationMethod, WeightErasure):
    """The training of concept ablation.

    Each step draws a template, with the concept (c) and with the anchor (a): "X painting" and "painting". It noises an
    image of the concept to x_t by the forward process, t uniform in 0 .. 999. The loss, with theta* frozen, is

        L = |eps_theta(x_t, c) - eps_theta*(x_t, a)|^2 + anchor_weight |eps_theta(x_t, a) - eps_theta*(x_t, a)|^2,

    means over the elements of x_t. This is the model-based objective of the paper with its regulariser, both towards
    the frozen model. A step costs one sample without gradient and two with gradient; all cross-attention tensors are
    trained.

    Constants and form are those of the program with which separable concept erasure was compared. That program uses
    "painting" for objects too (``templates``) and reads images from disk (``images``). It never zeroes its gradients
    (``train.gradients``; check: with ``summed`` the n-th step uses the sum of n gradients). The authors' own program
    differs more: it noises images of the anchor and regularises with the ordinary training loss on those images. It
    trains only ``to_k`` and ``to_v``, with learning rate 2e-6 and larger batches. For v-prediction models the loss is
    on v.
    """

    config: ConceptAblationConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        model = self.load_model()
        self.prepare(model)
        return self.edit(self.train(model.parameters("cross-attention"), self.step, run, log))

    def prepare(self, model: DiffusionModel) -> None:
        """Make what all steps share: each concept's images, and each template encoded with it and with its anchor."""
        config = self.config
        self.images = concept_images(model, config.images, config.concepts, config.seed)
        self.encoded = [[model.encode(pair) for pair in of_one] for of_one in config.pairs()]

    def step(self, tuning: Tuning, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        model, weight = self.model, self.config.anchor_weight
        k, concept = divmod(i, len(self.encoded))
        choices = self.encoded[concept]
        both = choices[int(torch.randint(len(choices), (1,), generator=generator))]  # c, a
        t = int(torch.randint(1000, (1,), generator=generator))
        with tuning.frozen():
            x = noised(model, self.images[concept][k], t, generator)
            e_frozen = model.predict_noise(x, t, both[1:])
        e_c, e_a = model.predict_noise(torch.cat([x, x]), t, both).chunk(2)
        native = model.native_weight(t)
        L_concept, L_anchor = native * F.mse_loss(e_c, e_frozen), native * F.mse_loss(e_a, e_frozen)
        return {"loss": L_concept + weight * L_anchor, "concept": L_concept, "anchor": L_anchor}
