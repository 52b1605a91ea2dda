"""Settings of ESD, its paper and its presets. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mu.core.algorithm import Preset, Presets
from mu.core.config import phrased
from mu.core.tunable import LogRange, Range, WholeLogRange
from mu.training.diffusion_config import CALIBRATED, DiffusionMethod, ErasureConfig, TrainConfig

Variant = Literal[
    "esd-x",
    "esd-u",
    "noxattn",
    "notime",
    "full",
    "selfattn",
    "xlayer",
    "selflayer",
    "esd-all",
    "esd-x-strict",
    "esd-u-2025",
]
"""Which parameters ESD trains."""


class ESDConfig(ErasureConfig):
    """All settings of ESD. Defaults: the published settings for styles on SD 1.4 (ESD-x)."""

    train: TrainConfig = TrainConfig()
    """The optimisation."""
    variant: Variant = "esd-x"
    """``esd-x`` trains the cross-attention, for concepts that a prompt names. ``esd-u`` trains all other parameters,
    for concepts that also appear when the prompt does not name them. The rest are the released programs' names: of 2023
    ``noxattn``, ``notime``, ``full``, ``selfattn``, and ``xlayer`` and ``selflayer`` for two blocks' cross- and
    self-attention; of 2025 ``esd-all`` (all linear layers and convolutions), ``esd-u-2025`` (those outside the
    cross-attention; its own name there is esd-u) and ``esd-x-strict`` (keys and values of the cross-attention)."""
    joined: bool = False
    """One prompt of all concepts with commas between them, as the released program's lists of words. Off: a prompt for
    each concept, in turn."""
    negative_guidance: float = Field(1.0, gt=0)
    """eta: how far past the unconditional prediction the concept is pushed."""
    start_guidance: float = 3.0
    """Guidance scale of the partial denoising."""
    denoising_steps: int = Field(50, ge=1, le=10_000)
    """K: each training step denoises for 0 .. K-1 of K steps before it compares predictions."""
    latents_from: Literal["edited", "frozen"] = "edited"
    """The model that denoises: the edited one (paper, released code of 2023), or the frozen one (released code of
    2025)."""
    sampler: Literal["aligned", "released", "model"] = "aligned"
    """How the latents are made, and which timestep the UNet is told. ``aligned``: DDIM; it is told their own noise
    level. ``released``: the DDIM of the program of 2023, which leaves out its first step; the UNet is told a timestep
    one to three levels noisier. ``model``: the model's own sampler, such as PNDM, as the program of 2025."""
    seed: int = 0
    """Seed of all random numbers: the same seed gives the same edit."""
    output_dir: str = "outputs/esd"
    """The run folder."""

    def prompts(self) -> list[str]:
        if not self.joined:
            return super().prompts()
        return [phrased(template, ", ".join(self.concepts)) for template in self.templates]

    def idle(self) -> Mapping[str, str]:
        found = dict(super().idle())
        if self.calibrate.on:
            found["joined"] = "a calibrated search asks for each concept alone"
        elif len(self.concepts) == 1:
            found["joined"] = "one concept is one prompt"
        return found


class ESDMethod(DiffusionMethod):
    """Erased Stable Diffusion: fine-tuning on the frozen model's own negative guidance.

    @inproceedings{gandikota2023erasing,
      title     = {Erasing Concepts from Diffusion Models},
      author    = {Gandikota, Rohit and Materzy{\\'n}ska, Joanna and Fiotto-Kaufman, Jaden and Bau, David},
      booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
      year      = {2023}
    }
    """

    name = "esd"
    home = "mu.algorithms.esd.algorithm:ESD"
    config_class = ESDConfig
    tunable: ClassVar = {
        "train.lr": LogRange(1e-6, 1e-3),
        "train.iterations": WholeLogRange(50, 1000),
        "negative_guidance": Range(0.5, 4.0),
    }
    default_preset = "calibrated"
    presets = Presets(
        ESDConfig,
        CALIBRATED._replace(
            values={
                "calibrate": {"on": True},
                "variant": "esd-x-strict",
                "train": {"iterations": 400},
                "denoising_steps": 10,
                "negative_guidance": 0.5,
            }
        ),
        Preset("styles", "art styles on SD 1.4: the published settings (ESD-x)"),
        Preset("objects", "objects on SD 1.4: the published settings (ESD-u)", {"variant": "esd-u"}),
        Preset("nudity", "nudity on SD 1.4: the published settings (ESD-u)", {"concepts": ["nudity"]}, of="objects"),
        Preset("released", "styles by the program released in 2023, with its sampler", {"sampler": "released"}),
        Preset(
            "released-2025",
            "styles by the program released in 2025: its sampler, rate and number of updates",
            {"train": {"iterations": 200, "lr": 5e-5}, "latents_from": "frozen", "sampler": "model"},
        ),
        former={"canvas": "calibrated"},
    )
