"""Settings of Forget-Me-Not, its paper and its presets. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.core.config import Templates
from mu.core.tunable import LogRange, WholeLogRange
from mu.diffusion.images_config import ImagesConfig
from mu.training.diffusion_config import (
    CALIBRATED,
    COMPARISON,
    UNWEIGHTED,
    AnchoredConfig,
    DiffusionMethod,
    TrainConfig,
)


class ForgetMeNotTrainConfig(TrainConfig):
    iterations: int = Field(30, ge=1)
    """Optimiser steps. More steps erase more, also of similar concepts. Published: 20 or 30 for styles, 30 to 50 for
    objects, 75 for nudity."""
    gradients: Literal["zeroed", "summed"] = "summed"
    """``summed``: each step uses the sum of all gradients so far, as in the program behind the published numbers."""


class ForgetMeNotConfig(AnchoredConfig):
    """All settings of Forget-Me-Not. Defaults: those of the published comparison for styles on SD 1.4."""

    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    train: ForgetMeNotTrainConfig = ForgetMeNotTrainConfig()
    """The optimisation."""
    templates: Templates = Field(["a painting of {}"], min_length=1)
    """Prompts that contain the concept, each with one {}; one is drawn at each step."""
    objective: Literal["logits", "attention", "attention-norm"] = "logits"
    """``logits``: move the attention logits to those of the anchor (the published comparison). ``attention``: remove
    all attention from the concept's words (the paper), as a sum of squares. ``attention-norm``: its root over all
    layers, as in the authors' program."""
    words: Literal["concept", "concept-and-end"] = "concept"
    """The positions that objective attention removes attention from. ``concept-and-end``: the end tokens too, which
    the authors' program calls use_pooler."""
    parameters: Literal["cross-attention", "unet"] = "cross-attention"
    """What is trained: the cross-attention, or the whole UNet (default of the authors' program)."""
    images: ImagesConfig = ImagesConfig()
    """The images of the concepts that are noised."""
    seed: int = 0
    """Seed of all random numbers: the same seed gives the same edit."""
    output_dir: str = "outputs/fmn"
    """The run folder."""

    def idle(self) -> Mapping[str, str]:
        found = self.images.idle_for(self.concepts) | UNWEIGHTED | dict(super().idle())
        if self.objective == "logits":
            return found | {"words": "objective logits compares all positions"}
        return found | {"anchors": f"objective {self.objective} needs no anchor"}


class ForgetMeNotMethod(DiffusionMethod):
    """Forget-Me-Not: fine-tuning of the cross-attention on its own attention maps.

    @inproceedings{zhang2024forget,
      title     = {Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models},
      author    = {Zhang, Gong and Wang, Kai and Xu, Xingqian and Wang, Zhangyang and Shi, Humphrey},
      booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR) Workshops},
      year      = {2024}
    }
    """

    name = "fmn"
    home = "mu.algorithms.forget_me_not.algorithm:ForgetMeNot"
    config_class = ForgetMeNotConfig
    tunable: ClassVar = {"train.lr": LogRange(1e-6, 1e-3), "train.iterations": WholeLogRange(10, 300)}
    default_preset = "calibrated"
    presets = Presets(
        ForgetMeNotConfig,
        CALIBRATED._replace(
            values={
                "calibrate": {"on": True},
                "train": {"iterations": 200, "gradients": "zeroed"},
                "images": {"count": 16, "steps": 20},
            }
        ),
        Preset("styles", "art styles on SD 1.4: the published comparison"),
        Preset("objects", "objects on SD 1.4: the published number of steps", {"train": {"iterations": 50}}),
        Preset(
            "nudity",
            "nudity on SD 1.4: the published number of steps",
            {"concepts": ["nudity"], "train": {"iterations": 75}},
        ),
        COMPARISON,
        Preset(
            "released",
            "the authors' own program as its settings file has it, without textual inversion",
            {
                "train": {
                    "iterations": 35,
                    "lr": 2e-6,
                    "gradients": "zeroed",
                    "weight_decay": 0.01,
                    "max_grad_norm": 1.0,
                },
                "templates": ["a photo of {}"],
                "objective": "attention-norm",
                "words": "concept-and-end",
                "parameters": "unet",
            },
        ),
        Preset("canvas", "styles of the embedded model", Path(__file__).with_name("canvas.yaml")),
        Preset(
            "canvas-objects", "objects of the embedded model, anchored to house", {"anchors": ["house"]}, of="canvas"
        ),
        former={"canvas-object": "canvas-objects"},
    )
