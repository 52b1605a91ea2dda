"""Settings of SLUG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mu.core.algorithm import Method, Preset, Presets
from mu.core.concept import Concept, ConceptList
from mu.core.config import MOST, BaseConfig, Devices, Templates
from mu.core.tunable import Choice, Range, WholeLogRange
from mu.data.clip_sets import BothSets, check_sources, is_gradient_file
from mu.models.load_options import LoadingConfig


class DataConfig(BothSets):
    tasks: list[str] = ["celeba:data/celeba", "imagenet:data/ImageNet"]
    """Classification tasks of the search: ``celeba:FOLDER``, ``imagenet:FOLDER``, ``classes:FOLDER`` (a folder of
    images for each class), ``canvas``. The concept must be a class of one of them."""
    per_class: int = Field(8, ge=1, le=MOST)
    """Images per class, for tasks that render their own."""

    def idle(self) -> Mapping[str, str]:
        found = {} if "canvas" in self.tasks else {"per_class": "no task renders its own images"}
        files = {f"n_{kind}": f"data.{kind} is a gradient file" for kind in ("forget", "retain") if self.is_file(kind)}
        return found | files

    def is_file(self, kind: str) -> bool:
        """Whether the gradient of these pairs comes from a file."""
        return is_gradient_file(getattr(self, kind))


class GradientConfig(BaseConfig):
    batch_size: int = Field(16, ge=2, le=65_536)
    """Pairs contrasted with each other in the retain loss. It changes the loss and its gradient: on two small CLIPs the
    retain gradients of batches of 8, 32 and 64 have a median cosine of 0.96 to 0.98 to that of the published 16, and of
    0.78 in the worst tensor. For speed set ``chunk``."""
    chunk: int = Field(128, ge=1, le=65_536)
    """Pairs computed at once. It changes memory and speed, not the gradient."""
    forget_loss: Literal["cosine", "contrastive"] = "cosine"
    """``cosine``: mean of 1 - cos. ``contrastive`` (the ``_o`` variants): CLIP's contrastive loss."""
    compat: list[Literal["batch_mean", "partial_retain", "cumulative", "constant_retain_caption"]] = []
    """Reproduce the released programs. ``batch_mean``: mean of batch means, also of a shorter last forget batch.
    ``partial_retain``: a shorter last retain batch counts too, as in the Hugging Face programs. ``cumulative``:
    gradients never zeroed, over both sets. ``constant_retain_caption``: one caption for all retain pairs."""
    precondition: float | None = Field(None, gt=0)
    """Rotate the forget gradient of linear layers away from their inputs for retain pairs that do not name the concept
    (see `preconditioner`), so that more is retained. The value is the damping: 1 is gentle, 0.1 strong. Without
    effect, with a note, where data.retain is a gradient file: that holds no inputs."""
    grad_sign: str | None = Field(None, pattern=r"^[+-]$")
    """Sign of a gradient file that does not state it: ``+`` for the gradient of the loss, ``-`` for its negative.
    Files of `mu gradients` state it; the released programs' ``.pt`` files do not. Both data.forget and data.retain
    accept a gradient file in place of images."""

    def idle(self) -> Mapping[str, str]:
        if not self.accumulates or self.precondition is not None:
            return {}
        return {"chunk": f"compat {', '.join(sorted(self.accumulates))} computes one batch at a time"}

    @property
    def accumulates(self) -> set[str]:
        """The values of ``compat`` that add up batches."""
        return {"batch_mean", "cumulative"} & {*self.compat}


NORMS = ("*norm*", "*patch_embed*")
"""Patterns of what the released Hugging Face programs leave out beside `LayersConfig.exclude`."""


class LayersConfig(BaseConfig):
    tower: Literal["both", "vision", "language"] = "both"
    """Towers whose tensors may change. A diffusion model has only the language tower, LLaVA only the vision tower."""
    exclude: list[str] = [
        "*bias", "*position*", "*class_embedding", "*token_embedding*", "*pos_embed", "*cls_token", "*reg_token",
    ]  # fmt: skip
    """Patterns of tensors that are never changed: biases, and embeddings of tokens and positions, as CLIP and as timm
    (``pos_embed``, ``cls_token``, ``reg_token``) name them."""
    names: list[str] = []
    """Patterns of tensors to search instead of the Pareto front; one of them is changed, with its siblings if
    ``compat`` says so."""
    max_front: int = Field(8, ge=1)
    """Search at most this many tensors of each tower's Pareto front, those with the largest importance first."""
    compat: list[Literal["in_proj", "no_norms", "deepest", "siblings"]] = []
    """Reproduce the released programs. ``in_proj``: q, k and v of an attention are scored and moved as one tensor, as
    open_clip holds them. ``no_norms``: layer norms and the patch embedding are never changed, as in the Hugging Face
    programs. ``deepest``: only the front's tensor in the deepest block is searched, as there. ``siblings``: q, k and v
    move together, and fc1 and fc2, by the step of the chosen one, as there."""

    def idle(self) -> Mapping[str, str]:
        if self.names:
            return {"max_front": "layers.names says what is searched"}
        return {"max_front": "layers.compat deepest searches one tensor of each front"} if self.one_deepest else {}

    @property
    def one_deepest(self) -> bool:
        """Whether only the deepest tensor of each front is searched."""
        return "deepest" in self.compat and not self.names

    @property
    def unchanged(self) -> list[str]:
        """Patterns of all tensors that are never changed."""
        return [*self.exclude, *(NORMS if "no_norms" in self.compat else ())]


class ImagesConfig(BaseConfig):
    templates: dict[str, Templates] = {}
    """Prompt templates for the images of each task (``identity``, ``object``, ...), used in turn. Default: the task's
    first template."""
    forget: int = Field(8, ge=1, le=MOST)
    """Images of the concept at each step size."""
    retained: int = Field(1, ge=1, le=MOST)
    """Images of each other class, at the chosen step size."""
    steps: int = Field(20, ge=1, le=10_000)
    """Denoising steps."""
    guidance: float = 7.5
    """Guidance scale: set the one with which the model is used."""
    judge: str | None = None
    """An image classifier that replaces the CLIP: a folder of `mu classifier train`, or ``canvas-judge``. A CLIP may
    still recognise what a classifier and people no longer do."""


class SearchConfig(BaseConfig):
    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    method: Literal["grid", "reference"] = "grid"
    """``grid``: many steps at once, then a finer grid below the first step that forgets. ``reference``: ten steps,
    doubling, then halving."""
    criterion: Literal["fa1", "fa5"] = "fa5"
    """The forget accuracy that must fall: with the concept ranked first (fa1), or among the first five classes
    (fa5)."""
    target: float = Field(0.0, ge=0, le=1)
    """The forget accuracy to reach, 0 to 1."""
    rho_min: float = Field(0.004, gt=0)
    """Smallest step of the grid, as a share of the tensor's norm."""
    rho_max: float = Field(4.0, gt=0)
    """Largest step of the grid, in the same unit."""
    steps: int = Field(16, ge=2, le=10_000)
    """Number of steps in the grid, evenly spaced in the logarithm; the finer grid has half as many."""
    margin: float = Field(1.0, ge=1)
    """The chosen step is the smallest that forgets every search image, times this factor. At 1 it may barely forget."""
    on: Literal["clip", "model"] = "clip"
    """What the search evaluates: CLIP's own classification, or the images or answers of the edited model."""
    images: ImagesConfig = ImagesConfig()
    """The images that the search makes with a diffusion model."""
    retained: float = Field(0.0, ge=0, le=1)
    """Never choose a step that keeps less than this mean share of the base model's retained accuracies. The same limit
    holds for several concepts together. Concepts that are erased together do not count as retained."""

    @model_validator(mode="after")
    def _grid_goes_up(self) -> Self:
        if self.rho_min >= self.rho_max:
            raise ValueError(f"rho_min ({self.rho_min:g}) must be below rho_max ({self.rho_max:g})")
        return self

    def idle(self) -> Mapping[str, str]:
        grid = ("rho_min", "rho_max", "steps") if self.method == "reference" else ()
        images = [f"images.{name}" for name in ImagesConfig.model_fields] if self.on == "clip" else ()
        return {
            **dict.fromkeys(grid, "search.method reference has no grid"),
            **dict.fromkeys(images, "search.on is clip, which makes no images"),
        }


class SlugConfig(BaseConfig):
    """All settings of SLUG. Defaults: those of the paper's CLIP experiments."""

    model: str = "open_clip:ViT-B-32/laion400m_e32"
    """The model to edit: a CLIP, a diffusion model (its text encoder), or a LLaVA (its vision tower)."""
    clip: str | None = None
    """The CLIP that gives the gradients. Default: the model itself, if it is a CLIP."""
    concepts: ConceptList = [Concept("Elon Musk")]
    """The concepts to erase, each with one tensor of its own; all are searched on the base model."""
    data: DataConfig = DataConfig()
    """Sources of pairs and test images."""
    gradients: GradientConfig = GradientConfig()
    """The two gradients."""
    layers: LayersConfig = LayersConfig()
    """Which tensors may be changed."""
    search: SearchConfig = SearchConfig()
    """How the step size and the tensor are chosen."""
    loading: LoadingConfig = LoadingConfig()
    """How a diffusion model is loaded, if its files do not say."""
    devices: Devices = "auto"
    """GPU number, cpu, mps or auto."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number type in which the models compute. Single images decide the search, so float32 is the safe choice."""
    output_dir: str = "outputs/slug"
    """The run folder."""
    seed: int = 0
    """Seed of rendered images and all other random numbers."""

    def idle(self) -> Mapping[str, str]:
        forget, retain = self.data.is_file("forget"), self.data.is_file("retain")
        found = {"gradients.chunk": "both gradients come from files"} if forget and retain else {}
        if retain:
            found["gradients.precondition"] = (
                "data.retain is a gradient file, which holds no inputs of the layers, so each step is along the forget "
                "gradient itself: name retain images to precondition"
            )
        return found if forget or retain else {"gradients.grad_sign": "no gradient comes from a file"}

    @property
    def damping(self) -> float | None:
        """``gradients.precondition``, or None where ``data.retain`` is a gradient file, which holds no layer inputs."""
        return None if self.data.is_file("retain") else self.gradients.precondition


LLAVA = {"model": "llava-hf/llava-1.5-7b-hf", "clip": "openai/clip-vit-large-patch14-336"}
HUGGING_FACE: dict[str, Any] = {
    "data": {"caption": "concept"},
    "gradients": {"compat": ["partial_retain", "cumulative", "constant_retain_caption"]},
    "layers": {"compat": ["no_norms", "deepest", "siblings"]},
    "search": {"method": "reference"},
}
"""What the released programs for diffusion models and LLaVA do otherwise, as far as switches restore it."""


class SlugMethod(Method):
    """SLUG: move one tensor of a CLIP tower along the forget gradient until the concept is forgotten.

    @inproceedings{cai2025slug,
      title     = {Targeted Unlearning with Single Layer Unlearning Gradient},
      author    = {Cai, Zikui and Tan, Yaoteng and Asif, M. Salman},
      booktitle = {International Conference on Machine Learning (ICML)},
      year      = {2025}
    }
    """

    name = "slug"
    home = "mu.algorithms.single_layer_unlearning_gradient.algorithm:SingleLayerUnlearningGradientAlgorithm"
    config_class = SlugConfig
    tunable: ClassVar = {
        "gradients.precondition": Choice((None, 0.1, 0.3, 1.0)),
        "search.margin": Range(1.0, 1.5),
        "search.steps": WholeLogRange(6, 32),
    }
    presets = Presets(
        SlugConfig,
        Preset("clip", "any concept of a ViT-B/32: the paper's settings"),
        Preset(
            "stable-diffusion",
            "any concept of SD 2.1, in its text encoder: the paper's settings",
            {
                "model": "stabilityai/stable-diffusion-2-1",
                "clip": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                "layers": {"tower": "language"},
            },
        ),
        Preset(
            "llava",
            "any concept of LLaVA-1.5, in its vision tower: the paper's settings",
            {**LLAVA, "layers": {"tower": "vision"}, "gradients": {"chunk": 16}},
        ),
        Preset(
            "clip-preconditioned",
            "any concept of a ViT-B/32: preconditioned, a tenth beyond the step that forgets; docs/slug.md compares it",
            {"gradients": {"precondition": 0.3}, "search": {"margin": 1.1}},
        ),
        Preset(
            "clip-released",
            "any concept of a ViT-B/32: as the released open_clip program, on its tensors, with its ten steps",
            {
                "gradients": {"compat": ["batch_mean"]},
                "layers": {"compat": ["in_proj"], "max_front": 1000},
                "search": {"method": "reference"},
            },
        ),
        Preset(
            "stable-diffusion-released",
            "any concept of SD 2.1: as the released Hugging Face program",
            HUGGING_FACE,
            of="stable-diffusion",
        ),
        Preset(
            "llava-released",
            "any concept of LLaVA-1.5: as the released Hugging Face program",
            {**LLAVA, **HUGGING_FACE, "layers": {**HUGGING_FACE["layers"], "tower": "vision"}},
        ),
        Preset(
            "canvas-clip",
            "styles, objects and people of the embedded CLIP",
            Path(__file__).with_name("canvas-clip.yaml"),
        ),
        Preset("canvas", "people of the embedded diffusion model", Path(__file__).with_name("canvas.yaml")),
        Preset("canvas-vlm", "people of the embedded LLaVA", Path(__file__).with_name("canvas-vlm.yaml")),
        # Preconditioning keeps far less there: one retained image in eight shows the style without saying so.
        Preset(
            "canvas-vlm-styles",
            "styles of the embedded LLaVA",
            {"gradients": {"precondition": None}, "search": {"margin": 1.1}},
            of="canvas-vlm",
        ),
        former={"canvas-vlm-style": "canvas-vlm-styles"},
    )

    @classmethod
    def check_files(cls, config: Any) -> None:
        check_sources(config.data, config.concepts)
