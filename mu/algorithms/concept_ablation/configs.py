"""Settings of concept ablation, its paper and its presets. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from mu.core.algorithm import Method, Preset, Presets
from mu.core.config import Templates
from mu.diffusion.images_config import ImagesConfig
from mu.training.diffusion_config import AnchoredConfig, TrainConfig


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

    def idle(self) -> Mapping[str, str]:
        return self.images.idle_for(self.concepts)


class ConceptAblationMethod(Method):
    """Concept ablation: fine-tuning that makes prompts of the concept mean what prompts of an anchor mean.

    @inproceedings{kumari2023ablating,
      title     = {Ablating Concepts in Text-to-Image Diffusion Models},
      author    = {Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli and Zhang, Richard
                   and Zhu, Jun-Yan},
      booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
      year      = {2023}
    }
    """

    name = "ca"
    home = "mu.algorithms.concept_ablation.algorithm:ConceptAblation"
    config_class = ConceptAblationConfig
    presets = Presets(
        ConceptAblationConfig,
        Preset("styles", "art styles on SD 1.4: the published comparison"),
        Preset("objects", "objects on SD 1.4: the published comparison, which uses one setting for both"),
        Preset(
            "nudity",
            "nudity on SD 1.4: the published number of steps",
            {"concepts": ["nudity"], "train": {"iterations": 150}},
        ),
        Preset("canvas", "styles of the embedded model", Path(__file__).with_name("canvas.yaml")),
        Preset(
            "canvas-objects", "objects of the embedded model, anchored to house", {"anchors": ["house"]}, of="canvas"
        ),
        former={"comparison": "styles", "canvas-object": "canvas-objects"},
    )
