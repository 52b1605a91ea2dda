"""Keys of old SPM files without a current setting: they are read, checked, and reported in the log.

Each class holds the old keys of one section of the settings. `mu.core.config.Renewed` takes them out of the given
values. `LegacyConfig.tracking` turns the W&B keys into a `Tracking`.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from mu.core.config import BaseConfig, OldKeys
from mu.core.errors import ConfigError
from mu.core.tracking import Tracking


class LegacyTrainConfig(OldKeys):
    unet_lr: float | None = Field(None, gt=0)
    """No effect: SPM has one learning rate, so this must equal train.lr or the published 1e-4."""
    text_encoder_lr: float | None = Field(None, gt=0)
    """No effect: SPM has no adapters in the text encoder."""

    def check(self, live: Any) -> None:
        if self.unet_lr not in (None, live.lr, 1e-4):
            raise ConfigError(
                f"train.lr ({live.lr}) and train.unet_lr ({self.unet_lr}) disagree: SPM has one rate, remove unet_lr"
            )

    def notes(self) -> list[str]:
        lines = []
        if self.unet_lr is not None:
            lines.append("train.unet_lr has no effect: SPM has one rate, train.lr")
        if self.text_encoder_lr is not None:
            lines.append("train.text_encoder_lr has no effect: SPM adapts only the UNet")
        return lines


class LegacyPromptConfig(OldKeys):
    seed: int | None = None
    """No effect: the top-level seed is used."""
    case_number: int = 0
    """No effect."""

    def notes(self) -> list[str]:
        if self.seed is None and not self.case_number:
            return []
        return ["prompt.seed and prompt.case_number have no effect in training: the top-level seed is used"]


class ImagesConfig(BaseConfig):
    """The images that the original makes during training, from its logging section."""

    interval: int | None = None
    """No effect, like all settings below: training makes no images; mu erase makes them before and after."""
    prompts: list[str] | None = None
    """Prompts of the images that the original makes during training."""
    negative_prompt: str | None = None
    """Negative prompt of those images."""
    anchor_prompt: str | None = None
    """Text with which the original compares those images; anchor_prompts in some files."""
    anchor_prompts: str | list[str] | None = None
    """Another name for anchor_prompt."""
    width: int | None = None
    """Width of those images, in pixels."""
    height: int | None = None
    """Height of those images, in pixels."""
    num_inference_steps: int | None = None
    """Denoising steps of those images."""
    guidance_scale: float | None = None
    """Guidance scale of those images."""
    seed: int | None = None
    """Seed of those images; training uses the top-level seed."""
    generate_num: int | None = None
    """Images for each of those prompts."""
    eval_num: int | None = None
    """Number of templates with which the original scores those images."""


class LoggingConfig(ImagesConfig):
    use_wandb: bool = False
    """Send losses to Weights & Biases, as --track wandb does."""
    run_name: str | None = None
    """Another name for wandb_run."""
    verbose: bool | None = None
    """No effect: the top-level verbose is used."""


class OtherConfig(BaseConfig):
    use_xformers: bool | None = None
    """No effect: PyTorch's own memory-efficient attention is always used."""


class LegacyConfig(OldKeys):
    logging: LoggingConfig = LoggingConfig()
    """W&B, and images during training."""
    other: OtherConfig = OtherConfig()
    """Attention."""
    inference: dict[str, Any] | None = None
    """No effect: the original reads this section and ignores it."""
    wandb_project: str = "semipermeable_membrane_project"
    """Project in Weights & Biases, if tracking is on (--track wandb, logging.use_wandb, WANDB_MODE or
    WANDB_API_KEY)."""
    wandb_run: str = "spm_run"
    """Run name in Weights & Biases."""
    use_sample: bool = True
    """No effect: selects one of two datasets for other methods of that package. SPM reads no dataset."""
    dataset_type: Literal["unlearncanvas", "i2p"] = "unlearncanvas"
    """The source of template_name. Checked, but changes nothing."""
    template: Literal["object", "style", "i2p"] = "style"
    """The kind of concept in template_name. Checked, but changes nothing."""

    def notes(self) -> list[str]:
        lines = []
        if self.other.use_xformers is not None:
            lines.append("other.use_xformers has no effect: PyTorch's memory-efficient attention is always on")
        if self.logging.verbose is not None:
            lines.append("logging.verbose has no effect: set the top-level verbose")
        imaged = [name for name in ImagesConfig.model_fields if getattr(self.logging, name) is not None]
        if names := ", ".join(f"logging.{name}" for name in imaged):
            lines.append(f"without effect: {names}; training makes no images, mu erase makes them before and after")
        if self.inference:
            names = ", ".join(f"inference.{name}" for name in self.inference)
            lines.append(f"without effect: {names}; training makes no images, set these as options of mu generate")
        if "use_sample" in self.model_fields_set:
            lines.append("use_sample has no effect: SPM needs only the concept's name, not a dataset")
        for name in ("dataset_type", "template"):
            if name in self.model_fields_set:
                lines.append(f"{name} has no effect beyond a check: only template_name names the concept")
        return lines

    def tracking(self) -> Tracking:
        """The W&B tracking to use, with its project and run names.

        It is on with ``use_wandb``, or if a project or run is named and W&B is set up in the environment.
        """
        named = bool({"wandb_project", "wandb_run"} & self.model_fields_set)
        is_set_up = os.environ.get("WANDB_MODE") != "disabled" and any(
            map(os.environ.get, ("WANDB_MODE", "WANDB_API_KEY"))
        )
        asked = self.logging.use_wandb or (named and is_set_up)
        return Tracking("wandb" if asked else None, self.wandb_project, self.logging.run_name or self.wandb_run)
