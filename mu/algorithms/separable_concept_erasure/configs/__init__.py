"""Settings of CiE and SepCE. Equation and section numbers are those of the paper (SRS-ME)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mu.core.config import BaseConfig, Templates
from mu.core.presets import Presets
from mu.training.diffusion_config import DiffusionConfig


class PromptConfig(BaseConfig):
    templates: Templates = Field(["{}"], min_length=1)
    """The prompts to erase; ``{}`` is the concept. What users type is erased only where it is like one of these."""
    anchor: str = ""
    """What the concept's predictions are measured against: r(c) = eps(c) - eps(anchor)."""
    template_anchor: bool = False
    """Put ``anchor`` into the template too: "a fish in {} style" is then measured against what it is without the concept."""
    held_out: Templates = []
    """Templates that are never trained on; ``train.stop: held_out`` looks at them."""


class DataConfig(BaseConfig):
    images: int = Field(1000, ge=1)
    """At most so many images of the concept, over all templates; each is noised anew every time it is used."""
    steps: int = Field(50, ge=1)
    """Denoising steps of a image that the model makes itself (100 in the released code)."""
    guidance: float = 7.5
    """Guidance scale of such a image."""
    folder: str | None = None
    """Images of your own in place of those, like ``./data/{}``; ``{}`` is the concept."""
    stored_targets: int = Field(0, ge=0)
    """Keep the frozen predictions of so many noised images and use them in turn: two of three evaluations less, and
    noise and timestep are then fixed for each. 0 draws them anew every step."""


class TrainConfig(BaseConfig):
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """What the frozen model computes in (autocast). bfloat16 is coarse: its rounding is of the size of r."""
    iterations: int = Field(1000, ge=1)
    """Optimiser steps at most."""
    batch_size: int = Field(1, ge=1)
    """Noised images a step."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate of Adam."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's eps. Gradients can be far below 1e-8: where they are, Adam is linear in them and hardly moves."""
    regulariser: float = Field(1e-6, ge=0)
    """lambda: weight of the mean over the trained tensors of the shift's L1 norm."""
    stop: Literal["correlation", "held_out", "steps"] = "correlation"
    """``correlation``: when the momentum statistic of the loss falls below ``threshold``, as published. ``held_out``: then, but not
    before less than ``left`` of the held-out templates' correlation is left. ``steps``: after all of them."""
    threshold: float = 1e-4
    """tau of the stop; never before 12 updates. Lower erases more and harms more."""
    left: float = Field(0.0, lt=1)
    """Share of the held-out templates' correlation below which ``held_out`` may stop. Lower, also below 0, erases more and harms more."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """alpha of the statistic m = alpha m + (1 - alpha) L."""
    gradients: Literal["zeroed", "summed"] = "zeroed"
    """``summed``: each step sees the sum of all gradients so far, as in the released code, which never zeroes them; published rates
    and scales are tuned to that."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; the most that a killed run loses."""


class ConceptIrrelevantErasureConfig(DiffusionConfig):
    """All settings of CiE. Without a preset they are the paper's for Stable Diffusion 1.4, gradients zeroed."""

    prompt: PromptConfig = PromptConfig()
    """The prompts that stand for a concept."""
    data: DataConfig = DataConfig()
    """Images of the concept, which are noised for training."""
    train: TrainConfig = TrainConfig()
    """The optimisation."""
    output_dir: str = "outputs/cie"
    """The run's folder."""
    seed: int = 0
    """Decides all random numbers: same seed, same edit."""
    verbose: bool = True
    """More lines in the log."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.data.folder and "{}" not in self.data.folder and len(self.concepts) > 1:
            raise ValueError("data.folder is one folder for several concepts: put {} in place of the concept")
        if self.train.stop == "held_out" and not self.prompt.held_out:
            raise ValueError("train.stop is held_out, but prompt.held_out names no template")
        return self


class ProtectConfig(BaseConfig):
    prompts: list[str] = []
    """Prompts whose images stay exactly as they are, word for word. The empty prompt and the other erased concepts always are."""
    others: list[str] = []
    """Words that are protected too, in this order, as far as capacity goes; those that share their words with the concept
    are left out."""
    templates: Templates = ["{}"]
    """Prompts in which ``others`` and the other erased concepts are protected; each costs its tokens in capacity."""
    erased: Literal["exactly", "nearly"] = "exactly"
    """How the other erased concepts, and those of a bank, are protected. ``nearly``: as ``others``, before those, up to ``null_tol``: room
    for many more, and restoring one then changes another by up to the leak."""
    leave: int = Field(64, ge=16)
    """``others`` must leave the shift so many directions."""
    null_tol: float = Field(0.0, ge=0, lt=1)
    """Forget directions of ``others`` whose singular value is below this share of the largest: room for many more of them,
    protected up to a leak that the log tells. 0 protects them exactly."""
    mend: int | None = Field(100, ge=0)
    """With ``mu erase --bank``: older shifts of the bank are made null on the new concepts too, and one that loses more than a
    tenth of its effect by that is trained for at most so many updates. null leaves older shifts as they are."""


class BasisConfig(BaseConfig):
    kind: Literal["orthonormal", "elimination"] = "orthonormal"
    """``orthonormal``: only the directions of the null space that act on the concept's tokens. ``elimination``: all of it, by
    Gauss-Jordan elimination, unit vectors that are not orthogonal, as the released code."""
    scale_factor: float = Field(1.0, gt=0)
    """beta, by which the basis is multiplied once. Acts like a learning rate."""
    max_base: int | None = Field(None, ge=1)
    """Use only the first so many vectors."""
    concept_tol: float = Field(1e-6, ge=0, lt=1)
    """Drop orthonormal directions that act on the concept less than this share of the strongest one."""


class SeparableTrainConfig(TrainConfig):
    lr: float = Field(3e-5, gt=0)
    """Learning rate of Adam."""
    adam_eps: float = Field(1e-12, gt=0)
    """Adam's eps. Gradients can be far below 1e-8: where they are, Adam is linear in them and hardly moves."""


class SeparableConceptErasureConfig(ConceptIrrelevantErasureConfig):
    """All settings of SepCE. Without a preset: orthonormal basis, gradients zeroed; the published ones are presets."""

    protect: ProtectConfig = ProtectConfig()
    """What the shifts must leave alone."""
    basis: BasisConfig = BasisConfig()
    """The directions that a shift may use."""
    train: SeparableTrainConfig = SeparableTrainConfig()
    """The optimisation."""
    output_dir: str = "outputs/sepce"
    """The run's folder."""


_CIE = ConceptIrrelevantErasureConfig.parse({"train": {"gradients": "summed"}})
CIE_PRESETS: Presets[ConceptIrrelevantErasureConfig] = Presets({
    "style": _CIE,
    "object": _CIE.merged({"concepts": ["church"]}),
    "nudity": _CIE.merged({"concepts": ["nudity"], "train": {"threshold": 0.0}}),
    "canvas": lambda: ConceptIrrelevantErasureConfig.load(Path(__file__).with_name("cie-canvas.yaml")),
})  # fmt: skip
"""The paper's settings, and those for the embedded model, tuned on images of seeds that no figure reports."""

# Published for styles and objects; the paper's nudity is CiE's alone, so that preset takes only its threshold over.
_SEPCE = SeparableConceptErasureConfig.parse({
    "basis": {"kind": "elimination", "scale_factor": 1e-4},
    "train": {"lr": 0.1, "adam_eps": 1e-8, "gradients": "summed"},
})  # fmt: skip
SEPCE_PRESETS: Presets[SeparableConceptErasureConfig] = Presets({
    "style": _SEPCE,
    "object": _SEPCE.merged({"concepts": ["church"]}),
    "nudity": _SEPCE.merged({"concepts": ["nudity"], "train": {"threshold": 0.0}}),
    "canvas": lambda: SeparableConceptErasureConfig.load(Path(__file__).with_name("sepce-canvas.yaml")),
})  # fmt: skip
"""The paper's settings for styles and objects, and those for the embedded model, tuned on images of seeds that no figure reports."""
