"""Settings of concept ablation, its paper and its presets. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.core.config import Templates
from mu.core.tunable import LogRange, WholeLogRange
from mu.diffusion.images_config import ImagesConfig
from mu.training.diffusion_config import CALIBRATED, COMPARISON, AnchoredConfig, DiffusionMethod, TrainConfig


class ConceptAblationTrainConfig(TrainConfig):
    iterations: int = Field(75, ge=1)
    """Optimiser steps. More steps erase more, also of similar concepts. Published: 50 or 75, for nudity 100 or 150."""
    gradients: Literal["zeroed", "summed"] = "summed"
    """``summed``: each step uses the sum of all gradients so far, as in the program behind the published numbers."""
    batch_size: int = Field(1, ge=1, le=65_536)
    """Noised images of one concept per step."""


class ConceptAblationConfig(AnchoredConfig):
    """All settings of concept ablation. Defaults: those of the published comparison on SD 1.4."""

    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    train: ConceptAblationTrainConfig = ConceptAblationTrainConfig()
    """The optimisation."""
    templates: Templates = Field(["{} painting"], min_length=1)
    """Prompts that contain the concept, each with one {}; one is drawn at each step."""
    images: ImagesConfig = ImagesConfig()
    """The images of the concepts that are noised."""
    parameters: Literal["cross-attention", "keys-and-values"] = "cross-attention"
    """What is trained: all tensors of the cross-attention, or only its keys and values (authors' program)."""
    target: Literal["frozen", "current", "noise"] = "frozen"
    """What the prediction for the concept becomes: the ``frozen`` model's for the anchor; the trained model's own,
    without gradient (``current``: authors' program, model-based); or the ``noise`` itself (noise-based)."""
    noised: Literal["concepts", "anchors"] = "concepts"
    """What the noised images show. ``anchors``: images of the templates with the anchor, each trained with its own
    template (authors' program)."""
    wording: Literal["template", "style"] = "template"
    """``template``: the concept stands in the template, as its anchor does. ``style``: in a phrase around the anchor's
    prompt P, drawn from "P, in the style of X" and, twice as often, "in X's style, P" (authors' program)."""
    start_token: Literal["trained", "detached"] = "trained"
    """``detached``: keys and values of the start token give no gradient (authors' program)."""
    anchor_weight: float = Field(10.0, ge=0)
    """Weight of keeping the prediction for the anchor. A larger value retains similar concepts and erases less."""
    prior_weight: float = Field(0.0, ge=0)
    """Weight of the ordinary training loss on images of the anchors, as the authors' program may add."""
    seed: int = 0
    """Seed of all random numbers: the same seed gives the same edit."""
    output_dir: str = "outputs/ca"
    """The run folder."""

    def pairs(self) -> list[list[tuple[str, str]]]:
        """As in `AnchoredConfig`; with ``wording: style`` each template has its phrase for each concept, thrice."""
        pairs = super().pairs()
        if self.wording == "template":
            return pairs
        phrases = ("{}, in the style of {}", *["in {1}'s style, {0}"] * 2)
        return [
            [(phrase.format(a, concept), a) for _, a in of_one for phrase in phrases]
            for concept, of_one in zip(self.concepts, pairs, strict=True)
        ]

    def idle(self) -> Mapping[str, str]:
        found = self.images.idle_for(self.concepts) | dict(super().idle())
        alone = self.target == "noise" and not self.anchor_weight and not self.prior_weight
        if alone and self.noised == "concepts" and self.wording == "template":
            found["anchors"] = "target noise alone compares with no anchor"
        return found


class ConceptAblationMethod(DiffusionMethod):
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
    tunable: ClassVar = {
        "train.lr": LogRange(1e-6, 1e-3),
        "train.iterations": WholeLogRange(50, 1000),
        "anchor_weight": LogRange(0.1, 30.0),
    }
    default_preset = "calibrated"
    presets = Presets(
        ConceptAblationConfig,
        CALIBRATED._replace(
            values={
                "calibrate": {"on": True},
                "parameters": "keys-and-values",
                "train": {"iterations": 400, "gradients": "zeroed", "batch_size": 2},
                "images": {"count": 16, "steps": 20},
                "anchor_weight": 1.0,
            }
        ),
        Preset("styles", "art styles on SD 1.4: the published comparison"),
        Preset("objects", "objects on SD 1.4: the published comparison, which uses one setting for both"),
        Preset(
            "nudity",
            "nudity on SD 1.4: the published number of steps",
            {"concepts": ["nudity"], "train": {"iterations": 150}},
        ),
        COMPARISON,
        Preset(
            "released",
            "art styles by the authors' own program, model-based, on two GPUs",
            {
                "train": {
                    "iterations": 100,
                    "lr": 1.6e-5,
                    "gradients": "zeroed",
                    "batch_size": 8,
                    "weight_decay": 0.01,
                    "max_grad_norm": 1.0,
                },
                "templates": ["{}"],
                "wording": "style",
                "anchors": ["painting"],
                "parameters": "keys-and-values",
                "target": "current",
                "noised": "anchors",
                "start_token": "detached",
                "anchor_weight": 0.0,
            },
        ),
        former={
            "comparison": "styles",
            **dict.fromkeys(("canvas", "canvas-objects", "canvas-object"), "calibrated"),
        },
    )
