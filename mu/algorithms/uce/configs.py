"""Settings of UCE, its paper and its presets. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.core.tunable import Choice, LogRange
from mu.training.diffusion_config import CALIBRATED, ClosedFormConfig, DiffusionMethod


class UCEConfig(ClosedFormConfig):
    """All settings of UCE. Defaults: the published settings for objects on SD 1.4."""

    solved_by: ClassVar = ("templates", "preserve", "erase_scale", "preserve_scale", "lamb", "tokens", "restorable")

    preserve: list[str] = [""]
    """Texts whose keys and values are retained. A text that contains an erased concept is skipped."""
    erase_scale: float = Field(1.0, gt=0)
    """Weight of the concepts in the least squares."""
    preserve_scale: float = Field(0.1, ge=0)
    """Weight of the preserved texts. A larger value retains more and erases less."""
    lamb: float = Field(0.1, gt=0)
    """lambda, weight of the distance from the old matrix in all directions. A larger value changes less."""
    tokens: Literal["padded", "last"] = "padded"
    """``padded``: a concept's last token and all positions after it, and all positions of preserved texts (released
    2023). ``last``: only the last token of each text (released 2025)."""
    restorable: bool = False
    """Keep the edit as a sum over concepts, so that any of them can be taken out exactly; see ``docs/mass.md``. Without
    it the edit is one delta, of a smaller file if concepts have many tokens."""
    output_dir: str = "outputs/uce"
    """The run folder."""


class UCEMethod(DiffusionMethod):
    """Unified concept editing: cross-attention keys and values by linear least squares, in closed form.

    @inproceedings{gandikota2024unified,
      title     = {Unified Concept Editing in Diffusion Models},
      author    = {Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna and Bau, David},
      booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
      year      = {2024}
    }
    """

    name = "uce"
    home = "mu.algorithms.uce.algorithm:UCE"
    config_class = UCEConfig
    tunable: ClassVar = {
        "erase_scale": LogRange(0.1, 10.0),
        "preserve_scale": LogRange(0.01, 30.0),
        "lamb": LogRange(0.01, 10.0),
        "tokens": Choice(("padded", "last")),
    }
    default_preset = "calibrated"
    presets = Presets(
        UCEConfig,
        CALIBRATED,
        Preset("objects", "objects on SD 1.4: the published settings"),
        Preset("styles", "art styles on SD 1.4: the published settings, anchored to art", {"anchors": ["art"]}),
        Preset("released", "the program released in 2023, as its command line sets it", {"lamb": 0.5}),
        Preset(
            "released-2025",
            "the program released in 2025, as its command line sets it",
            {"preserve": [], "preserve_scale": 1.0, "lamb": 0.5, "tokens": "last"},
        ),
        Preset(
            "styles-2025",
            "art styles on SD 1.4: the code released in 2025",
            {"anchors": ["art"]},
            of="released-2025",
        ),
        Preset("canvas", "styles and objects of the embedded model", Path(__file__).with_name("canvas.yaml")),
    )
