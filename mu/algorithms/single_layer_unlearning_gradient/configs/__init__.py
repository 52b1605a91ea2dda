"""Settings of SLUG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mu.core.concept import Concept, ConceptList
from mu.core.config import BaseConfig, Devices
from mu.core.presets import Presets
from mu.data.clip_sets import BothSets
from mu.models.load_options import LoadingConfig


class DataConfig(BothSets):
    tasks: list[str] = ["celeba:data/celeba", "imagenet:data/ImageNet"]
    """What is classified in the search: ``celeba:FOLDER``, ``imagenet:FOLDER``, ``canvas``. The concept is a class of one of them."""
    per_class: int = Field(8, ge=1)
    """Rendered images of each class where a task renders its own."""


class GradientConfig(BaseConfig):
    batch_size: int = Field(16, ge=2)
    """Pairs that stand against each other in the retain loss; its value is part of the loss, not of the speed."""
    chunk: int = Field(128, ge=1)
    """Pairs that run at once: memory and speed, the same gradient."""
    forget_loss: Literal["cosine", "contrastive"] = "cosine"
    """Mean of 1 - cos, or (the ``_o`` variants) CLIP's contrastive loss."""
    compat: list[Literal["batch_mean", "cumulative", "constant_retain_caption"]] = []
    """Reproduce the released programs: mean of batch means; gradients never zeroed, over both sets; one caption for all retain pairs."""
    precondition: float | None = Field(None, gt=0)
    """Turn the forget gradient of linear layers away from what they see of the retain pairs that do not name the concept (see
    `preconditioner`): less of the rest goes with it. The value damps: 1 is gentle, 0.1 strong. Needs retain pairs, not a file."""
    grad_sign: str | None = Field(None, pattern=r"^[+-]$")
    """Of a gradient file in data.forget or data.retain that does not say it: ``+`` for the gradient of the loss, ``-`` for its negative.
    Files of `mu gradients` say it; the released programs' ``.pt`` do not. (Both sources take such a file in place of images.)"""


class LayersConfig(BaseConfig):
    tower: Literal["both", "vision", "language"] = "both"
    """Towers whose tensors may be changed. A diffusion model has only the language tower, LLaVA only the vision tower."""
    exclude: list[str] = ["*bias", "*position*", "*class_embedding", "*token_embedding*"]
    """Patterns of tensors that are never changed."""
    names: list[str] = []
    """Change one of these instead of the Pareto front (patterns)."""
    max_front: int = Field(8, ge=1)
    """Search at most so many tensors of each tower's front, those with the largest importance first."""


class ImagesConfig(BaseConfig):
    templates: dict[str, list[str]] = {}
    """By task (``identity``, ``object``, ...): what is drawn of a class, the templates in turn. Default: the first of the task's own."""
    forget: int = Field(8, ge=1)
    """Images of the concept at each step."""
    retained: int = Field(1, ge=1)
    """Images of each other class, at the step that is chosen."""
    steps: int = Field(20, ge=1)
    """Denoising steps."""
    guidance: float = 7.5
    """Guidance scale: take what the model is used with."""
    judge: str | None = None
    """An image classifier that reads the images in place of the CLIP: a folder of `mu classifier train`, or ``canvas-judge``. A CLIP may
    still recognise what a classifier and people no longer do."""


class SearchConfig(BaseConfig):
    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    method: Literal["grid", "reference"] = "grid"
    """``grid``: many steps at once, then a finer grid before the first that forgets. ``reference``: ten steps, doubling, then halving."""
    criterion: Literal["fa1", "fa5"] = "fa5"
    """Forget accuracy that must fall: the concept first, or among the first five classes."""
    target: float = Field(0.0, ge=0, le=1)
    """How far it must fall."""
    rho_min: float = Field(0.004, gt=0)
    """Smallest step of the grid, as a share of the tensor's norm."""
    rho_max: float = Field(4.0, gt=0)
    """Largest step of the grid."""
    steps: int = Field(16, ge=2)
    """Steps of the grid, evenly spaced in the logarithm; the finer grid has half as many."""
    margin: float = Field(1.0, ge=1)
    """The smallest step that forgets every search image lies on the edge: the chosen one is so many times as large."""
    on: Literal["clip", "model"] = "clip"
    """What the search looks at: CLIP's own classification, or the images or answers of the model that is edited."""
    images: ImagesConfig = ImagesConfig()
    """What is drawn where the search looks at a diffusion model's images."""
    retained: float = Field(0.0, ge=0, le=1)
    """A step that keeps less than this mean share of the untouched model's retained accuracies is never chosen; nor are the steps of
    several concepts that keep less together. Concepts that are erased together are no part of it."""

    @model_validator(mode="after")
    def _grid_goes_up(self) -> Self:
        if self.rho_min >= self.rho_max:
            raise ValueError(f"rho_min ({self.rho_min:g}) must be below rho_max ({self.rho_max:g})")
        return self


class SlugConfig(BaseConfig):
    """All settings of SLUG. Without a preset they are those of the paper's CLIP experiments."""

    model: str = "open_clip:ViT-B-32/laion400m_e32"
    """What is edited: a CLIP, a diffusion model with its text tower, a LLaVA with its vision tower."""
    clip: str | None = None
    """The CLIP that gives the gradients. Default: the model itself, where it is one."""
    concepts: ConceptList = [Concept("Elon Musk")]
    """What is forgotten, each with one tensor of its own, all found on the original model."""
    data: DataConfig = DataConfig()
    """Where pairs and test images come from."""
    gradients: GradientConfig = GradientConfig()
    """The two gradients."""
    layers: LayersConfig = LayersConfig()
    """Which tensors may be changed."""
    search: SearchConfig = SearchConfig()
    """How large the step is, and which tensor takes it."""
    loading: LoadingConfig = LoadingConfig()
    """How a diffusion model is loaded, where its files do not say it."""
    devices: Devices = "auto"
    """GPU number, cpu, mps or auto."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the models compute in. The search decides on single images: float32 is the careful choice."""
    output_dir: str = "outputs/slug"
    """The run's folder."""
    seed: int = 0
    """Decides rendered images and everything else that is drawn."""


PRESETS: Presets[SlugConfig] = Presets({
    "clip": SlugConfig.parse({}),
    "stable-diffusion": SlugConfig.parse({
        "model": "stabilityai/stable-diffusion-2-1", "clip": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "layers": {"tower": "language"},
    }),
    "llava": SlugConfig.parse({
        "model": "llava-hf/llava-1.5-7b-hf", "clip": "openai/clip-vit-large-patch14-336", "layers": {"tower": "vision"}, "gradients": {"chunk": 16},
    }),
    "canvas-clip": lambda: SlugConfig.load(Path(__file__).with_name("canvas-clip.yaml")),
    "canvas": lambda: SlugConfig.load(Path(__file__).with_name("canvas.yaml")),
    "canvas-vlm": lambda: SlugConfig.load(Path(__file__).with_name("canvas-vlm.yaml")),
    # Preconditioning keeps far less there: one retained image in eight shows the style without saying so.
    "canvas-vlm-style": lambda: PRESETS["canvas-vlm"].merged({
        "gradients": {"precondition": None}, "search": {"margin": 1.1},
    }),
})  # fmt: skip
"""The paper's three experiments, and the same on the embedded models."""
