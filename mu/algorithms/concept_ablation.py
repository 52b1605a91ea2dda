"""Concept ablation: the UNet learns to predict for prompts of the concept what it predicts for prompts of an anchor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mu.core.config import Templates
from mu.core.loop import Log
from mu.core.presets import Presets
from mu.core.run import RunDirectory
from mu.diffusion.noised_images import ImagesConfig, concept_images, noised
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.training.diffusion_method import AnchoredConfig, TrainConfig, WeightErasure
from mu.training.tuning import Tuning


class ConceptAblationTrainConfig(TrainConfig):
    iterations: int = Field(75, ge=1)
    """Optimiser steps. More erase more, and more of what is near. Published: 50 or 75, for nudity 100 or 150."""
    gradients: Literal["zeroed", "summed"] = "summed"
    """``summed``: each step sees the sum of all gradients so far, as in the program that the published numbers are of."""


class ConceptAblationConfig(AnchoredConfig):
    """All settings of concept ablation. Without a preset they are those of the published comparison on SD 1.4."""

    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    train: ConceptAblationTrainConfig = ConceptAblationTrainConfig()
    """The optimisation."""
    templates: Templates = Field(["{} painting"], min_length=1)
    """Prompts around the concept, each with one {}; one is drawn each step."""
    images: ImagesConfig = ImagesConfig()
    """What is noised: images of the concepts."""
    anchor_weight: float = Field(10.0, ge=0)
    """Weight of keeping the prediction for the anchor. Larger keeps what is near and erases less."""
    seed: int = 0
    """Decides all random numbers: same seed, same edit."""
    output_dir: str = "outputs/ca"
    """The run's folder."""


PRESETS: Presets[ConceptAblationConfig] = Presets({
    "comparison": ConceptAblationConfig(),
    "nudity": ConceptAblationConfig.parse({"concepts": ["nudity"], "train": {"iterations": 150}}),
    "canvas": lambda: ConceptAblationConfig.load(Path(__file__).parent / "presets" / "ca-canvas.yaml"),
    "canvas-object": lambda: PRESETS["canvas"].merged({"anchors": ["house"]}),
})  # fmt: skip
"""Published ones for Stable Diffusion 1.4, those of the embedded model for styles, and for objects."""


class ConceptAblation(WeightErasure):
    """Concept ablation: fine-tuning that makes prompts of the concept mean what prompts of an anchor mean.

    Per step: a template with the concept, c, and with the anchor, a ("X painting" and "painting"), a image of the concept and
    x_t by the forward process at t uniform in 0 .. 999. With theta* frozen,

        L = |eps_theta(x_t, c) - eps_theta*(x_t, a)|^2 + anchor_weight |eps_theta(x_t, a) - eps_theta*(x_t, a)|^2,

    means over x_t's numbers: the model-based objective of the paper with its regulariser, both towards the frozen model. One
    sample without and two with gradient; all cross-attention tensors are trained.

    Constants and form are those of the program that separable concept erasure was compared with. It says "painting" for objects
    too (``templates``), never zeroes its gradients (``train.gradients``; check: with ``summed`` the n-th step is taken with the sum
    of n gradients), and reads images from disk (``images``). The authors' own program differs more: it noises images
    of the anchor, regularises with the ordinary training loss on such images, trains ``to_k`` and ``to_v`` alone, with
    learning rate 2e-6 and larger batches. For models that predict v the loss is in their own space.

    @inproceedings{kumari2023ablating,
      title     = {Ablating Concepts in Text-to-Image Diffusion Models},
      author    = {Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli and Zhang, Richard and Zhu, Jun-Yan},
      booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
      year      = {2023}
    }
    """

    name = "ca"
    config_class = ConceptAblationConfig
    presets = PRESETS
    config: ConceptAblationConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        model = self.load_model()
        self.prepare(model)
        return self.edit(self.train(model.parameters("cross-attention"), self.step, run, log))

    def prepare(self, model: DiffusionModel) -> None:
        """What all steps share: for each concept its images, and each template encoded with it and with its anchor."""
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
