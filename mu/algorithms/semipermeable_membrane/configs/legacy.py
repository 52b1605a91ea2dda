"""Keys of old SPM files without a current setting: they are read, checked, and reported.

Each class holds the old keys of one section of the settings. `mu.core.config.Renewed` takes them out of the given
values. `LegacyConfig.tracking` turns the W&B keys into a `Tracking`.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from mu.core.config import BaseConfig, OldKeys, unused
from mu.core.errors import ConfigError
from mu.core.tracking import Tracking


class LegacyTrainConfig(OldKeys):
    unet_lr: float | None = unused(None, "SPM trains only the UNet and has one rate, train.lr", gt=0)
    text_encoder_lr: float | None = unused(None, "SPM has no adapters in the text encoder", gt=0)

    def check(self, live: Any) -> None:
        if self.unet_lr not in (None, live.lr, 1e-4):
            raise ConfigError(
                f"train.lr ({live.lr}) and train.unet_lr ({self.unet_lr}) disagree: SPM has one rate, remove unet_lr"
            )


class LegacyPromptConfig(OldKeys):
    seed: int | None = unused(None, "training uses the top-level seed")
    case_number: int = unused(0, "training knows no cases")


_NO_IMAGES = "training makes no images; mu erase makes them before and after"


class ImagesConfig(BaseConfig):
    """The images that the original makes during training, from its logging section."""

    interval: int | None = unused(None, _NO_IMAGES)
    prompts: list[str] | None = unused(None, _NO_IMAGES)
    negative_prompt: str | None = unused(None, _NO_IMAGES)
    anchor_prompt: str | None = unused(None, _NO_IMAGES)
    anchor_prompts: str | list[str] | None = unused(None, _NO_IMAGES)
    width: int | None = unused(None, _NO_IMAGES)
    height: int | None = unused(None, _NO_IMAGES)
    num_inference_steps: int | None = unused(None, _NO_IMAGES)
    guidance_scale: float | None = unused(None, _NO_IMAGES)
    seed: int | None = unused(None, _NO_IMAGES)
    generate_num: int | None = unused(None, _NO_IMAGES)
    eval_num: int | None = unused(None, _NO_IMAGES)


class LoggingConfig(ImagesConfig):
    use_wandb: bool = False
    """Send losses to Weights & Biases, as --track wandb does."""
    run_name: str | None = None
    """Another name for wandb_run."""
    verbose: bool | None = unused(None, "the top-level verbose is used")


class OtherConfig(BaseConfig):
    use_xformers: bool | None = unused(None, "PyTorch's own memory-efficient attention is always used")


class LegacyConfig(OldKeys):
    logging: LoggingConfig = LoggingConfig()
    """W&B, and images during training."""
    other: OtherConfig = OtherConfig()
    """Attention."""
    inference: dict[str, Any] | None = unused(
        None, "the original ignores this section, and training makes no images; set these as options of mu generate"
    )
    wandb_project: str = "semipermeable_membrane_project"
    """Project in Weights & Biases, if tracking is on (--track wandb, logging.use_wandb, WANDB_MODE or
    WANDB_API_KEY)."""
    wandb_run: str = "spm_run"
    """Run name in Weights & Biases."""
    use_sample: bool = unused(True, "SPM needs only the concept's name and reads no dataset")
    dataset_type: Literal["unlearncanvas", "i2p"] = unused(
        "unlearncanvas", "beyond a check, since only template_name names the concept"
    )
    template: Literal["object", "style", "i2p"] = unused(
        "style", "beyond a check, since only template_name names the concept"
    )

    def named(self) -> list[str]:
        """The W&B names that were given."""
        names = [name for name in ("wandb_project", "wandb_run") if name in self.model_fields_set]
        return names + (["logging.run_name"] if self.logging.run_name else [])

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
