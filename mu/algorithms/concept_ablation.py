"""Concept ablation: train the UNet to predict for prompts of the concept what it predicts for prompts of an anchor."""

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
    """Optimiser steps. More steps erase more, also of similar concepts. Published: 50 or 75, for nudity 100 or 150."""
    gradients: Literal["zeroed", "summed"] = "summed"
    """``summed``: each step uses the sum of all gradients so far, as in the program behind the published numbers."""


class ConceptAblationConfig(AnchoredConfig):
    """All settings of concept ablation. Defaults: those of the published comparison on SD 1.4."""

    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    train: ConceptAblationTrainConfig = ConceptAblationTrainConfig()
    """The optimisation."""
    templates: Templates = Field(["{} painting"], min_length=1)
    """Prompts that contain the concept, each with one {}; one is drawn at each step."""
    images: ImagesConfig = ImagesConfig()
    """The images of the concepts that are noised."""
    anchor_weight: float = Field(10.0, ge=0)
    """Weight of keeping the prediction for the anchor. A larger value retains similar concepts and erases less."""
    seed: int = 0
    """Seed of all random numbers: the same seed gives the same edit."""
    output_dir: str = "outputs/ca"
    """The run folder."""


PRESETS: Presets[ConceptAblationConfig] = Presets(
    {
        "comparison": ConceptAblationConfig(),
        "nudity": ConceptAblationConfig.parse({"concepts": ["nudity"], "train": {"iterations": 150}}),
        "canvas": lambda: ConceptAblationConfig.load(Path(__file__).parent / "presets" / "ca-canvas.yaml"),
        "canvas-object": lambda: PRESETS["canvas"].merged({"anchors": ["house"]}),
    }
)
"""Published settings for Stable Diffusion 1.4, and settings for styles and objects of the embedded model."""


class ConceptAblation(WeightErasure):
    """Concept ablation: fine-tuning that makes prompts of the concept mean what prompts of an anchor mean.

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

    @inproceedings{kumari2023ablating,
      title     = {Ablating Concepts in Text-to-Image Diffusion Models},
      author    = {Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli and Zhang, Richard
                   and Zhu, Jun-Yan},
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
