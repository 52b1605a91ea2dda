"""Settings of SPM, under the names that the original YAML files and the unlearning packages after it use.

Every key of those files is honoured, refused, or answered in the log with a line that says why it has no effect (`notes`); those
that no live setting stands behind are in `legacy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from mu.algorithms.semipermeable_membrane.configs.legacy import LegacyConfig, LegacyPromptConfig, LegacyTrainConfig
from mu.core.concept import Concept, folded
from mu.core.config import BaseConfig, Devices, Renewed, Templates, read_yaml, values_set
from mu.core.errors import ConfigError
from mu.core.presets import Presets
from mu.edits.gates import Arithmetic, FacilitatedTransport, FixedStrength, Gate, Metric


class PretrainedModelConfig(BaseConfig):
    ckpt_path: str = "CompVis/stable-diffusion-v1-4"
    """The model: ``canvas``, a hub id, a diffusers folder, or a single CompVis .safetensors/.ckpt file."""
    name_or_path: str | None = None
    """Another name of ckpt_path, from the original YAML files; takes precedence."""
    v2: bool | None = None
    """Whether the model is SD 2.x. Read from the model itself; a setting that contradicts it is refused."""
    v_pred: bool | None = None
    """Whether the UNet predicts v. Read from the model's scheduler; true makes it so where the scheduler does not know."""
    clip_skip: int | None = Field(None, ge=1)
    """Take the text encoder's hidden state this many layers from the end; 1 (default) is the last."""

    @property
    def name(self) -> str:
        return self.name_or_path or self.ckpt_path


class NetworkConfig(BaseConfig):
    rank: int = Field(1, ge=1)
    """Rank of each adapter. 1 is enough for one concept; several targets in one adapter may want more."""
    alpha: float | None = 1.0
    """The shift is multiplied by alpha / rank; null or 0 means alpha = rank."""


class TrainConfig(Renewed):
    legacy = LegacyTrainConfig

    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """What the frozen model computes in (autocast). Adapters and optimiser stay float32."""
    noise_scheduler: Literal["ddim", "ddpm", "lms", "euler_a"] = "ddim"
    """Walks from noise to the partially denoised latents."""
    iterations: int = Field(3000, ge=1)
    """Optimiser steps."""
    batch_size: int | None = Field(None, ge=1)
    """Another place for prompt.batch_size (the original reads it and does nothing)."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of the adapters."""
    optimizer_type: str = "AdamW8bit"
    """AdamW, AdamW8bit (plain AdamW without bitsandbytes: nearly the same numbers), Lion, Prodigy, any torch.optim class."""
    optimizer_args: list[str] | None = None
    """Further ``key=value`` arguments of the optimiser."""
    lr_scheduler: str = "cosine_with_restarts"
    """Any schedule name of diffusers, ``one_cycle``, or ``adafactor:<lr>``."""
    lr_warmup_steps: int = Field(500, ge=0)
    """Steps of linear warm-up from 0; cut to a tenth of the iterations where a run is shorter than the warm-up."""
    lr_scheduler_num_cycles: int = Field(3, ge=1)
    """Cycles of cosine_with_restarts after the warm-up."""
    lr_scheduler_power: float = Field(1.0, gt=0)
    """Exponent of the polynomial schedule."""
    lr_scheduler_args: str | list[str] = ""
    """Further ``key=value`` arguments of the schedule."""
    max_grad_norm: float = Field(0.0, ge=0)
    """Clip the gradient's norm to this; 0 is off."""
    max_denoising_steps: int = Field(30, ge=2)
    """K: each step denoises 1 .. K-1 of K steps before it compares predictions."""
    denoising_guidance: float = 3.0
    """Guidance scale of that partial denoising."""
    timestep_map: Literal["reference", "aligned"] = "reference"
    """``reference``: the UNet is told 999 - 1000 k / K, about one step noisier than the latents are. ``aligned``: the truth."""
    latent_pool: int = Field(0, ge=0)
    """Not equivalent, faster: draw the latents from a pool of this many for each target, of which every fourth step renews one. 0 is off."""
    timesteps_per_trajectory: int = Field(1, ge=1)
    """Not equivalent, faster: use so many points of each partial denoising, one in each of so many steps on its target."""
    compile: bool = False
    """Run the UNet through torch.compile: minutes to start, faster steps on a GPU."""


class SaveConfig(BaseConfig):
    name: str | None = None
    """Stem of the final file: ``<name>_last.safetensors``. Default: semipermeable_membrane_<template_name>."""
    path: str | None = None
    """Another name of output_dir, from the original YAML files."""
    per_steps: int = Field(500, ge=1)
    """Steps between checkpoints; also the most that an interruption loses."""
    precision: Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"] = "float32"
    """Type of the numbers in the exported SPM file."""


class PromptConfig(Renewed):
    legacy = LegacyPromptConfig

    target: Concept | None = None
    """What users will type and what must change. Default: the concept of template_name."""
    positive: str | None = None
    """The direction to subtract. Default: target."""
    unconditional: str = ""
    """Negative branch of the guidance."""
    neutral: str | None = None
    """What the target should become (a concept here gives reconsolidation: Joker -> Batman). Default: unconditional."""
    action: Literal["erase", "erase_with_la"] = "erase_with_la"
    """``erase_with_la`` also holds the predictions for anchors (latent anchoring)."""
    guidance_scale: float = 1.0
    """eta of Eq. 4: how far past the neutral concept the target is pushed. Not the guidance of sampling."""
    resolution: int | None = Field(None, ge=8)
    """Pixels of height and width in training. Default: what the model was trained for."""
    dynamic_resolution: bool = False
    """Draw height and width anew each step from the multiples of 64 in [resolution/2, resolution)."""
    batch_size: int | None = Field(None, ge=1)
    """B, samples of the target a step. Default 1."""
    dynamic_crops: bool = False
    """SDXL: draw original size and crop corner of the size conditioning each step."""
    use_template: bool = False
    """Each step puts target and positive into one of ``templates``, drawn at random."""
    templates: Templates = Field(
        ["{}", "a photo of {}", "a picture of {}", "{}, detailed", "an image with {}", "art of {}"], min_length=1
    )
    """What use_template draws from; ``{}`` is the concept. Give the templates that your users type."""
    template_neutral: bool = False
    """Put ``neutral`` into the drawn template too: "a fish in {} style" then becomes what it is without the concept, fish and all."""
    la_strength: float = Field(1000.0, ge=0)
    """lambda of Eq. 8, weight of latent anchoring. Larger keeps other concepts better and erases less."""
    sampling_batch_size: int = Field(4, ge=1)
    """S, anchors a step; a multiple of batch_size."""
    anchor_layout: Literal["paper", "reference", "paper+empty"] = "paper"
    """``paper``: S anchors. ``reference``: as the released code, half of them are the unconditional prompt. ``paper+empty``: S and it."""
    anchors: Literal["gaussian", "vocabulary"] = "gaussian"
    """Anchors are isotropic directions as in the released code, or texts of random words, weighted by Eq. 6."""
    anchor_alpha: float = Field(1.0, ge=0)
    """Exponent of Eq. 6 for vocabulary anchors: larger prefers texts that are far from the target."""

    @field_validator("positive")
    @classmethod
    def _not_empty(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty: training on it would erase nothing; name a concept or leave the key out")
        return text

    @model_validator(mode="after")
    def _templates_are_used(self) -> Self:
        if self.template_neutral and not self.use_template:
            raise ValueError("template_neutral has no effect without use_template: set both")
        return self


class GateConfig(BaseConfig):
    kind: Literal["facilitated_transport", "fixed"] = "facilitated_transport"
    """How the saved edit passes: by likeness of prompt and concept, or in full for every prompt."""
    factor: float = 1.0
    """Multiplies the gate; the paper doubles it for styles and nudity."""
    metric: Metric = "clipcos_tokenuni"
    """Likeness of embeddings, of tokens, or the larger of both."""
    arithmetic: Arithmetic = "paper"
    """``reference`` reproduces the released code: gamma squared, and cross terms between several SPMs."""

    def typed(self) -> Gate:
        """The gate of the edit's file."""
        if self.kind == "fixed":
            return FixedStrength(self.factor, self.arithmetic)
        return FacilitatedTransport(self.factor, self.metric, self.arithmetic)


class SemipermeableMembraneConfig(Renewed):
    """All settings of SPM. Without a preset they are the published ones for objects on SD 1.4 (3000 steps)."""

    legacy = LegacyConfig

    pretrained_model: PretrainedModelConfig = PretrainedModelConfig()
    """The model and how it is read."""
    network: NetworkConfig = NetworkConfig()
    """The adapters."""
    train: TrainConfig = TrainConfig()
    """The optimisation."""
    prompt: PromptConfig = PromptConfig()
    """What is erased; what is not set follows from template_name."""
    prompts: list[PromptConfig] | None = None
    """Several targets in one adapter, one drawn each step; replaces ``prompt``."""
    prompts_file: str | None = None
    """YAML list of such entries, the original's second file."""
    gate: GateConfig = GateConfig()
    """Facilitated transport: what the edit's file says of how it passes."""
    save: SaveConfig = SaveConfig()
    """What is written and when."""
    template_name: str = "Abstractionism"
    """The concept, and part of the file's name; underscores stand for spaces in prompts."""
    devices: Devices = "0"
    """GPU numbers (the first does the work), or cpu, mps, auto."""
    output_dir: str = "outputs/semipermeable_membrane/finetuned_models"
    """Where the final SPM file goes."""
    run_dir: str | None = None
    """Where the run's records go. Default: a folder in output_dir named after the concept."""
    seed: int = 0
    """Decides all random numbers: same seed, same edit."""
    verbose: bool = True
    """More lines in the log."""

    @field_validator("template_name")
    @classmethod
    def _named(cls, name: str) -> str:
        Concept.named(name)
        return name

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        train, notes = self.train, []
        if train.latent_pool and train.timesteps_per_trajectory > 1:
            notes.append("train.latent_pool and train.timesteps_per_trajectory are two ways to reuse latents: set one of them")
        for entry in [] if self.prompts_file else self.given():
            notes += self._wrong(entry)
        if notes:
            raise ValueError(notes[0])
        return self

    def _wrong(self, entry: PromptConfig) -> list[str]:
        """What is wrong with an entry, one line each; the entries of ``prompts_file`` are known when it is read only."""
        size, lines = self.train.batch_size, []
        if size not in (None, 1) and entry.batch_size not in (None, size):
            lines.append(f"train.batch_size ({size}) and prompt.batch_size ({entry.batch_size}) disagree")
        if entry.sampling_batch_size % (entry.batch_size or size or 1):
            lines.append("prompt.sampling_batch_size must be a multiple of the batch size")
        if (entry.neutral or entry.unconditional).strip():
            full = self._filled(entry)
            target, positive, neutral = (folded(str(text)) for text in (full.target, full.positive, full.neutral))
            if target == neutral and (positive == neutral or entry.guidance_scale == 0):
                lines.append(
                    f"prompt.neutral is the target itself ({full.target!r}): training would erase nothing, name another"
                )
        return lines

    @classmethod
    def put(cls, values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
        """As `BaseConfig.put`; a new ``template_name`` also replaces a target that named the old one."""
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
        return self.save.name or f"semipermeable_membrane_{self.template_name.replace('/', '_')}"

    @property
    def folder(self) -> Path:
        return Path(self.save.path or self.output_dir)

    def given(self) -> list[PromptConfig]:
        """The prompt settings that count, as written: of ``prompts_file``, else ``prompts``, else ``prompt``."""
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
        # A YAML alias of template_name (``target: *template_name``) means the concept, spaces for underscores.
        target, positive = (self.concept if text == self.template_name else text for text in (entry.target, entry.positive))
        target = target or self.concept
        derived = {
            "target": target,
            "positive": positive or target,
            "neutral": entry.unconditional if entry.neutral is None else entry.neutral,
            "batch_size": entry.batch_size or self.train.batch_size or 1,
        }
        return entry.model_copy(update=derived)

    def notes(self) -> list[str]:
        """What was set and has no effect here, one line each."""
        sections = (self.train.old, self.old, *(entry.old for entry in self.given()))
        return list(dict.fromkeys(line for old in sections for line in old.notes()))


def read_prompts_file(path: str) -> list[PromptConfig]:
    """The original's prompt list: a YAML list of entries (or one entry), each with its ``target``."""
    values = read_yaml(path)
    entries = values if isinstance(values, list) else [values]
    if not entries or not all(isinstance(entry, Mapping) and entry.get("target") for entry in entries):
        raise ConfigError(f"{path}: each entry of a prompts file needs a target")
    return [PromptConfig.parse(entry) for entry in entries]


_PUBLISHED = SemipermeableMembraneConfig.parse({"prompt": {"dynamic_resolution": True}})

PRESETS: Presets[SemipermeableMembraneConfig] = Presets({
    "objects": _PUBLISHED.merged({"template": "object"}),
    "styles": _PUBLISHED.merged({"template": "style", "gate": {"factor": 2.0}}),
    "nudity": _PUBLISHED.merged({
        "template": "i2p", "dataset_type": "i2p", "template_name": "nudity", "train": {"iterations": 15_000},
        "prompt": {"guidance_scale": 3.0, "la_strength": 100.0}, "gate": {"factor": 2.0},
    }),
    "canvas": lambda: SemipermeableMembraneConfig.load(Path(__file__).with_name("canvas.yaml")),
})  # fmt: skip
"""The published settings for objects, styles and nudity on Stable Diffusion, and one for the embedded model."""


def naming(values: Mapping[str, Any], concepts: Sequence[Concept], model: str | None) -> dict[str, Any]:
    """Plain ``values`` with ``concepts`` put in, and with the name of the ``model``.

    Settings that erase one concept by an entry of ``prompts`` or of a prompts file keep that entry's other values.
    """
    if not concepts:
        raise ConfigError("nothing to erase: name a concept")
    entry, *others = _entries(values)
    if others:
        raise ConfigError(f"the settings erase {1 + len(others)} targets, each in its own way: change prompts in them instead")
    entries = [{**entry, "target": concept, "positive": None} for concept in concepts]
    several = len(entries) > 1
    chosen: dict[str, Any] = {
        "template_name": "+".join(map(_name, concepts)), "prompts_file": None,
        "prompts": entries if several else None, **({} if several else {"prompt": entries[0]}),
    }  # fmt: skip
    if model:
        chosen["pretrained_model"] = {"ckpt_path": model}
    return SemipermeableMembraneConfig.put(values, chosen)


def _entries(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The prompt settings that count in plain ``values``, as `SemipermeableMembraneConfig.given` tells them."""
    if values.get("prompts_file"):
        found: Any = [values_set(entry) for entry in read_prompts_file(values["prompts_file"])]
    else:
        found = values.get("prompts") or [values.get("prompt") or {}]
    if not isinstance(found, Sequence) or not all(isinstance(entry, Mapping) for entry in found):
        raise ConfigError("prompt must hold keys and values, and prompts a list of such")
    return list(found)


def _name(concept: Concept) -> str:
    """A name of ``concept`` that is not its own text: a target that is written as ``template_name`` means spaces for underscores."""
    return concept.replace("_", "-").replace(" ", "_")


# The seed documents' names; "semipermiable" is their public misspelling, kept because users' scripts import it.
semipermiable_membrane_train_mu = SemipermeableMembraneConfig.parse({"prompt": {"dynamic_resolution": True}})
semipermiable_membrane_train_i2p = SemipermeableMembraneConfig.parse({
    "prompt": {"dynamic_resolution": True}, "dataset_type": "i2p", "template": "i2p", "template_name": "self-harm",
})  # fmt: skip
