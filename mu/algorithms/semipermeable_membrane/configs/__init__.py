"""Settings of SPM, with the names that the original YAML files and later unlearning packages use.

Every key of those files is used, refused, or logged with the reason why it has no effect (`notes`). Keys that
correspond to no current setting are in `legacy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from mu.algorithms.semipermeable_membrane.configs.legacy import LegacyConfig, LegacyPromptConfig, LegacyTrainConfig
from mu.core.algorithm import Preset, Presets
from mu.core.concept import Concept, folded
from mu.core.config import MOST, BaseConfig, Devices, Renewed, Templates, read_yaml, values_set
from mu.core.errors import ConfigError, quoted
from mu.core.files import fitting
from mu.core.tunable import LogRange, Range
from mu.edits.gates import Arithmetic, FacilitatedTransport, FixedStrength, Gate, Metric
from mu.training.calibration_config import CalibrateConfig
from mu.training.diffusion_config import CALIBRATED, DiffusionMethod, Draws, calibrated_away


class PretrainedModelConfig(BaseConfig):
    ckpt_path: str = "CompVis/stable-diffusion-v1-4"
    """The model: ``canvas``, a hub id, a diffusers folder, or a single CompVis .safetensors/.ckpt file."""
    name_or_path: str | None = None
    """Another name for ckpt_path, from the original YAML files; takes precedence."""
    v2: bool | None = None
    """Whether the model is SD 2.x. Detected from the model; a setting that contradicts the model is refused."""
    v_pred: bool | None = None
    """Whether the UNet predicts v. Read from the model's scheduler; true sets it if the scheduler does not say."""
    clip_skip: int | None = Field(None, ge=1)
    """Use the text encoder's hidden states this many layers from the end; 1 (default) is the last layer."""

    @property
    def name(self) -> str:
        return self.name_or_path or self.ckpt_path


class NetworkConfig(BaseConfig):
    rank: int = Field(1, ge=1, le=4096)
    """Rank of each adapter. 1 is enough for one concept; several targets in one adapter may need more."""
    alpha: float | None = 1.0
    """The delta is multiplied by alpha / rank; null or 0 means alpha = rank."""


class TrainConfig(Renewed):
    legacy = LegacyTrainConfig

    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """Number type in which the frozen model computes (autocast). Adapters and optimiser stay float32."""
    noise_scheduler: Literal["ddim", "ddpm", "lms", "euler_a"] = "ddim"
    """Sampler that produces the partially denoised latents from noise."""
    iterations: int = Field(3000, ge=1)
    """Optimiser steps."""
    batch_size: int | None = Field(None, ge=1, le=65_536)
    """Factor on ``draws``: an update has draws x batch_size independent draws, each with the prompt.batch_size samples
    of its target. Default: 1. (The original reads it and ignores it.)"""
    draws: Draws = None
    """Independent draws of target, noise and timestep whose mean gradient is one update. Several processes share them.
    Default: one, or one for each process."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of the adapters."""
    optimizer_type: str = "AdamW8bit"
    """AdamW, AdamW8bit, Lion, Prodigy, or any torch.optim class. Without bitsandbytes AdamW8bit is plain AdamW, with
    nearly the same results."""
    optimizer_args: list[str] | None = None
    """Further ``key=value`` arguments of the optimiser."""
    lr_scheduler: str = "cosine_with_restarts"
    """Any schedule name from diffusers, ``one_cycle``, or ``adafactor:<lr>``."""
    lr_warmup_steps: int = Field(500, ge=0)
    """Steps of linear warm-up from 0. If the run is not longer than the warm-up, a tenth of the iterations."""
    lr_scheduler_num_cycles: int = Field(3, ge=1)
    """Cycles of cosine_with_restarts after the warm-up."""
    lr_scheduler_power: float = Field(1.0, gt=0)
    """Exponent of the polynomial schedule."""
    lr_scheduler_args: str | list[str] = ""
    """Further ``key=value`` arguments of the schedule."""
    max_grad_norm: float = Field(0.0, ge=0)
    """Clip the gradient's norm to this value; 0 turns clipping off."""
    max_denoising_steps: int = Field(30, ge=2, le=10_000)
    """K: each training step denoises for 1 .. K-1 of K steps before it compares predictions."""
    denoising_guidance: float = 3.0
    """Guidance scale of that partial denoising."""
    timestep_map: Literal["reference", "aligned"] = "reference"
    """``reference``: the UNet gets timestep 999 - 1000 k / K, about one step noisier than the latents. ``aligned``: it
    gets the timestep of the latents."""
    latent_pool: int = Field(0, ge=0, le=MOST)
    """Faster, but not equivalent: draw the latents from a pool of this size for each target. On average every fourth
    step renews one entry. 0 is off."""
    timesteps_per_trajectory: int = Field(1, ge=1, le=10_000)
    """Faster, but not equivalent: use this many points of each partial denoising, in as many training steps on its
    target."""
    compile: bool = False
    """Run the UNet through torch.compile: takes minutes to start, then steps on a GPU are faster."""

    @property
    def drawn(self) -> int:
        """Independent draws in one update."""
        return (self.draws or 1) * (self.batch_size or 1)

    def idle(self) -> Mapping[str, str]:
        kind, found = self.lr_scheduler.lower(), {}
        if kind != "cosine_with_restarts":
            found["lr_scheduler_num_cycles"] = "only lr_scheduler cosine_with_restarts has cycles"
        if kind != "polynomial":
            found["lr_scheduler_power"] = "only lr_scheduler polynomial has an exponent"
        if kind in ("constant", "piecewise_constant") or kind.startswith("adafactor:"):
            found["lr_warmup_steps"] = f"lr_scheduler {kind} has no warm-up"
        return found


class SaveConfig(BaseConfig):
    name: str | None = None
    """Stem of the final file: ``<name>_last.safetensors``. Default: semipermeable_membrane_<template_name>."""
    path: str | None = None
    """Another name for output_dir, from the original YAML files."""
    per_steps: int = Field(500, ge=1)
    """Steps between checkpoints; an interruption loses at most this many steps."""
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """Number type of the exported SPM file."""


class PromptConfig(Renewed):
    legacy = LegacyPromptConfig

    target: Concept | None = None
    """The prompt whose predictions change: what users will type. Default: the concept of template_name."""
    positive: str | None = None
    """The prompt whose direction is subtracted. Default: target."""
    unconditional: str = ""
    """Negative prompt of the guidance."""
    neutral: str | None = None
    """What the target should become (a concept here gives reconsolidation: Joker -> Batman). Default: unconditional."""
    action: Literal["erase", "erase_with_la"] = "erase_with_la"
    """``erase_with_la`` also keeps the predictions for anchors unchanged (latent anchoring)."""
    guidance_scale: float = 1.0
    """eta of Eq. 4: how far past the neutral concept the target is pushed. Not the guidance scale of sampling."""
    resolution: int | None = Field(None, ge=8, le=16_384)
    """Height and width in training, in pixels. Default: the size the model was trained for."""
    dynamic_resolution: bool = False
    """Draw height and width at each step from the multiples of 64 in [resolution/2, resolution)."""
    batch_size: int | None = Field(None, ge=1, le=65_536)
    """B, samples of the target in one draw, at one timestep. Default: 1."""
    dynamic_crops: bool = False
    """SDXL: draw the original size and crop corner of the size conditioning at each step."""
    use_template: bool = False
    """Put target and positive into one of ``templates`` at each step, drawn at random."""
    templates: Templates = Field(
        ["{}", "a photo of {}", "a picture of {}", "{}, detailed", "an image with {}", "art of {}"], min_length=1
    )
    """The templates that use_template draws from; ``{}`` is the concept. Give the templates that your users type."""
    template_neutral: bool = False
    """Put ``neutral`` into the drawn template too: "a fish in {} style" then becomes the same prompt without the
    concept, and keeps its fish."""
    la_strength: float = Field(1000.0, ge=0)
    """lambda of Eq. 8, weight of latent anchoring. A larger value retains other concepts better and erases less."""
    sampling_batch_size: int = Field(4, ge=1, le=65_536)
    """S, anchors in one draw; a multiple of prompt.batch_size."""
    anchor_layout: Literal["paper", "reference", "paper+empty"] = "paper"
    """``paper``: S anchors. ``reference``: as in the released code, half of them are the unconditional prompt.
    ``paper+empty``: S anchors and the unconditional prompt."""
    anchors: Literal["gaussian", "vocabulary"] = "gaussian"
    """``gaussian``: isotropic directions, as in the released code. ``vocabulary``: texts of random words, weighted by
    Eq. 6."""
    anchor_alpha: float = Field(1.0, ge=0)
    """Exponent of Eq. 6 for vocabulary anchors: a larger value prefers texts far from the target."""

    @field_validator("positive")
    @classmethod
    def _not_empty(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty and would erase nothing: name a concept or leave the key out")
        return text

    @model_validator(mode="after")
    def _templates_are_used(self) -> Self:
        if self.template_neutral and not self.use_template:
            raise ValueError("template_neutral has no effect without use_template: set both")
        return self

    def idle(self) -> Mapping[str, str]:
        found = {} if self.use_template else {"templates": "use_template is off"}
        if not self.anchored:
            names = ("sampling_batch_size", "anchor_layout", "anchors", "anchor_alpha")
            none = "action erase has no anchors" if self.action == "erase" else "la_strength is 0"
            found |= dict.fromkeys(names, none)
        elif self.anchor_layout == "reference" and self.sampling_batch_size == 1:
            found["anchor_layout"] = "half of one anchor is none"
        if self.action == "erase":
            found["la_strength"] = "action erase has no anchors"
        return found

    @property
    def anchored(self) -> bool:
        """Whether anchors are drawn."""
        return self.action == "erase_with_la" and self.la_strength > 0


class GateConfig(BaseConfig):
    kind: Literal["facilitated_transport", "fixed"] = "facilitated_transport"
    """How much of the saved edit passes: by the similarity of prompt and concept, or in full for every prompt."""
    factor: float = 1.0
    """Multiplies the gate; the paper doubles it for styles and nudity."""
    metric: Metric = "clipcos_tokenuni"
    """Similarity of prompt embeddings, of tokens, or the larger of the two."""
    arithmetic: Arithmetic = "paper"
    """``reference`` reproduces the released code: gamma squared, and cross terms between several SPMs."""

    def idle(self) -> Mapping[str, str]:
        return {"metric": "a fixed gate compares nothing"} if self.kind == "fixed" else {}

    def typed(self) -> Gate:
        """The gate that is written to the edit's file."""
        if self.kind == "fixed":
            return FixedStrength(self.factor, self.arithmetic)
        return FacilitatedTransport(self.factor, self.metric, self.arithmetic)


class SemipermeableMembraneConfig(Renewed):
    """All settings of SPM. Defaults: the published settings for objects on SD 1.4 (3000 steps)."""

    legacy = LegacyConfig

    pretrained_model: PretrainedModelConfig = PretrainedModelConfig()
    """The model and how it is loaded."""
    network: NetworkConfig = NetworkConfig()
    """The adapters."""
    train: TrainConfig = TrainConfig()
    """The optimisation."""
    prompt: PromptConfig = PromptConfig()
    """What is erased. Values that are not set follow from template_name."""
    prompts: list[PromptConfig] | None = None
    """Several targets in one adapter, one drawn at each step; replaces ``prompt``."""
    prompts_file: str | None = None
    """YAML file with a list of such entries, the original's second file."""
    calibrate: CalibrateConfig = CalibrateConfig()
    """Settings by measurement, on the model in front of the search."""
    gate: GateConfig = GateConfig()
    """Facilitated transport: the gate that is saved with the edit."""
    save: SaveConfig = SaveConfig()
    """What is written and when."""
    template_name: str = "Abstractionism"
    """The concept, and part of the file's name; an underscore means a space in prompts."""
    devices: Devices = "0"
    """GPU numbers (of several, each gets a process in `mu erase`), or cpu, mps, auto."""
    output_dir: str = "outputs/semipermeable_membrane/finetuned_models"
    """Folder of the final SPM file."""
    run_dir: str | None = None
    """The run folder. Default: a folder in output_dir named after the concept."""
    seed: int = 0
    """Seed of all random numbers: the same seed gives the same edit."""
    verbose: bool = True
    """Write more lines to the log."""

    @field_validator("template_name")
    @classmethod
    def _named(cls, name: str) -> str:
        Concept.named(name)
        return name

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        train, notes = self.train, []
        if train.latent_pool and train.timesteps_per_trajectory > 1:
            notes.append("train.latent_pool and train.timesteps_per_trajectory both reuse latents: set one of them")
        if train.drawn > 1 and (train.latent_pool or train.timesteps_per_trajectory > 1):
            name = "latent_pool" if train.latent_pool else "timesteps_per_trajectory"
            other = "draws" if (train.draws or 1) > 1 else "batch_size"
            notes.append(
                f"train.{name} reuses latents from draw to draw, but train.{other} makes draws independent: set one"
            )
        for entry in [] if self.prompts_file else self.given():
            notes += self._wrong(entry)
        if notes:
            raise ValueError(notes[0])
        return self

    def _wrong(self, entry: PromptConfig) -> list[str]:
        """The errors in an entry, one line each. Entries of ``prompts_file`` are checked when the file is read."""
        lines = []
        if entry.sampling_batch_size % (entry.batch_size or 1):
            lines.append("prompt.sampling_batch_size must be a multiple of prompt.batch_size")
        if (entry.neutral or entry.unconditional).strip():
            full = self._filled(entry)
            target, positive, neutral = (folded(str(text)) for text in (full.target, full.positive, full.neutral))
            if target == neutral and (positive == neutral or entry.guidance_scale == 0):
                lines.append(
                    f"prompt.neutral is the same as the target ({quoted(full.target)}) and would erase nothing: "
                    "name another"
                )
        return lines

    @classmethod
    def put(cls, values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
        """Like `BaseConfig.put`, but a new ``template_name`` also replaces a target that named the old one."""
        prompt = values.get("prompt")
        if "template_name" in layer and isinstance(prompt, Mapping):
            name = str(values.get("template_name", cls.model_fields["template_name"].default))
            old = (name, " ".join(name.replace("_", " ").split()))
            kept = {key: text for key, text in prompt.items() if not (key in ("target", "positive") and text in old)}
            values = {**values, "prompt": kept}
        return super().put(values, layer)

    @property
    def model(self) -> str:
        return self.pretrained_model.name

    @property
    def concept(self) -> Concept:
        return Concept.named(self.template_name)

    @property
    def file_stem(self) -> str:
        return self.save.name or fitting(f"semipermeable_membrane_{self.template_name.replace('/', '_')}")

    @property
    def folder(self) -> Path:
        return Path(self.save.path or self.output_dir)

    def given(self) -> list[PromptConfig]:
        """The prompt settings in use, as written: from ``prompts_file``, else ``prompts``, else ``prompt``."""
        if not self.prompts_file:
            return self.prompts or [self.prompt]
        entries = read_prompts_file(self.prompts_file)
        for line in (line for entry in entries for line in self._wrong(entry)):
            raise ConfigError(f"{self.prompts_file}: {line}")
        return entries

    def entries(self) -> list[PromptConfig]:
        """The prompt settings with every derived value filled in."""
        return [self._filled(entry) for entry in self.given()]

    def _filled(self, entry: PromptConfig) -> PromptConfig:
        # A YAML alias of template_name (``target: *template_name``) means the concept, with spaces for underscores.
        target, positive = (
            self.concept if text == self.template_name else text for text in (entry.target, entry.positive)
        )
        target = target or self.concept
        derived = {
            "target": target,
            "positive": positive or target,
            "neutral": entry.unconditional if entry.neutral is None else entry.neutral,
            "batch_size": entry.batch_size or 1,
        }
        return entry.model_copy(update=derived)

    def idle(self) -> Mapping[str, str]:
        several = "prompts_file" if self.prompts_file else "prompts" if self.prompts else None
        unweighted = {f"prompt.{name}": why for name, why in self._unweighted(self.prompt).items()}
        found = {"prompt": f"{several} replaces it"} if several else unweighted
        found |= calibrated_away(self)
        if self.prompts_file:
            found["prompts"] = "prompts_file replaces it"
        if self.pretrained_model.name_or_path:
            found["pretrained_model.ckpt_path"] = "pretrained_model.name_or_path is used"
        if self.save.path:
            found["output_dir"] = "save.path is used"
        if self.calibrate.on:
            found["calibrate.weight"] = "prompt.la_strength is the weight of what is kept"
        return found

    def unused(self) -> dict[str, str]:
        """Like `BaseConfig.unused`, with the entries in use as ``prompt``, from wherever they are."""
        found = {name: why for name, why in super().unused().items() if not name.startswith("prompt.")}
        here = {name.removeprefix("prompt."): why for name, why in self.idle().items() if name.startswith("prompt.")}
        below = [
            each
            for entry in self.given()
            for each in (entry.unused() | entry.departing(here | self._unweighted(entry))).items()
        ]
        return found | {f"prompt.{name}": why for name, why in below}

    def _unweighted(self, entry: PromptConfig) -> dict[str, str]:
        """The weighting of an entry's anchors, if it has none, with the reason. A calibrated search weights its own."""
        plain = entry.anchored and entry.anchors == "gaussian" and not self.calibrate.on
        return {"anchor_alpha": "only vocabulary anchors are weighted"} if plain else {}


def read_prompts_file(path: str) -> list[PromptConfig]:
    """Read the original's prompt list: a YAML list of entries (or one entry), each with a ``target``."""
    values = read_yaml(path, list[PromptConfig] | PromptConfig)
    entries = values if isinstance(values, list) else [values]
    if not entries or not all(isinstance(entry, Mapping) and entry.get("target") for entry in entries):
        raise ConfigError(f"{path}: each entry of a prompts file needs a target")
    return [PromptConfig.parse(entry) for entry in entries]


def _entries(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The prompt settings in use in plain ``values``, as in `SemipermeableMembraneConfig.given`."""
    if values.get("prompts_file"):
        found: Any = [values_set(entry) for entry in read_prompts_file(values["prompts_file"])]
    else:
        found = values.get("prompts") or [values.get("prompt") or {}]
    if not isinstance(found, Sequence) or not all(isinstance(entry, Mapping) for entry in found):
        raise ConfigError("prompt must be a mapping of keys to values, and prompts a list of mappings")
    return list(found)


def _name(concept: Concept) -> str:
    """A template_name for ``concept`` without its own underscores: those of a template_name are read as spaces."""
    return concept.replace("_", "-").replace(" ", "_")


class SemipermeableMembraneMethod(DiffusionMethod):
    """Concept Semi-Permeable Membrane: rank-1 adapters that erase one concept; latent anchoring retains the others.

    @inproceedings{lyu2024one,
      title     = {One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications},
      author    = {Lyu, Mengyao and Yang, Yuhong and Hong, Haiwen and Chen, Hui and Jin, Xuan and He, Yuan and Xue, Hui
                   and Han, Jungong and Ding, Guiguang},
      booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
      year      = {2024}
    }
    """

    name = "spm"
    home = "mu.algorithms.semipermeable_membrane.algorithm:SemipermeableMembraneAlgorithm"
    config_class = SemipermeableMembraneConfig
    tunable: ClassVar = {
        "train.lr": LogRange(3e-5, 1e-2),
        "prompt.guidance_scale": Range(0.5, 4.0),
        "prompt.la_strength": LogRange(1.0, 2000.0),
    }
    set_by: ClassVar = {
        **DiffusionMethod.set_by,
        "--concept": ("template_name", "prompt.target", "prompts", "prompts_file"),
        "--model": ("pretrained_model.ckpt_path", "pretrained_model.name_or_path"),
        "--track": ("logging.use_wandb",),
    }
    default_preset = "calibrated"
    presets = Presets(
        SemipermeableMembraneConfig,
        CALIBRATED._replace(
            values={
                "calibrate": {"on": True, "rate": 0.02},
                "train": {
                    "iterations": 400,
                    "optimizer_type": "AdamW",
                    "max_denoising_steps": 10,
                },
                "prompt": {
                    "use_template": True,
                    "template_neutral": True,
                    "guidance_scale": 0.5,
                    "la_strength": 10.0,
                },
            }
        ),
        Preset(
            "objects",
            "objects on SD 1.4: the published settings",
            {"prompt": {"dynamic_resolution": True}, "template": "object"},
        ),
        Preset(
            "styles",
            "art styles on SD 1.4: the published settings, with a doubled gate",
            {"template": "style", "gate": {"factor": 2.0}},
            of="objects",
        ),
        Preset(
            "nudity",
            "nudity on SD 1.4: the published settings, 15,000 steps",
            {
                "template": "i2p",
                "dataset_type": "i2p",
                "template_name": "nudity",
                "train": {"iterations": 15_000},
                "prompt": {"guidance_scale": 3.0, "la_strength": 100.0},
                "gate": {"factor": 2.0},
            },
            of="objects",
        ),
        Preset(
            "released",
            "objects by the released program: its rows of anchors, and its gate squared",
            {"prompt": {"anchor_layout": "reference"}, "gate": {"arithmetic": "reference"}},
            of="objects",
        ),
        Preset("canvas", "styles and objects of the embedded model", Path(__file__).with_name("canvas.yaml")),
    )

    @classmethod
    def with_concepts(cls, values: Mapping[str, Any], concepts: Sequence[Concept], model: str | None) -> dict[str, Any]:
        """Plain ``values`` that erase ``concepts`` from the ``model`` of this name.

        If they erase one concept by an entry of ``prompts`` or of a prompts file, that entry's other values are kept.
        """
        if not concepts:
            raise ConfigError("nothing to erase: name a concept")
        entry, *others = _entries(values)
        if others:
            raise ConfigError(
                f"the settings erase {1 + len(others)} targets with separate entries: edit prompts instead"
            )
        entries = [{**entry, "target": concept, "positive": None} for concept in concepts]
        several = len(entries) > 1
        chosen: dict[str, Any] = {
            "template_name": "+".join(map(_name, concepts)),
            "prompts_file": None,
            "prompts": entries if several else None,
            **({} if several else {"prompt": entries[0]}),
        }
        if model:
            chosen["pretrained_model"] = {"ckpt_path": model}
        return SemipermeableMembraneConfig.put(values, chosen)

    @classmethod
    def check_files(cls, config: Any) -> None:
        super().check_files(config)
        config.given()


# The names in the original documents; "semipermiable" is their misspelling, kept because users' scripts import it.
semipermiable_membrane_train_mu = SemipermeableMembraneConfig.parse({"prompt": {"dynamic_resolution": True}})
semipermiable_membrane_train_i2p = SemipermeableMembraneConfig.parse(
    {
        "prompt": {"dynamic_resolution": True},
        "dataset_type": "i2p",
        "template": "i2p",
        "template_name": "self-harm",
    }
)
