"""Settings of CiE and SepCE. Equation and section numbers refer to the paper (SRS-ME)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mu.core.algorithm import Preset, Presets
from mu.core.config import MOST, BaseConfig, Templates
from mu.core.tunable import LogRange, Range
from mu.data.shards import find_paths
from mu.training.diffusion_config import CALIBRATED, UNWEIGHTED, Counting, DiffusionConfig, DiffusionMethod, Draws


class PromptConfig(BaseConfig):
    templates: Templates = Field(["{}"], min_length=1)
    """The prompts to erase; ``{}`` is the concept. A user's prompt is erased only if it is similar to one of these."""
    anchor: str = ""
    """The prompt whose predictions are the reference: r(c) = eps(c) - eps(anchor)."""
    template_anchor: bool = False
    """Put ``anchor`` into the template too: the reference of "a fish in {} style" is then the same prompt without the
    concept."""
    held_out: Templates = []
    """Templates that are never trained on; ``train.stop: held_out`` evaluates them."""


class DataConfig(BaseConfig):
    images: int = Field(1000, ge=1, le=MOST)
    """Maximum number of images of the concept, over all templates; each is noised anew at every use."""
    steps: int = Field(50, ge=1, le=10_000)
    """Denoising steps of the images that the model makes (100 in the released code)."""
    guidance: float = 7.5
    """Guidance scale of those images."""
    folder: str | None = None
    """Folder of your own images in place of those, like ``./data/{}``; ``{}`` is the concept."""
    stored_targets: int = Field(0, ge=0, le=MOST)
    """Store the frozen predictions of this many noised images and use them in turn. That saves two of three
    evaluations, but fixes the noise and timestep of each image. 0 draws them anew at every step."""

    def folder_of(self, concept: str) -> str:
        """``folder`` with the concept's name in it; empty if the model makes the images."""
        return (self.folder or "").replace("{}", concept)

    def idle(self) -> Mapping[str, str]:
        return dict.fromkeys(("steps", "guidance"), "images come from data.folder") if self.folder else {}


class TrainConfig(BaseConfig):
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """Number type in which the frozen model computes (autocast). bfloat16 is coarse: its rounding error is about as
    large as r."""
    iterations: int = Field(1000, ge=1)
    """Maximum number of optimiser steps."""
    counting: Counting = "updates"
    """``updates``: at most ``iterations`` optimiser steps. ``index``: one more, as the released code counts, which ends
    at the step of index ``iterations``."""
    batch_size: int = Field(1, ge=1, le=65_536)
    """Noised images per step."""
    draws: Draws = None
    """Independent batches whose mean gradient is one update. Several processes share them. Default: one, or one for
    each process."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate of Adam."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's eps. Gradients can be far below 1e-8; Adam is then linear in them and hardly moves."""
    regulariser: float = Field(1e-6, ge=0)
    """lambda: weight of the delta's L1 norm, averaged over the trained tensors."""
    stop: Literal["correlation", "held_out", "steps"] = "correlation"
    """``correlation``: stop when the momentum statistic of the loss falls below ``threshold``, as published.
    ``held_out``: the held-out templates' correlation must also fall below the share ``left``. ``steps``: never stop
    early."""
    threshold: float = 1e-4
    """tau of the stop; training never stops before 12 updates. A lower value erases more and harms more."""
    left: float = Field(0.0, lt=1)
    """Share of the held-out templates' correlation below which ``held_out`` may stop. A lower value, also below 0,
    erases more and harms more."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """alpha of the statistic m = alpha m + (1 - alpha) L."""
    gradients: Literal["zeroed", "summed"] = "zeroed"
    """``summed``: each step uses the sum of all gradients so far. The released code never zeroes them, and the
    published learning rates and scales are tuned to that."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; a killed run loses at most this many steps."""


class ConceptIrrelevantErasureConfig(DiffusionConfig):
    """All settings of CiE. Defaults: the paper's for Stable Diffusion 1.4, but with gradients zeroed."""

    prompt: PromptConfig = PromptConfig()
    """The prompts that express a concept."""
    data: DataConfig = DataConfig()
    """Images of the concept that are noised for training."""
    train: TrainConfig = TrainConfig()
    """The optimisation."""
    output_dir: str = "outputs/cie"
    """The run folder."""
    seed: int = 0
    """Seed of all random numbers: the same seed gives the same edit."""
    verbose: bool = True
    """Write more lines to the log."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.data.folder and "{}" not in self.data.folder and len(self.concepts) > 1:
            raise ValueError("data.folder is the same for several concepts: put {} in it for the concept's name")
        if self.train.stop == "held_out" and not self.prompt.held_out:
            raise ValueError("train.stop is held_out, but prompt.held_out is empty: add a template to it")
        return self

    def idle(self) -> Mapping[str, str]:
        stop = self.train.stop
        found = {} if stop == "held_out" else dict.fromkeys(("prompt.held_out", "train.left"), f"train.stop is {stop}")
        found |= {"train.threshold": "train.stop is steps"} if stop == "steps" else {}
        return found | UNWEIGHTED | dict(super().idle())


class ProtectConfig(BaseConfig):
    prompts: list[str] = []
    """Prompts whose images stay exactly as they are; a prompt must match word for word. The empty prompt is always
    protected, and so are the other erased concepts."""
    others: list[str] = []
    """Words to protect too, in this order, while capacity lasts. Words that contain the concept, or are part of
    it, are skipped."""
    templates: Templates = ["{}"]
    """Prompts in which ``others`` and the other erased concepts are protected; each uses capacity for its tokens."""
    erased: Literal["exactly", "nearly"] = "exactly"
    """How the other erased concepts, and those of a bank, are protected. ``nearly``: like ``others``, ahead of them, up
    to ``null_tol``. That leaves room for many more, but restoring one then changes another by up to the leak."""
    leave: int = Field(64, ge=16)
    """Number of directions that ``others`` must leave for the delta."""
    null_tol: float = Field(0.0, ge=0, lt=1)
    """Ignore directions of ``others`` whose singular value is below this share of the largest. That makes room for many
    more of them, protected up to a leak that is logged. 0 protects them exactly."""
    gate: Literal["never", "bank", "always"] = "bank"
    """Gate the delta by the prompt, as SPM does: it passes as far as the prompt resembles the concept, but here above
    a floor, which what should stay and everyday sentences with a bank's words do not reach. ``bank``: only with
    ``mu erase --bank``. A merged file has no gate."""
    sentences: float = Field(0.0, ge=0)
    """Weight of the change of keys and values in everyday sentences with the words of the other erased concepts, and of
    a bank's. The images of those sentences then stay near the base's if their word is restored. 0: only the prompts
    above are protected, and a restored word's sentences may change."""
    mend: int | None = Field(100, ge=0)
    """With ``mu erase --bank``: make the bank's older deltas null on the new concepts too, and close their gates to
    sentences with them. A delta that thereby loses more than a tenth of its effect is trained again, for at most this
    many updates. null leaves the older edits as they are."""

    def idle(self) -> Mapping[str, str]:
        if self.others or self.erased == "nearly":
            return {}
        return dict.fromkeys(("leave", "null_tol"), "protect.others is empty, and all else is protected exactly")


class BasisConfig(BaseConfig):
    kind: Literal["orthonormal", "elimination"] = "orthonormal"
    """``orthonormal``: only the directions of the null space that act on the concept's tokens. ``elimination``: the
    whole null space by Gauss-Jordan elimination, in unit vectors that are not orthogonal, as in the released code."""
    scale_factor: float = Field(1.0, gt=0)
    """beta, a constant factor on the basis. Acts like a learning rate."""
    max_base: int | None = Field(None, ge=1)
    """Use only this many vectors, from the first on."""
    concept_tol: float = Field(1e-6, ge=0, lt=1)
    """Drop orthonormal directions whose effect on the concept is below this share of the strongest direction's."""

    def idle(self) -> Mapping[str, str]:
        return {"concept_tol": "elimination uses the whole null space"} if self.kind == "elimination" else {}


class SeparableTrainConfig(TrainConfig):
    lr: float = Field(3e-5, gt=0)
    """Learning rate of Adam."""
    adam_eps: float = Field(1e-12, gt=0)
    """Adam's eps. Gradients can be far below 1e-8; with a larger eps Adam is then linear in them and hardly moves."""
    objective: Literal["correlation", "distance"] = "correlation"
    """``correlation``: mean(r r_0), Eq. 28, as published. It has no lower bound: beyond 0 the concept's images become
    ever stranger. ``distance``: mean(r^2) / 2, not in the paper. It has the same gradient at first, and ends where the
    predictions are the anchor's; the correlation then nears 0 from above, so ``train.threshold`` must be above 0."""


class SeparableConceptErasureConfig(ConceptIrrelevantErasureConfig):
    """All settings of SepCE. Defaults: orthonormal basis, gradients zeroed. The published settings are presets."""

    protect: ProtectConfig = ProtectConfig()
    """Prompts that the deltas must leave unchanged."""
    basis: BasisConfig = BasisConfig()
    """The directions that a delta may use."""
    train: SeparableTrainConfig = SeparableTrainConfig()
    """The optimisation."""
    output_dir: str = "outputs/sepce"
    """The run folder."""


_CALIBRATED: Mapping[str, Any] = {
    "calibrate": {"on": True},
    "prompt": {"template_anchor": True},
    "data": {"images": 48, "steps": 20},
}
_FORMER = {"style": "styles", "object": "objects"}


class _OwnImages(DiffusionMethod):
    """A method that takes ``data.folder`` in place of images of the model."""

    @classmethod
    def check_files(cls, config: Any) -> None:
        super().check_files(config)
        for concept in config.concepts if config.data.folder else ():
            find_paths(config.data.folder_of(concept))


class ConceptIrrelevantErasureMethod(_OwnImages):
    """CiE: train all cross-attention weights until predictions for a concept have no component in its direction.

    @article{zhao2024separable,
      title   = {Separable Multi-Concept Erasure from Diffusion Models},
      author  = {Zhao, Mengnan and Zhang, Lihe and Zheng, Tianhang and Kong, Yuqiu and Yin, Baocai},
      journal = {arXiv preprint arXiv:2402.05947},
      year    = {2024}
    }
    """

    name = "cie"
    home = "mu.algorithms.separable_concept_erasure.algorithm:ConceptIrrelevantErasureAlgorithm"
    config_class = ConceptIrrelevantErasureConfig
    tunable: ClassVar = {"train.lr": LogRange(1e-6, 1e-3), "train.regulariser": LogRange(1e-8, 1e-3)}
    default_preset = "calibrated"
    presets = Presets(
        ConceptIrrelevantErasureConfig,
        CALIBRATED._replace(values={**_CALIBRATED, "train": {"iterations": 300, "batch_size": 2, "adam_eps": 1e-12}}),
        Preset(
            "styles",
            "art styles on SD 1.4: the published settings",
            {"train": {"gradients": "summed"}},
        ),
        Preset("objects", "objects on SD 1.4: the published settings", {"concepts": ["church"]}, of="styles"),
        Preset(
            "nudity",
            "nudity on SD 1.4: the published settings",
            {"concepts": ["nudity"], "train": {"threshold": 0.0}},
            of="styles",
        ),
        Preset(
            "released",
            "the released program by its own command: its rates, its images, its count of updates",
            {
                "data": {"steps": 100},
                "train": {"lr": 1e-6, "regulariser": 3e-5, "threshold": 0.0, "counting": "index"},
            },
            of="styles",
        ),
        Preset(
            "canvas",
            "styles and objects of the embedded model, tuned on images of unreported seeds",
            Path(__file__).with_name("cie-canvas.yaml"),
        ),
        former=_FORMER,
    )


class SeparableConceptErasureMethod(_OwnImages):
    """SepCE: give each concept a delta of its own, in the null space of the protected prompts.

    @article{zhao2024separable,
      title   = {Separable Multi-Concept Erasure from Diffusion Models},
      author  = {Zhao, Mengnan and Zhang, Lihe and Zheng, Tianhang and Kong, Yuqiu and Yin, Baocai},
      journal = {arXiv preprint arXiv:2402.05947},
      year    = {2024}
    }
    """

    name = "sepce"
    home = "mu.algorithms.separable_concept_erasure.algorithm:SeparableConceptErasureAlgorithm"
    config_class = SeparableConceptErasureConfig
    tunable: ClassVar = {
        "train.lr": LogRange(1e-5, 0.3),
        "train.regulariser": LogRange(1e-8, 1e-3),
        "protect.null_tol": Range(0.0, 0.05),
    }
    default_preset = "calibrated"
    presets = Presets(
        SeparableConceptErasureConfig,
        CALIBRATED._replace(
            values={
                **_CALIBRATED,
                "calibrate": {"on": True, "rate": 0.05},
                "train": {"iterations": 400, "batch_size": 2, "objective": "distance"},
                "protect": {"erased": "nearly", "null_tol": 0.03, "gate": "always", "sentences": 0.5},
            }
        ),
        Preset(
            "styles",
            "art styles on SD 1.4: the published settings",
            {
                "basis": {"kind": "elimination", "scale_factor": 1e-4},
                "train": {"lr": 0.1, "adam_eps": 1e-8, "gradients": "summed"},
            },
        ),
        Preset("objects", "objects on SD 1.4: the published settings", {"concepts": ["church"]}, of="styles"),
        Preset(
            "nudity",
            "nudity on SD 1.4: as for styles, with the threshold that the paper uses in CiE",
            {"concepts": ["nudity"], "train": {"threshold": 0.0}},
            of="styles",
        ),
        Preset(
            "released",
            "the released program by its own command: as for styles, with its images and its count of updates",
            {"data": {"steps": 100}, "train": {"counting": "index"}},
            of="styles",
        ),
        Preset(
            "canvas",
            "styles and objects of the embedded model, tuned on images of unreported seeds",
            Path(__file__).with_name("sepce-canvas.yaml"),
        ),
        former=_FORMER,
    )
