"""Keys of old SPM files that no live setting stands behind: read, checked, and answered with a line for the log.

Each class holds the old keys of one section of the settings. `mu.core.config.Renewed` takes them out of what is given; what
W&B is told of a run by them is in `LegacyConfig.tracking`.
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
    """Without effect: SPM has one rate, so it must equal train.lr or the published 1e-4."""
    text_encoder_lr: float | None = Field(None, gt=0)
    """Without effect: SPM has no adapters in the text encoder."""

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
            lines.append("train.text_encoder_lr has no effect: SPM adapts the UNet alone")
        return lines


class LegacyPromptConfig(OldKeys):
    seed: int | None = None
    """Without effect: the top-level seed decides."""
    case_number: int = 0
    """Without effect."""

    def notes(self) -> list[str]:
        if self.seed is None and not self.case_number:
            return []
        return ["prompt.seed and prompt.case_number have no effect in training: the top-level seed decides"]


class ImagesConfig(BaseConfig):
    """What the original's logging section says of the images that it makes during training."""

    interval: int | None = None
    """Without effect, as all below: no images are made during training; mu erase makes them before and after."""
    prompts: list[str] | None = None
    """What the original images during training."""
    negative_prompt: str | None = None
    """Of those images."""
    anchor_prompt: str | None = None
    """Text that the original compares those images with; anchor_prompts in some files."""
    anchor_prompts: str | list[str] | None = None
    """Another name of anchor_prompt."""
    width: int | None = None
    """Of those images, in pixels."""
    height: int | None = None
    """Of those images, in pixels."""
    num_inference_steps: int | None = None
    """Of those images."""
    guidance_scale: float | None = None
    """Of those images."""
    seed: int | None = None
    """Of those images; the top-level seed decides in training."""
    generate_num: int | None = None
    """Images for each of those prompts."""
    eval_num: int | None = None
    """Templates that the original scores those images with."""


class LoggingConfig(ImagesConfig):
    use_wandb: bool = False
    """Send losses to Weights & Biases, as --track wandb does."""
    run_name: str | None = None
    """Another name of wandb_run."""
    verbose: bool | None = None
    """Without effect: the top-level verbose decides."""


class OtherConfig(BaseConfig):
    use_xformers: bool | None = None
    """Without effect: PyTorch's own memory-efficient attention is always used."""


class LegacyConfig(OldKeys):
    logging: LoggingConfig = LoggingConfig()
    """W&B, and images during training."""
    other: OtherConfig = OtherConfig()
    """Attention."""
    inference: dict[str, Any] | None = None
    """Without effect: the original reads this section and does nothing with it."""
    wandb_project: str = "semipermeable_membrane_project"
    """Project in Weights & Biases, where that is asked for (--track wandb, logging.use_wandb, WANDB_MODE or WANDB_API_KEY)."""
    wandb_run: str = "spm_run"
    """Run name in Weights & Biases."""
    use_sample: bool = True
    """Without effect: which of two datasets other methods of that package read. SPM reads none."""
    dataset_type: Literal["unlearncanvas", "i2p"] = "unlearncanvas"
    """Where template_name comes from. Checked; no number follows from it."""
    template: Literal["object", "style", "i2p"] = "style"
    """What kind of concept template_name is. Checked; no number follows from it."""

    def notes(self) -> list[str]:
        lines = []
        if self.other.use_xformers is not None:
            lines.append("other.use_xformers has no effect: PyTorch's memory-efficient attention is always on")
        if self.logging.verbose is not None:
            lines.append("logging.verbose has no effect: verbose, at the top, decides")
        imaged = [name for name in ImagesConfig.model_fields if getattr(self.logging, name) is not None]
        if names := ", ".join(f"logging.{name}" for name in imaged):
            lines.append(f"without effect: {names}; no pictures are made during training, mu erase makes them before and after")
        if self.inference:
            names = ", ".join(f"inference.{name}" for name in self.inference)
            lines.append(f"without effect: {names}; training makes no pictures, mu generate takes such settings as options")
        if "use_sample" in self.model_fields_set:
            lines.append("use_sample has no effect: SPM needs no dataset, only the concept's name")
        for name in ("dataset_type", "template"):
            if name in self.model_fields_set:
                lines.append(f"{name} has no effect: it was checked, and template_name alone names the concept")
        return lines

    def tracking(self) -> Tracking:
        """Whether W&B is asked for, and under which names: by ``use_wandb``, or by a project or run for a W&B that is set up."""
        named = bool({"wandb_project", "wandb_run"} & self.model_fields_set)
        is_set_up = os.environ.get("WANDB_MODE") != "disabled" and any(map(os.environ.get, ("WANDB_MODE", "WANDB_API_KEY")))
        asked = self.logging.use_wandb or (named and is_set_up)
        return Tracking("wandb" if asked else None, self.wandb_project, self.logging.run_name or self.wandb_run)
