"""Settings of SPEED, its paper and its presets. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.training.diffusion_config import CALIBRATED, ClosedFormConfig, DiffusionMethod


class SpeedConfig(ClosedFormConfig):
    """All settings of SPEED. Defaults: the released settings for few concepts on SD 1.4."""

    solved_by: ClassVar = (
        "templates", "retain", "matrices", "filter", "augmentations", "threshold", "retain_scale", "lamb", "tokens",
    )  # fmt: skip

    retain: list[str] = []
    """Texts whose last token is retained. A text that contains an erased concept is left out. Empty: the lists of
    styles, objects, animals, people, places and everyday prompts that are shipped."""
    matrices: Literal["V", "K", "KV"] = "V"
    """Which matrices of all cross-attentions change: values, keys, or both."""
    filter: bool = True
    """Retain only texts that the erasure would move more than the average one, and make more of them: see
    ``augmentations``. Each matrix then has a null space of its own. Without it one null space serves all matrices, and
    edits found one after another are solved together in a bank."""
    augmentations: int = Field(10, ge=0, le=100)
    """Copies of each filtered text's embedding with noise in the direction that the matrix scales least. More retain
    more and take longer."""
    threshold: float = Field(0.1, gt=0)
    """Directions in which the mean square of retained embeddings is below this are free to change. A larger value
    erases more and retains less."""
    retain_scale: float = Field(1.0, gt=0)
    """Weight of the distance from the old matrix in all free directions. A larger value changes less."""
    lamb: float = Field(0.0, ge=0)
    """How much the start token and the centres of the empty prompt may move; 0 holds them exactly."""
    tokens: Literal["last", "all"] = "last"
    """The tokens of a concept that are erased: ``last``, or ``all`` after the start token, padding included."""
    seed: int = 0
    """Seed of the noise of ``augmentations``."""
    output_dir: str = "outputs/speed"
    """The run folder."""

    def idle(self) -> Mapping[str, str]:
        found = dict(super().idle())
        if self.calibrate.on or not (self.filter and self.augmentations):
            found["seed"] = "nothing is drawn without filter and augmentations"
        if not self.filter:
            found["augmentations"] = "only filtered texts are augmented, and filter is off"
        return found


class SpeedMethod(DiffusionMethod):
    """Null-space editing of many concepts at once: cross-attention values in closed form.

    @inproceedings{li2026speed,
      title     = {{SPEED}: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models},
      author    = {Li, Ouxiang and Wang, Yuan and Hu, Xinting and Jiang, Houcheng and Liang, Tao and Hao, Yanbin and
                   Ma, Guojun and Feng, Fuli},
      booktitle = {International Conference on Learning Representations (ICLR)},
      year      = {2026}
    }
    """

    name = "speed"
    home = "mu.algorithms.speed.algorithm:Speed"
    config_class = SpeedConfig
    default_preset = "calibrated"
    presets = Presets(
        SpeedConfig,
        CALIBRATED,
        Preset("objects", "characters, objects and few concepts on SD 1.4: the published settings"),
        Preset(
            "celebrities",
            "10 to 100 people on SD 1.4: the published settings, anchored to person",
            {"anchors": ["person"], "filter": False, "threshold": 1e-4, "retain_scale": 0.05},
        ),
        Preset(
            "styles",
            "art styles on SD 1.4: the published settings, anchored to art",
            {"anchors": ["art"]},
            of="objects",
        ),
        Preset("nudity", "nudity on SD 1.4: all tokens of the concept", {"tokens": "all"}, of="objects"),
        Preset("canvas", "styles and objects of the embedded model", Path(__file__).with_name("canvas.yaml")),
    )
